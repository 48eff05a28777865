"""DeepSpeed's ZeRO stage 3 in two processes, by its documented interface: ``ds_id``, and ``zero.GatheredParameters``.

https://deepspeed.readthedocs.io/en/latest/zero3.html: between two steps a parameter is empty, each process has a piece
in ``ds_tensor``, and ``GatheredParameters(params)`` puts them together while its block runs. DeepSpeed is not needed.
"""

import contextlib
import sys
import types

import pytest
import torch
import torch.distributed as dist
from torch import nn

from deltaw.adapters import LoRA, inject
from deltaw.analysis.trajectory import Trajectory
from deltaw.trainers import Recorder

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
open_now, most = [], [0]


@contextlib.contextmanager
def gathered(parameters, modifier_rank=None, fwd_module=None, enabled=True):
    """As DeepSpeed's with no ``modifier_rank``: what is done to the parameters in the block is dropped."""
    parameters = list(parameters)
    for parameter in parameters:
        pieces = [torch.empty_like(parameter.ds_tensor) for _ in range(2)]
        dist.all_gather(pieces, parameter.ds_tensor)
        parameter.data = torch.cat(pieces)[: parameter.ds_numel].view(parameter.ds_shape).clone()
    open_now.append(parameters)
    most[0] = max(most[0], sum(p.numel() for inside in open_now for p in inside))
    try:
        yield
    finally:
        open_now.remove(parameters)
        for parameter in parameters:
            parameter.data.fill_(torch.nan)  # a view that was kept would be seen
            parameter.data = torch.empty(0)


def partitioned(model):
    """Leave each process a piece of every parameter, the last one padded."""
    for number, parameter in enumerate(model.parameters()):
        parameter.ds_id, parameter.ds_shape, parameter.ds_numel = number, parameter.shape, parameter.numel()
        flat = nn.functional.pad(parameter.detach().flatten(), (0, parameter.numel() % 2))
        parameter.ds_tensor = flat.chunk(2)[dist.get_rank()].clone()
        parameter.data = torch.empty(0)
    return model


def moved(model, step):
    """What an optimizer does to the pieces."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.ds_tensor += 0.01 * step


def make(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3), nn.Linear(3, 9))
    if kind.startswith("peft"):
        import peft

        configs = {
            "peft lora": peft.LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights=False),
            "peft pissa": peft.LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights="pissa"),
            "peft loha": peft.LoHaConfig(r=2, target_modules=["0", "2"]),
        }
        return peft.get_peft_model(model, configs[kind])
    return model if kind == "ft" else inject(model, LoRA(rank=2), targets=["0", "2"])


@pytest.mark.parametrize("kind", ["ft", "lora", "peft lora", "peft pissa", "peft loha"])
def test_zero3_is_recorded_as_in_one_process(kind, tmp_path, in_two, monkeypatch):
    if kind.startswith("peft"):
        pytest.importorskip("peft")
    deepspeed = types.ModuleType("deepspeed")
    deepspeed.zero = types.SimpleNamespace(GatheredParameters=gathered)
    monkeypatch.setitem(sys.modules, "deepspeed", deepspeed)

    def work(rank, path):
        model = partitioned(make(kind))
        with Recorder(model, path / f"rank{rank}") as recorder:
            for step in range(3):
                moved(model, step)
                recorder.record(step)
        empty = all(parameter.numel() == 0 for parameter in model.parameters())
        if rank == 0:
            alone = make(kind)
            with Recorder(alone, path / "alone") as recorder, torch.no_grad():
                for step in range(3):
                    for parameter in alone.parameters():
                        if parameter.requires_grad:
                            parameter += 0.01 * step
                    recorder.record(step)
        return empty and open_now == [], most[0]

    (first, largest), (second, _) = in_two(work, tmp_path)
    assert (first, second) == (True, True)
    model = make(kind)
    assert largest < sum(p.numel() for p in model.parameters())  # a layer at a time
    assert not (tmp_path / "rank1").exists()
    files = [sorted((tmp_path / who).rglob("*.safetensors")) for who in ("rank0", "alone")]
    assert [p.read_bytes() for p in files[0]] == [p.read_bytes() for p in files[1]]
    run = Trajectory.open(tmp_path / "rank0")
    assert run.verify() == 4
    assert run.update(run.modules[0], 2).norm() > 0
