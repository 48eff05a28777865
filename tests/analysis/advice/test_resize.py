"""Adapters at other ranks: PEFT loads them with the error that is stated."""

import copy
import json
import math
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from deltaw.adapters import LoRA, OptionError, RecordError, WriteError, adapted, create, inject, save_peft
from deltaw.analysis import Trajectory, resize, write_advice
from deltaw.analysis.advice.adapter_folder import REPORT
from deltaw.trainers import Recorder

peft = pytest.importorskip("peft", minversion="0.21")

TARGETS = ["wide", "tall", "square"]


class Net(nn.Module):
    """Layers that are wide, tall and square, and a head."""

    def __init__(self):
        super().__init__()
        self.wide, self.tall, self.square = nn.Linear(24, 12), nn.Linear(12, 20), nn.Linear(20, 20)
        self.embed = nn.Embedding(9, 24)
        self.conv = nn.Conv1d(1, 3, 3)
        self.head = nn.Linear(20, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.square(torch.tanh(self.tall(torch.tanh(self.wide(x)))))))


def net(dtype=torch.float32):
    torch.manual_seed(0)
    return Net().to(dtype)


def trained(**options):
    """A model of PEFT's with random A, B and magnitudes, whose singular values fall."""
    config = {"r": 6, "lora_alpha": 12, "target_modules": TARGETS} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(net(), peft.LoraConfig(**config))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.randn_like(p) * (torch.logspace(0, -2, p.shape[1]) if p.ndim == 2 else 1.0))
            elif "lora_" in name and "magnitude" not in name:
                p.copy_(torch.randn_like(p))
            elif p.requires_grad:
                p.mul_(1 + 0.3 * torch.rand_like(p))
    return model.eval()


def saved(folder, **options):
    model = trained(**options)
    model.save_pretrained(folder)
    return model


def weights(model, base=None):
    """W' of every target, merged by PEFT in float64."""
    merged = copy.deepcopy(model).double().merge_and_unload()
    return {name: merged.get_submodule(name).weight.detach() for name in TARGETS}


def loaded(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return peft.PeftModel.from_pretrained(net(), folder).eval()


def relative_errors(before, after):
    base = {name: net().get_submodule(name).weight.detach().double() for name in TARGETS}
    found = {}
    for name, W in before.items():
        rest, update = after[name] - W, W - base[name]
        found[name] = (
            float(rest.norm() / update.norm()),
            float(torch.linalg.matrix_norm(rest, 2) / torch.linalg.matrix_norm(update, 2)),
        )
    return found


@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True}, {"rank_pattern": {"tall": 3}, "alpha_pattern": {"tall": 9}}]
)
@pytest.mark.parametrize("dtype", [None, "float16", "bfloat16"])
def test_peft_loads_it_with_the_error_that_is_stated(tmp_path, options, dtype):
    model = saved(tmp_path / "before", **options)
    frame = resize(tmp_path / "before", tmp_path / "after", rank=2, dtype=dtype).set_index("module")
    after = loaded(tmp_path / "after")
    found = relative_errors(weights(model), weights(after))
    for name, (frobenius, spectral) in found.items():
        row = frame.loc[name]
        assert (row["rank"], row["rank_before"]) == (2, 3 if options.get("rank_pattern") and name == "tall" else 6)
        assert row["error_frobenius"] == pytest.approx(frobenius, rel=1e-6)
        assert row["error_spectral"] == pytest.approx(spectral, rel=1e-6)
        slack = {None: 1e-6, "float16": 1e-2, "bfloat16": 0.05}[dtype]
        assert row["cut_frobenius"] == pytest.approx(row["error_frobenius"], abs=slack)
        layer, was = after.base_model.model.get_submodule(name), model.base_model.model.get_submodule(name)
        assert layer.r["default"] == 2
        assert layer.scaling["default"] == pytest.approx(was.scaling["default"])
    stored = {value.dtype for value in load_file(tmp_path / "after" / "adapter_model.safetensors").values()}
    assert stored == {getattr(torch, dtype or "float32")}
    report = json.loads((tmp_path / "after" / REPORT).read_text())
    assert {row["module"]: row["error_frobenius"] for row in report["modules"]} == frame["error_frobenius"].to_dict()
    whole = math.sqrt((frame["frobenius"] ** 2).sum())
    rest = math.sqrt(((frame["error_frobenius"] * frame["frobenius"]) ** 2).sum())
    assert report["all"]["error_frobenius"] == pytest.approx(rest / whole)


