"""Convolutions in a record: as matrices [out, in·k…] with their kernel, where a pattern names them."""

import json
import logging

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from deltaw.adapters.effective import base_matrix, base_weight, effective_matrix, effective_weight
from deltaw.adapters.errors import RecordError, ShapeError, TargetError
from deltaw.analysis.tables.changes import changes_table
from deltaw.analysis.trajectory import Trajectory
from deltaw.trainers import Recorder

peft = pytest.importorskip("peft")

CONVOLUTIONS = {1: (nn.Conv1d, F.conv1d), 2: (nn.Conv2d, F.conv2d), 3: (nn.Conv3d, F.conv3d)}
AXES = ("row", "column", "matrix", "entry")
KERNELS = {1: (3,), 2: (3, 2), 3: (2, 1, 3)}


def net(places=2, dtype=torch.float64):
    torch.manual_seed(0)
    kind = CONVOLUTIONS[places][0]
    model = nn.Sequential(
        kind(4, 6, KERNELS[places], stride=2, padding=1), kind(6, 5, 1), nn.Flatten(), nn.Linear(5, 3)
    )
    return model.to(dtype)


def moved(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


def recorded(model, path, names=("*0", "*1"), saved=None):
    """A record of steps 0 to 2, the last W' by name, and what ``saved`` writes at each step."""
    with Recorder(model, path, modules=list(names)) as recorder:
        for step in range(3):
            moved(model, step) if step else None
            recorder.record(step)
            if saved is not None:
                saved(step)
        return {
            name.removeprefix("base_model.model."): effective_matrix(module).clone()
            for name, module in recorder.modules.items()
        }


def same_changes(run, other):
    ours, theirs = (changes_table([source], axes=AXES, modules=["0", "1"]) for source in (run, other))
    numbers = [column for column in ours.columns if ours[column].dtype.kind == "f"]
    assert numbers
    assert list(ours["module"]) == list(theirs["module"])
    assert {"0", "1"} == set(ours["module"])
    for column in numbers:
        ours_there, theirs_there = (torch.tensor(frame[column].to_numpy()) for frame in (ours, theirs))
        torch.testing.assert_close(ours_there, theirs_there, equal_nan=True, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("places", [1, 2, 3])
def test_a_plain_convolution_is_the_matrix_of_its_filters(places, tmp_path):
    model = net(places)
    before = model[0].weight.detach().clone()

    def saved(step):
        folder = tmp_path / "saved" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")

    recorded(model, tmp_path / "run", saved=saved)
    run = Trajectory.open(tmp_path / "run")
    assert run.modules == ["0", "1"]
    assert torch.equal(run.base("0"), before.flatten(1))
    assert torch.equal(run.weight("0", 2), model[0].weight.detach().flatten(1))
    assert [run.source.kernel(name) for name in run.modules] == [KERNELS[places], (1,) * places]
    foreign = Trajectory.open(tmp_path / "saved")
    for step in range(3):
        for name in run.modules:
            assert torch.equal(run.weight(name, step), foreign.weight(name, step))
            assert run.source.kernel(name) == foreign.source.kernel(name)
    same_changes(run, foreign)


LORA = {
    "lora": (peft.LoraConfig(r=2, lora_alpha=3, target_modules=["0", "1"]), "lora"),
    "rslora": (peft.LoraConfig(r=2, lora_alpha=3, use_rslora=True, target_modules=["0", "1"]), "rslora"),
    "dora": (peft.LoraConfig(r=2, lora_alpha=3, use_dora=True, target_modules=["0", "1"]), "dora-row"),
}
WHOLE = {
    "loha": peft.LoHaConfig(r=2, alpha=3, target_modules=["0", "1"]),
    "loha cores": peft.LoHaConfig(r=2, alpha=3, use_effective_conv2d=True, target_modules=["0", "1"]),
    "lokr": peft.LoKrConfig(r=2, alpha=3, target_modules=["0", "1"]),
    "lokr cores": peft.LoKrConfig(r=2, alpha=3, use_effective_conv2d=True, target_modules=["0", "1"]),
}


def adapted(config, places, path):
    model = peft.get_peft_model(net(places), config).double()
    moved(model, 7)
    base = path / "base"
    base.mkdir()
    save_file({k: v.contiguous() for k, v in net(places).state_dict().items()}, base / "model.safetensors")

    def saved(step):
        model.save_pretrained(str(path / "saved" / f"checkpoint-{step}"))

    return model, base, saved


def forward_holds(layer, weight, places):
    """The layer's own forward, in evaluation, is the convolution with the matrix put back into its kernel's shape."""
    below = layer.base_layer
    x = torch.randn(
        2, below.in_channels, *[5] * places, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    )
    convolve = CONVOLUTIONS[places][1]
    with torch.no_grad():
        expected = convolve(x, weight.reshape(below.weight.shape), below.bias, below.stride, below.padding)
        torch.testing.assert_close(layer.eval()(x), expected, rtol=1e-6, atol=1e-6)  # LoHa's scaling is in float32


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("places", [1, 2, 3])
@pytest.mark.parametrize("kind", LORA)
def test_lora_on_a_convolution_is_recorded_as_its_factors(kind, places, tmp_path):
    config, method = LORA[kind]
    model, base, saved = adapted(config, places, tmp_path)
    weights = recorded(model, tmp_path / "run", saved=saved)
    run, foreign = Trajectory.open(tmp_path / "run"), Trajectory.open(tmp_path / "saved", base=base)
    assert (run.method, run.modules) == (method, ["0", "1"])
    size = 4 * torch.Size(KERNELS[places]).numel()
    assert {k: tuple(v.shape) for k, v in run.state("0", 2).items() if "lora" in k} == {
        "lora_A": (2, size),
        "lora_B": (6, 2),
    }
    layers = model.base_model.model
    for name in run.modules:
        assert torch.equal(run.base(name), net(places)[int(name)].weight.detach().flatten(1))
        exact = 0 if method != "dora-row" else 1e-14  # PEFT adds the update, which rounds once more
        torch.testing.assert_close(run.weight(name, 2), weights[name], rtol=0, atol=exact)
        assert run.source.kernel(name) == tuple(layers[int(name)].base_layer.kernel_size)
        torch.testing.assert_close(run.weight(name, 2), foreign.weight(name, 2), rtol=1e-12, atol=1e-12)
        forward_holds(layers[int(name)], run.weight(name, 2), places)
    if method == "lora":
        U, V = run.factors("0", 2)
        assert (U.shape, V.shape) == ((6, 2), (2, size))
    same_changes(run, foreign)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("places", [1, 2])
@pytest.mark.parametrize("kind", WHOLE)
def test_loha_and_lokr_on_a_convolution_are_recorded_whole(kind, places, tmp_path):
    model, base, saved = adapted(WHOLE[kind], places, tmp_path)
    weights = recorded(model, tmp_path / "run", saved=saved)
    run, foreign = Trajectory.open(tmp_path / "run"), Trajectory.open(tmp_path / "saved", base=base)
    for name in run.modules:
        assert list(run.state(name, 2)) == ["weight"]
        assert torch.equal(run.weight(name, 2), weights[name])
        torch.testing.assert_close(run.weight(name, 2), foreign.weight(name, 2), rtol=1e-6, atol=1e-8)
        forward_holds(model.base_model.model[int(name)], run.weight(name, 2), places)
    assert run.update("0", 2).norm() > 0.01


@pytest.mark.filterwarnings("ignore")
def test_a_convolution_below_lora_is_guarded_and_measured_as_it_trains(tmp_path):
    model = peft.get_peft_model(net(dtype=torch.float32), LORA["lora"][0])
    with Recorder(model, tmp_path / "run", modules=["*.0"], live=True) as recorder:
        recorder.record(0)
        with torch.no_grad():
            model.base_model.model[0].lora_B["default"].weight.fill_(0.25)
        assert any(value > 0 for value in recorder.record(1).values())
        model.merge_adapter()
        model.unmerge_adapter()  # leaves a rounding behind
        recorder.record(2)
        with torch.no_grad():
            model.base_model.model[0].base_layer.weight.add_(0.5)
        with pytest.raises(RecordError, match=r"the weight below PEFT's adapter of .* has moved"):
            recorder.record(3)


def test_linear_layers_alone_are_recorded_where_no_pattern_asks(tmp_path):
    with Recorder(net(), tmp_path / "run") as recorder:
        assert list(recorder.modules) == ["3"]
        recorder.record(0)
    assert "kernel" not in (tmp_path / "run" / "manifest.json").read_text()  # as it was before there were any
    assert Trajectory.open(tmp_path / "run").source.kernel("3") == ()


def test_a_record_of_convolutions_is_resumed_equal_to_the_bit(tmp_path):
    for way in ("once", "twice"):
        model = net()
        for resume, steps in ((False, (0, 1)), (True, (2, 3))) if way == "twice" else ((False, (0, 1, 2, 3)),):
            with Recorder(model, tmp_path / way, modules=["0", "3"], resume=resume) as recorder:
                for step in steps:
                    moved(model, step)
                    recorder.record(step)
    once, twice = (Trajectory.open(tmp_path / way) for way in ("once", "twice"))
    assert once.steps == twice.steps == [0, 1, 2, 3]
    for step in range(4):
        assert torch.equal(once.weight("0", step), twice.weight("0", step))
    torch.manual_seed(0)
    other = nn.Sequential(nn.Conv2d(4, 6, (2, 3)), nn.Conv2d(6, 5, 1), nn.Flatten(), nn.Linear(5, 3)).double()
    with pytest.raises(RecordError, match="kernel"), Recorder(other, tmp_path / "once", ["0", "3"], resume=True):
        pass


REFUSED = {
    "transposed": (nn.ConvTranspose2d(4, 4, 3), r"'0' is a ConvTranspose2d, whose kernel \[in, out, k…\]"),
    "grouped": (nn.Conv1d(4, 4, 3, groups=2), "'0' is a Conv1d in 2 groups"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_convolutions_are_refused_by_name_and_logged_where_others_are_meant(kind, tmp_path, caplog):
    module, message = REFUSED[kind]
    model = nn.Sequential(module, nn.Linear(4, 3))
    with pytest.raises(TargetError, match=message) as error:
        Recorder(model, tmp_path / "run", modules=["0", "1"])
    assert "\n" not in str(error.value)
    with caplog.at_level(logging.WARNING):
        assert list(Recorder(model, tmp_path / "run", modules=["*"]).modules) == ["1"]
    assert "'0' is a Conv" in caplog.text


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_that_is_not_known_on_a_convolution_is_refused(tmp_path):
    config = peft.IA3Config(target_modules=["0"], feedforward_modules=["0"])
    with pytest.raises(TargetError, match=r"a Conv2d under PEFT's ia3.*LoHa and LoKr alone"):
        Recorder(peft.get_peft_model(net(), config), tmp_path / "run", modules=["*.0"])


def test_a_parametrized_convolution_is_recorded_as_it_computes(tmp_path):
    model = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 2))).double()
    with Recorder(model, tmp_path / "run", modules=["0"]) as recorder:
        recorder.record(0)
    assert torch.equal(Trajectory.open(tmp_path / "run").weight("0", 0), model[0].weight.detach().flatten(1))


def test_the_public_weights_are_those_of_linear_layers():
    layer = nn.Conv2d(3, 4, 2)
    assert torch.equal(base_matrix(layer), layer.weight.flatten(1))
    for weight in (effective_weight, base_weight):
        with pytest.raises(ShapeError, match="Conv2d"):
            weight(layer)


@pytest.mark.parametrize("kernel", [[3, 5], [0], [1, 1, 1, 1], ["3"], 3], ids=str)
def test_a_kernel_that_does_not_fit_its_matrix_is_damage(kernel, tmp_path):
    with Recorder(net(), tmp_path / "run", modules=["0"]) as recorder:
        recorder.record(0)
    path = tmp_path / "run" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["modules"]["0"]["kernel"] = kernel
    path.write_text(json.dumps(manifest))
    with pytest.raises(RecordError, match="is damaged"):
        Trajectory.open(tmp_path / "run")
