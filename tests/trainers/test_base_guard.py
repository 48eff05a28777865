"""A base that moves under a PEFT adapter is refused; one that a merge has only rounded is recorded right."""

import pytest
import torch
from torch import nn

from deltaw.adapters import LoRA, PiSSA, RecordError, inject
from deltaw.analysis.trajectory import Trajectory
from deltaw.trainers import Recorder

peft = pytest.importorskip("peft")


def made(start=False, dtype=torch.float32, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 24), nn.Linear(24, 2)).to(dtype)
    config = peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=start, **options)
    model = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    return model, model.base_model.model[0]


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"start": "pissa"}], ids=str)
@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_a_base_that_moves_is_refused(options, size, tmp_path):
    model, layer = made(**options)
    with Recorder(model, tmp_path / "run") as recorder:
        recorder.step(0)
        with torch.no_grad():
            layer.lora_B["default"].weight.mul_(size)
        recorder.step(1)
        layer.merge()
        layer.merged_adapters.clear()
        nn.init.zeros_(layer.lora_B["default"].weight)
        with pytest.raises(RecordError, match=r"'base_model\.model\.0' has moved .* \(ReLoRA\)"):
            recorder.step(2)
    assert Trajectory.open(tmp_path / "run").steps == [0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("start", [False, "pissa"])
def test_an_adapter_that_is_merged_for_a_while_is_recorded_right(start, dtype, tmp_path):
    if start == "pissa" and dtype == torch.bfloat16:
        pytest.skip("PEFT makes PiSSA from wider weights only")
    model, _ = made(start, dtype)
    state = {key: value.clone() for key, value in model.state_dict().items() if "lora" in key}
    with Recorder(model, tmp_path / "run") as recorder:
        model.merge_adapter()
        recorder.step(0)
        model.unmerge_adapter()
        recorder.step(1)
        model.merge_adapter()
        model.unmerge_adapter()
        recorder.step(2)
    run = Trajectory.open(tmp_path / "run")
    (module,) = run.modules
    for step in (0, 1, 2):
        tensors = run.state(module, step)
        for key in ("lora_A", "lora_B"):
            assert torch.equal(tensors[key].to(dtype), state[f"base_model.model.{module}.{key}.default.weight"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_merges_with_a_large_update_are_only_roundings(dtype, tmp_path):
    model, layer = made(dtype=dtype)
    with torch.no_grad():
        layer.lora_B["default"].weight.mul_(30)  # ‖ΔW‖ is a multiple of ‖W₀‖
    with Recorder(model, tmp_path / "run") as recorder:
        for step in range(6):
            recorder.step(step)
            model.merge_adapter()
            model.unmerge_adapter()
            with torch.no_grad():
                layer.lora_B["default"].weight.mul_(1.01)
    assert Trajectory.open(tmp_path / "run").steps == list(range(6))


@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=str)
def test_a_small_update_that_a_base_of_low_precision_takes_in_is_refused(options, tmp_path):
    """Of 1 % of ‖W₀‖, near the rounding of bfloat16: the direction tells it."""
    model, layer = made(dtype=torch.bfloat16, **options)
    with torch.no_grad():
        update = layer.get_delta_weight("default").norm() / layer.get_base_layer().weight.norm()
        layer.lora_B["default"].weight.mul_(0.01 / update)
    with Recorder(model, tmp_path / "run") as recorder:
        recorder.step(0)
        layer.merge()
        layer.merged_adapters.clear()
        nn.init.zeros_(layer.lora_B["default"].weight)
        with pytest.raises(RecordError, match="ReLoRA"):
            recorder.step(1)


def loaded(layer):
    layer.load_state_dict({**layer.state_dict(), "weight": layer.weight + 1e-3})


def given_to_an_optimizer(layer):
    layer.weight.requires_grad_(True)
    optimizer = torch.optim.SGD([layer.weight], lr=1e-3)
    layer(torch.ones(2, 32)).square().sum().backward()
    optimizer.step()
    layer.weight.requires_grad_(False)


def one_bit(layer):
    with torch.no_grad():
        layer.weight[3, 4] = torch.nextafter(layer.weight[3, 4], torch.tensor(9.0))


@pytest.mark.parametrize("move", [loaded, given_to_an_optimizer, one_bit], ids=lambda move: move.__name__)
@pytest.mark.parametrize("method", [LoRA(rank=2), PiSSA(rank=2)], ids=lambda method: method.name)
def test_a_base_that_moves_under_our_own_layer_is_refused(method, move, tmp_path):
    torch.manual_seed(0)
    model = inject(nn.Sequential(nn.Linear(32, 24), nn.Linear(24, 2)), method, targets=["0"])
    with Recorder(model, tmp_path / "run") as recorder:
        recorder.step(0)
        with torch.no_grad():
            model[0].lora_B.add_(1e-3)
        recorder.step(1)
        move(model[0])
        with pytest.raises(RecordError, match=r"frozen weight of '0' has moved"):
            recorder.step(2)
    assert Trajectory.open(tmp_path / "run").steps == [0, 1]