def test_the_full_rank_loses_nothing(tmp_path):
    model = saved(tmp_path / "before")
    frame = resize(tmp_path / "before", tmp_path / "after", rank=6, dtype="float64")
    assert frame["error_frobenius"].max() < 1e-14
    found = relative_errors(weights(model), weights(loaded(tmp_path / "after")))
    assert max(frobenius for frobenius, _ in found.values()) < 1e-6  # PEFT loads float64 as float32


def test_ranks_by_energy_and_by_advice(tmp_path):
    saved(tmp_path / "before", rank_pattern={"tall": 3})
    run = Trajectory.open(tmp_path / "before")
    frame = resize(tmp_path / "before", tmp_path / "energy", rule="energy", at=0.999)
    table = run.advice(at=0.999)
    assert frame["rank"].tolist() == table["rank"].tolist()
    assert frame["cut_frobenius"].max() <= math.sqrt(0.001)
    write_advice(table, tmp_path / "advice.json")
    again = resize(tmp_path / "before", tmp_path / "advice", advice=tmp_path / "advice.json")
    assert again.equals(frame)
    assert len(set(table["rank"])) > 1
    after = loaded(tmp_path / "advice")
    for name, rank in zip(table["module"], table["rank"], strict=True):
        assert after.base_model.model.get_submodule(name).r["default"] == rank
    less = resize(tmp_path / "before", tmp_path / "less", parameters=300)
    assert (less["rank"] * (less["rows"] + less["columns"])).sum() <= 300


def test_dora_keeps_its_magnitudes_and_says_what_that_loses(tmp_path):
    model = saved(tmp_path / "before", use_dora=True)
    base = net().state_dict()
    frame = resize(tmp_path / "before", tmp_path / "after", rank=2, base=base).set_index("module")
    after = loaded(tmp_path / "after")
    for name, (frobenius, _) in relative_errors(weights(model), weights(after)).items():
        assert frame.loc[name, "error_update"] == pytest.approx(frobenius, rel=1e-5)
        assert frame.loc[name, "of"] == "product"
    assert json.loads((tmp_path / "after" / "adapter_config.json").read_text())["use_dora"]
    with pytest.raises(RecordError, match="the error of a smaller DoRA"):
        resize(tmp_path / "before", tmp_path / "none", rank=2)
    assert not (tmp_path / "none").exists()
    plain = resize(tmp_path / "before", tmp_path / "plain", rank=2, base=base, plain=True).set_index("module")
    found = relative_errors(weights(model), weights(loaded(tmp_path / "plain")))
    assert plain.loc["tall", "error_frobenius"] == pytest.approx(found["tall"][0], rel=1e-5)


def test_what_stands_beside_goes_along(tmp_path):
    """The head, an embedding's adapter and a convolution's stay, with their own ranks."""
    model = saved(
        tmp_path / "before",
        target_modules=[*TARGETS, "embed", "conv"],
        modules_to_save=["head"],
        rank_pattern={"conv": 4},
    )
    frame = resize(tmp_path / "before", tmp_path / "after", rank=2)
    assert sorted(frame.attrs["kept"]) == ["conv", "embed"]
    assert sorted(frame["module"]) == sorted(TARGETS)
    after = loaded(tmp_path / "after")
    x = torch.randn(4, 24)
    for name, ours in (("embed", 6), ("conv", 4), ("wide", 2)):
        assert after.base_model.model.get_submodule(name).r["default"] == ours
    one, two = (m.base_model.model for m in (model, after))
    assert torch.equal(one.head(torch.ones(1, 20)), two.head(torch.ones(1, 20)))
    torch.testing.assert_close(one.embed(torch.arange(9)), two.embed(torch.arange(9)))
    torch.testing.assert_close(one.conv(x[:, None]), two.conv(x[:, None]))


