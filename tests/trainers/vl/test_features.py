"""Features from files and encoders, and what does not fit."""

import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from deltaw.adapters import DataError
from deltaw.trainers import vl
from deltaw.trainers.vl.data import Example, VLCorpus
from deltaw.trainers.vl.encoders import Encoder, as_tokens, load_encoder, prepare_picture
from deltaw.trainers.vl.features import encode, features_of, load_features, save_features
from deltaw.trainers.vl.reading import open_picture


def corpus(keys, opener=lambda: Image.new("RGB", (8, 8), "red")):
    examples = tuple(Example("vqa", "what?", ("x",), (key,)) for key in keys)
    return VLCorpus("test", examples, examples, dict.fromkeys(keys, opener))


KEYS = ("coco/COCO_val2014_000000000042", "gqa/7", "builtin/dev-001")


def some_tensors(keys=KEYS, tokens=4, width=3):
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(tokens, width, generator=generator) for key in keys}


def write_hdf5(path, tensors, *, grouped=False):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for key, value in tensors.items():
            file[f"{key}/features" if grouped else key] = value.numpy()
            if grouped:
                file[f"{key}/boxes"] = np.zeros((4, 4))


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("kind", ["safetensors", "h5", "hdf5", "grouped"])
def test_from_a_file(tmp_path, kind, bare):
    tensors = some_tensors()
    stored = {key.partition("/")[2] if bare else key: value for key, value in tensors.items()}
    path = tmp_path / f"x.{'h5' if kind == 'grouped' else kind}"
    if kind == "safetensors":
        save_file({**stored, "another": torch.zeros(9)}, path)  # what the corpus does not need is not looked at
    else:
        write_hdf5(path, stored, grouped=kind == "grouped")
    features = load_features(str(path), corpus(KEYS))
    assert (features.tokens, features.width, features.keys) == (4, 3, KEYS)
    for key, value in tensors.items():
        assert torch.equal(features[key], value)
        assert features[key].dtype == torch.float32


def test_saved_features_are_the_encoded_ones(tmp_path):
    encoder = Encoder(
        "test",
        lambda picture: prepare_picture(picture, (4, 4), (0.1,) * 3, (0.3,) * 3),
        lambda x: x.flatten(2),
        lambda d: d,
    )
    wanted = encode(encoder, corpus(KEYS).pictures, progress=False)
    save_features(wanted, tmp_path / "x.safetensors")
    again = load_features(str(tmp_path / "x.safetensors"), corpus(KEYS))
    assert (wanted.tokens, wanted.width) == (again.tokens, again.width) == (3, 16)
    for key in KEYS:
        assert torch.equal(wanted[key], again[key])
    with pytest.raises(DataError, match="too large for float16"):
        save_features(features_of({"a": torch.full((1, 1), 1e6)}), tmp_path / "y.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.safetensors"]


@pytest.mark.parametrize("kind", ["safetensors", "h5"])
@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ({"gqa/7": torch.zeros(5, 3)}, r"1 of 3 pictures have another count or width: 'gqa/7' has \(5, 3\)"),
        ({"gqa/7": torch.zeros(4, 2)}, r"another count or width: 'gqa/7' has \(4, 2\)"),
        ({"gqa/7": torch.zeros(12)}, "another count or width"),
        (dict.fromkeys(KEYS, torch.zeros(2, 4, 3)), r"of shape \(2, 4, 3\); wanted is \(tokens, width\)"),
        (dict.fromkeys(KEYS, torch.zeros(0, 3)), r"of shape \(0, 3\)"),
        ({"gqa/7": None}, "has no features of 1 of 3 pictures: gqa/7"),
    ],
)
def test_features_that_do_not_fit(tmp_path, kind, edit, words):
    tensors = {key: value for key, value in {**some_tensors(), **edit}.items() if value is not None}
    path = tmp_path / f"x.{kind}"
    if kind == "h5":
        write_hdf5(path, tensors)
    else:
        save_file({key: value.clone() for key, value in tensors.items()}, path)
    with pytest.raises(DataError, match=words) as caught:
        load_features(str(path), corpus(KEYS))
    assert str(path) in str(caught.value)


def test_many_missing_features_are_counted(tmp_path):
    save_file({"another": torch.zeros(4, 3)}, tmp_path / "x.safetensors")
    with pytest.raises(DataError, match="no features of 9 of 9 pictures: 0, 1, 2, 3, 4 and 4 more"):
        load_features(str(tmp_path / "x.safetensors"), corpus([str(number) for number in range(9)]))


def test_features_that_are_not_finite(tmp_path):
    save_file({"a": torch.full((1, 2), float("nan"))}, tmp_path / "x.safetensors")
    with pytest.raises(DataError, match="'a' hold NaN"):
        load_features(str(tmp_path / "x.safetensors"), corpus(["a"]))["a"]