def test_some_modules_alone(tmp_path):
    model = saved(tmp_path / "before", rank_pattern={"square": 5})
    frame = resize(tmp_path / "before", tmp_path / "after", rank=2, modules=["tall"])
    assert sorted(frame.attrs["kept"]) == ["square", "wide"]
    found = relative_errors(weights(model), weights(loaded(tmp_path / "after")))
    assert found["wide"][0] < 1e-6 > found["square"][0]
    assert found["tall"][0] > 0.01


def test_what_was_resized_before_is_resized_again(tmp_path):
    """The pattern of the first time does not outlive the second."""
    saved(tmp_path / "before")
    resize(tmp_path / "before", tmp_path / "once", rank=4, modules=["tall"])
    resize(tmp_path / "once", tmp_path / "twice", rank=2, modules=["tall"])
    after = loaded(tmp_path / "twice").base_model.model
    assert [after.get_submodule(name).r["default"] for name in TARGETS] == [6, 2, 6]
    assert {after.get_submodule(name).scaling["default"] for name in TARGETS} == {2.0}


@pytest.mark.parametrize("alpha", [0, "many", None, True])
def test_a_strangers_alpha(tmp_path, alpha):
    saved(tmp_path / "before")
    config = json.loads((tmp_path / "before" / "adapter_config.json").read_text())
    (tmp_path / "before" / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": alpha}))
    if alpha is None:  # PEFT's usual one
        assert resize(tmp_path / "before", tmp_path / "after", rank=2)["scaling"].tolist() == [8 / 6] * 3
        return
    with pytest.raises((OptionError, RecordError), match=r"its scale is 0|lora_alpha = .* is no number"):
        resize(tmp_path / "before", tmp_path / "after", rank=2)


def test_a_larger_rank_only_where_it_is_asked_for(tmp_path):
    model = saved(tmp_path / "before", rank_pattern={"tall": 2})
    with pytest.raises(OptionError, match="the largest there is 6"):
        resize(tmp_path / "before", tmp_path / "after", rank=8)
    frame = resize(tmp_path / "before", tmp_path / "after", rank=4).set_index("module")
    assert frame["rank"].to_dict() == {"wide": 4, "tall": 2, "square": 4}
    grown = resize(tmp_path / "before", tmp_path / "grown", rank=8, grow=True)
    assert grown["rank"].tolist() == [8, 8, 8]
    found = relative_errors(weights(model), weights(loaded(tmp_path / "grown")))
    assert max(frobenius for frobenius, _ in found.values()) < 1e-6


def test_a_lora_out_of_whole_models(tmp_path):
    """The best of its rank: the error is that of the singular values."""
    before, after = net(), net()
    torch.manual_seed(3)
    with torch.no_grad():
        for name in TARGETS:
            W = after.get_submodule(name).weight
            W += torch.randn(W.shape[0], 3) @ torch.randn(3, W.shape[1]) + 1e-3 * torch.randn_like(W)
    for name, model in (("base", before), ("tuned", after)):
        save_file({key: value.clone() for key, value in model.state_dict().items()}, tmp_path / f"{name}.safetensors")
    run = Trajectory.from_pair(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", modules=TARGETS)
    frame = resize(run, tmp_path / "lora", rank=3).set_index("module")
    merged = weights(loaded(tmp_path / "lora"))
    for name in TARGETS:
        values = torch.linalg.svdvals(run.update(name, 1))
        wanted = float(values[3:].norm() / values.norm())
        assert frame.loc[name, "cut_frobenius"] == pytest.approx(wanted)
        rest = after.get_submodule(name).weight.detach().double() - merged[name]
        assert float(rest.norm() / values.norm()) == pytest.approx(frame.loc[name, "error_frobenius"], rel=1e-4)
    assert frame["rank_before"].isna().all()


@pytest.mark.parametrize("method", ["lora", "rslora", "lora+", "dora-row", "pissa"])
def test_a_recorded_run(tmp_path, method):
    model = inject(net(), create(method, rank=4, alpha=8), targets=TARGETS, trainable=["head"], seed=0)
    with torch.no_grad():
        for layer in adapted(model).values():
            layer.tensor("lora_B").add_(torch.randn_like(layer.tensor("lora_B")))
    with Recorder(model, tmp_path / "run") as recorder:
        recorder.step(1)
    frame = resize(tmp_path / "run", tmp_path / "after", rank=2).set_index("module")
    merged = weights(loaded(tmp_path / "after"))
    for name, layer in adapted(model).items():
        base = net().get_submodule(name).weight.double()
        error = float((layer.effective_weight().double() - merged[name]).norm() / layer.update().double().norm())
        stated = frame.loc[name, "error_update" if method == "dora-row" else "error_frobenius"]
        assert stated == pytest.approx(error, rel=1e-4)
        assert base.shape == merged[name].shape


def test_what_has_no_counterpart_is_refused_by_name(tmp_path):
    for method in ("dora", "bora"):
        model = inject(net(), create(method, rank=4), targets=TARGETS, seed=0)
        with Recorder(model, tmp_path / method) as recorder:
            recorder.step(1)
        with pytest.raises(OptionError, match=f"is {method}, whose magnitudes have no counterpart"):
            resize(tmp_path / method, tmp_path / "after", rank=2)
        assert not (tmp_path / "after").exists()


def test_another_tools_convolution_is_not_lost_in_silence(tmp_path):
    tensors = {}
    for name, shape in (("mid_block_attentions_0_proj_in", (4, 8)), ("mid_block_resnets_0_conv1", (4, 8, 3, 3))):
        key = f"lora_unet_{name}"
        tensors[f"{key}.lora_down.weight"] = torch.randn(shape)
        tensors[f"{key}.lora_up.weight"] = torch.randn(6, 4, *([1] * (len(shape) - 2)))
        tensors[f"{key}.alpha"] = torch.tensor(4.0)
    save_file(tensors, tmp_path / "kohya.safetensors")
    with pytest.raises(OptionError, match="is a convolution"):
        resize(tmp_path / "kohya.safetensors", tmp_path / "after", rank=2)
    linear = [name for name in Trajectory.open(tmp_path / "kohya.safetensors").modules if "proj_in" in name]
    assert resize(tmp_path / "kohya.safetensors", tmp_path / "after", rank=2, modules=linear)["rank"].tolist() == [2]


def test_nothing_is_written_over_and_nothing_half(tmp_path, monkeypatch):
    saved(tmp_path / "before")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for name in ("full", "before", "file", "link"):
        with pytest.raises(WriteError):
            resize(tmp_path / "before", tmp_path / name, rank=2)
    assert (tmp_path / "full" / "notes.txt").read_text() == (tmp_path / "file").read_text() == "mine"
    resize(tmp_path / "before", tmp_path / "empty", rank=2)
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        REPORT,
    ]

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("deltaw.analysis.advice.adapter_folder.os.rename", full_disk)
    there = sorted(tmp_path.iterdir())
    with pytest.raises(WriteError, match="Free some space"):
        resize(tmp_path / "before", tmp_path / "late", rank=2)
    assert sorted(tmp_path.iterdir()) == there


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing is given"),
        ({"rank": 2, "rule": "energy"}, "rank and rule is given"),
        ({"rank": 0}, "at least 1"),
        ({"rank": 2, "dtype": "int8"}, "dtype is 'int8'"),
        ({"rule": "mine"}, "rule is 'mine'"),
    ],
    ids=str,
)
def test_a_wrong_call_says_so(tmp_path, options, message):
    save_peft(inject(net(), LoRA(rank=2), targets=TARGETS), tmp_path / "before")
    with pytest.raises(OptionError, match=message):
        resize(tmp_path / "before", tmp_path / "after", **options)
    assert not (tmp_path / "after").exists()


def test_advice_of_another_adapter(tmp_path):
    saved(tmp_path / "before")
    write_advice(Trajectory.open(tmp_path / "before").advice(modules=["tall"]), tmp_path / "advice.json")
    with pytest.raises(OptionError, match=r"has no rank for (wide|square) and 1 more"):
        resize(tmp_path / "before", tmp_path / "after", advice=tmp_path / "advice.json")