@pytest.mark.parametrize("name", ["x.safetensors", "x.h5"])
def test_a_file_that_is_cut_or_missing(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(DataError, match="no such file"):
        load_features(str(path), corpus(KEYS))
    if name.endswith("h5"):
        write_hdf5(path, some_tensors())
    else:
        save_file(some_tensors(), path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match="is not a whole"):
        load_features(str(path), corpus(KEYS))


def test_hdf5_with_something_else_in_it(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a/boxes"] = np.zeros((4, 4))
    with pytest.raises(DataError, match="neither a dataset of numbers nor a group"):
        load_features(str(tmp_path / "x.h5"), corpus(["a"]))


def test_hdf5_without_h5py(tmp_path, monkeypatch):
    (tmp_path / "x.h5").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match=r"pip install 'deltaw\[vl\]'"):
        load_features(str(tmp_path / "x.h5"), corpus(KEYS))


# --- Encoders -----------------------------------------------------------------------------------------------


def test_the_builtin_encoder():
    keys = ("builtin/a", "builtin/b")
    found = corpus(keys, lambda: Image.new("RGB", (64, 64), "blue"))
    features = load_features(None, found, progress=False)
    again = load_features("builtin", found, progress=False)
    encoder = load_encoder(None)
    (wanted,) = encoder.encode(encoder.prepare(Image.new("RGB", (64, 64), "blue"))[None])
    for key in keys:
        assert features[key].shape == (features.tokens, features.width) == wanted.shape
        assert torch.equal(features[key], again[key])
        torch.testing.assert_close(features[key], wanted, atol=2e-3, rtol=2e-3)


def test_missing_and_unreadable_pictures_are_named_before_anything_is_encoded(tmp_path):
    for index in range(9):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{index}.png")
    (tmp_path / "2.png").unlink()
    (tmp_path / "4.png").write_bytes(b"no picture")
    whole = (tmp_path / "5.png").read_bytes()
    (tmp_path / "5.png").write_bytes(whole[: len(whole) // 2])
    pictures = {str(index): lambda index=index: open_picture(tmp_path / f"{index}.png") for index in range(9)}
    calls = []
    encoder = Encoder("test", lambda picture: torch.zeros(3, 2, 2), lambda x: calls.append(x) or x, lambda d: d)
    with pytest.raises(DataError) as caught:
        encode(encoder, pictures, progress=False)
    message = str(caught.value)
    assert f"1 of 9 pictures are missing: 2 ({tmp_path / '2.png'})" in message
    assert "2 of 9 pictures cannot be read: 4 (UnidentifiedImageError" in message
    assert "5 (" in message
    assert not calls


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.full((1, 2, 3), float("inf")), "NaN or values too large"),
        (torch.full((1, 2, 3), 1e6), "NaN or values too large"),
        (torch.zeros(1, 6), "wanted is a grid"),
    ],
)
def test_an_encoder_that_gives_no_features(value, words):
    encoder = Encoder("bad", lambda picture: torch.zeros(3, 2, 2), lambda pictures: value, lambda device: device)
    with pytest.raises(DataError, match=words):
        encode(encoder, corpus(["a"]).pictures, progress=False)


def test_pictures_of_several_shapes_are_encoded_apart():
    sizes = {"a": (4, 9), "b": (4, 9), "c": (9, 4), "d": (4, 9)}
    pictures = {key: lambda size=size: Image.new("RGB", size) for key, size in sizes.items()}
    shapes = []

    def tokens(values):
        shapes.append(tuple(values.shape))
        return values.flatten(2).transpose(1, 2)

    encoder = Encoder(
        "test", lambda picture: prepare_picture(picture, picture.size[::-1], (0,) * 3, (1,) * 3), tokens, lambda d: d
    )
    features = encode(encoder, pictures, progress=False)
    assert (features.tokens, features.width) == (36, 3)
    assert shapes == [(2, 3, 9, 4), (1, 3, 4, 9), (1, 3, 9, 4)]


def test_prepare_picture_keeps_places_and_colors():
    picture = Image.new("RGB", (4, 2), "black")
    picture.putpixel((3, 0), (255, 0, 51))
    value = prepare_picture(picture, (2, 4), (0, 0, 0.1), (1, 1, 0.5))
    assert value.shape == (3, 2, 4)
    torch.testing.assert_close(value[:, 0, 3], torch.tensor([1.0, 0.0, (0.2 - 0.1) / 0.5]))
    torch.testing.assert_close(value[:, 1, 0], torch.tensor([0.0, 0.0, -0.2]))


@pytest.mark.parametrize("layout", ["channels first", "channels last", "tokens"])
def test_as_tokens_reads_in_order(layout):
    grid = torch.arange(2 * 5 * 2 * 3.0).view(2, 5, 2, 3)  # (batch, width, rows, columns)
    wanted = torch.stack([grid[:, :, row, column] for row in range(2) for column in range(3)], dim=1)
    given = {
        "channels first": grid,
        "channels last": grid.permute(0, 2, 3, 1),
        "tokens": torch.cat([torch.zeros(2, 2, 5), wanted], dim=1),
    }[layout]
    assert torch.equal(as_tokens(given, 5, 2), wanted)
    with pytest.raises(DataError, match="no grid of width 7"):
        as_tokens(given, 7)


@pytest.mark.parametrize("vision", ["clip", "timm/", "open_clip/RN50", "x.pt", ""])
def test_unknown_encoders(vision):
    with pytest.raises(DataError, match="'timm/NAME@WEIGHTS_FILE'"):
        load_features(vision, corpus(KEYS), progress=False)


@pytest.mark.parametrize("name", ["timm", "open_clip"])
def test_encoders_whose_package_is_missing(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError, match=rf"{name}/.* needs {name} and torchvision .*pip install 'deltaw\[vision\]'"):
        load_encoder(f"{name}/RN50/openai")


class Small(nn.Module):
    """What timm's models have in common."""

    num_features = 6
    num_prefix_tokens = 0
    default_cfg = {"classifier": "head"}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 4, 4)

    def forward_features(self, x):
        return self.stem(x)


@pytest.fixture
def timm(monkeypatch):
    """A stand-in with timm's calls: the real one does not import without torchvision."""

    def create_model(name, pretrained, num_classes):
        if name != "small" or num_classes != 0:
            raise RuntimeError(f"Unknown model ({name})")
        if pretrained:
            raise OSError("no network")
        return Small()

    module = types.ModuleType("timm")
    module.create_model = create_model
    module.data = types.SimpleNamespace(
        resolve_model_data_config=lambda model: {"input_size": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    )
    monkeypatch.setitem(sys.modules, "timm", module)
    return module


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_timm_with_weights_of_a_file(timm, tmp_path, suffix, wrapped):
    torch.manual_seed(0)
    state = {**Small().state_dict(), "head.weight": torch.zeros(10, 6)}  # the classifier is left out
    path = tmp_path / f"x.{suffix}"
    if suffix == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state} if wrapped else state, path)
    encoder = load_encoder(f"timm/small@{path}")
    value = encoder.prepare(Image.new("RGB", (20, 10), "white"))
    assert torch.equal(value, torch.ones(3, 8, 8))
    wanted = state["stem.weight"].sum((1, 2, 3)) + state["stem.bias"]
    torch.testing.assert_close(encoder.encode(value[None])[0], wanted.expand(4, 6))


def test_timm_refusals(timm, tmp_path):
    def refused(vision, words):
        with pytest.raises(DataError, match=words):
            load_encoder(vision)

    refused("timm/large", "Unknown model")
    refused("timm/small", "no network.*give the weights as timm/small@FILE")
    refused(f"timm/small@{tmp_path / 'x.pt'}", "there is no file of weights")
    path = tmp_path / "x.pt"
    state = Small().state_dict()
    for value, words in (
        ({"stem.weight": state["stem.weight"]}, r"1 weights are missing \(stem.bias\)"),
        ({**state, "tail.weight": torch.zeros(1)}, r"1 are unknown \(tail.weight\)"),
        ({**state, "stem.weight": torch.zeros(1)}, "size mismatch"),
        ([1], "not a state dict"),
        (types.SimpleNamespace(), "holds more than tensors"),
    ):
        torch.save(value, path)
        refused(f"timm/small@{path}", words)
    path.write_bytes(b"nothing")
    refused(f"timm/small@{path}", "x.pt")
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    refused(f"timm/small@{tmp_path / 'x.safetensors'}", "cannot be read as weights")


def test_the_real_timm(tmp_path):
    timm = pytest.importorskip("timm", exc_type=ImportError, reason="timm needs torchvision")
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv2_035", pretrained=False)
    save_file(model.state_dict(), tmp_path / "x.safetensors")
    features = load_features(f"timm/mobilenetv2_035@{tmp_path / 'x.safetensors'}", corpus(["a"]), progress=False)
    assert (features.tokens, features.width) == (49, 1280)


def test_open_clip(monkeypatch):
    """With a stand-in that has its calls."""

    class Visual(nn.Module):
        image_size, image_mean, image_std = 8, (0.0,) * 3, (1.0,) * 3

        def forward_intermediates(self, x, indices, intermediates_only):
            assert indices == 1
            assert intermediates_only
            return {"image_intermediates": [x[:, :, ::4, ::4]]}

    def create_model(name, pretrained):
        if pretrained != "openai":
            raise RuntimeError("no such weights")
        return types.SimpleNamespace(visual=Visual())

    module = types.ModuleType("open_clip")
    module.create_model = create_model
    monkeypatch.setitem(sys.modules, "open_clip", module)
    features = load_features("open_clip/RN50/openai", corpus(["a"]), progress=False)
    assert torch.equal(features["a"], torch.tensor([1.0, 0.0, 0.0]).expand(4, 3))
    with pytest.raises(DataError, match="no such weights"):
        load_encoder("open_clip/RN50/laion")


def test_optional_packages_are_imported_where_they_are_used():
    """Reading data must work without them; torchvision is imported nowhere."""
    lines = [line for file in Path(vl.__path__[0]).glob("*.py") for line in file.read_text().splitlines()]
    imports = [line for line in lines if re.match(r"\s*(import|from) ", line)]
    assert any("h5py" in line for line in imports)
    for name in ("timm", "open_clip", "h5py", "pycocoevalcap", "easy_vqa"):
        assert not [line for line in imports if re.match(rf"(import|from) {name}\b", line)]
    assert not [line for line in imports if "torchvision" in line]
