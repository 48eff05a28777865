"""The count of optimizer steps that Dual LoRA's ramp and Delta-LoRA's start go by, however the training is set up."""

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
from torch import nn

from deltaw.adapters import DeltaLoRA, DualLoRA, adapted, effective_weight, inject
from deltaw.analysis.trajectory import Trajectory
from deltaw.trainers import Recorder

METHODS = {
    "dual-lora": DualLoRA(rank=2, warmup_steps=5, init_std=0.3),
    "delta-lora": DeltaLoRA(rank=2, start_step=2),
}


def made(kind="dual-lora"):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(a, b), nn.Tanh()) for a, b in ((6, 5), (5, 7))))
    return inject(model, METHODS[kind], targets=["*.0"])


def trained_ones(model):
    return [p for p in model.parameters() if p.requires_grad]


def adamw(model, **options):
    return torch.optim.AdamW(trained_ones(model), lr=1e-2, **options)


def steps(model):
    """The counts of the layers, which are one."""
    counts = {int(value) for name, value in model.state_dict().items() if name.endswith("steps")}
    assert len(counts) == 1
    return counts.pop()


def go(model, optimizer, times=1):
    """So many optimizer steps of two passes each."""
    generator = torch.Generator().manual_seed(steps(model))
    for _ in range(times):
        for _ in range(2):
            model(torch.randn(4, 6, generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


# --- one process ---


def test_a_step_counts_once_when_a_step_function_calls_its_parents():
    class Own(torch.optim.AdamW):
        def step(self, closure=None):
            return super().step(closure)

    model = made()
    adamw(made())  # from its first object on, torch's own step function tells of steps
    go(model, Own(trained_ones(model)), 3)
    assert steps(model) == 3


def test_a_step_counts_once_when_an_optimizer_steps_another():
    class Around(torch.optim.Optimizer):
        def __init__(self, inner):
            super().__init__(inner.param_groups, {})
            self.inner = inner

        def step(self, closure=None):
            return self.inner.step(closure)

    model = made()
    go(model, Around(adamw(model)), 3)
    assert steps(model) == 3
    with pytest.raises(ZeroDivisionError):
        Around(adamw(model)).step(lambda: 1 / 0)
    assert steps(model) == 3
    go(model, adamw(model), 1)
    assert steps(model) == 4


def test_two_optimizers_that_share_the_layers_parameters():
    model = made()
    names = ("lora_A", "lora_B"), ("lora_C", "lora_D")
    first, second = (
        torch.optim.SGD([layer.tensor(n) for layer in adapted(model).values() for n in group], 0.1) for group in names
    )
    for _ in range(3):
        model(torch.ones(4, 6)).sum().backward()
        first.step()
        second.step()
    assert steps(model) == 3


def test_a_frozen_factor_does_not_stop_the_count():
    model = made()
    for layer in adapted(model).values():
        layer.lora_A.requires_grad_(False)
    go(model, adamw(model), 2)
    assert steps(model) == 2


@pytest.mark.parametrize("fused", [True, False])
def test_what_the_scaler_skips_is_no_step(fused):
    model = made()
    optimizer, scaler = adamw(model, fused=fused), torch.amp.GradScaler("cpu", init_scale=2.0)
    for x in (1.0, float("inf"), 1.0):
        scaler.scale(model(torch.full((4, 6), x)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert steps(model) == 2


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_counts_for_itself(kind, copied):
    model = made(kind)
    optimizer = adamw(model)
    go(model, optimizer)
    other = copied(model)
    adamw(other).step()  # before any look at it
    go(other, adamw(other), 1)
    assert (steps(model), steps(other)) == (1, 2) if kind == "delta-lora" else (1, 3)


@pytest.mark.parametrize("kind", METHODS)
def test_what_is_saved_right_after_a_step_goes_on_from_there(kind):
    model = made(kind)
    optimizer = adamw(model)
    go(model, optimizer)
    other = made(kind)
    other.load_state_dict(model.state_dict())
    again = adamw(other)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, of_one in ((model, optimizer), (other, again)):
        go(one, of_one, 2)
    assert steps(other) == steps(model) > 1
    for key, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_once_an_optimizer_has_stepped_a_change_by_hand_is_no_step():
    model = made()
    optimizer = adamw(model)
    for _ in range(3):
        go(model, optimizer)
        with torch.no_grad():
            for parameter in trained_ones(model):
                parameter.clamp_(-1, 1)
    assert steps(model) == 3


@pytest.mark.filterwarnings("ignore")  # torch's own, in dynamo
@pytest.mark.parametrize("kind", METHODS)
def test_a_compiled_model_and_optimizer(kind):
    torch._dynamo.reset()
    model, plain = made(kind), made(kind)
    optimizer = adamw(model)
    optimizer.step = torch.compile(optimizer.step, backend="aot_eager")
    go(torch.compile(model, backend="aot_eager"), optimizer, 3)
    go(plain, adamw(plain), 3)
    assert steps(model) == steps(plain) > 1
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value)


def test_a_model_of_inference_tensors_counts_nothing():
    with torch.inference_mode():
        model = made()
        model(torch.ones(4, 6))
        model(torch.ones(4, 6))
    assert steps(model) == 0


# --- two processes ---

two = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")


def sharded(model, **options):
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not hasattr(fsdp, "fully_shard"):
        pytest.skip("this torch has no fully_shard")
    for block in model:
        fsdp.fully_shard(block, **options)
    return fsdp.fully_shard(model, **options)


def distributed(model, cut=None):
    """The layers' tensors as distributed ones, whole in every process unless cut, and in- and outputs plain."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, distribute_module

    mesh = init_device_mesh("cpu", (2,))
    for layer in adapted(model).values():
        distribute_module(
            layer,
            mesh,
            cut,
            lambda module, inputs, mesh: DTensor.from_local(inputs[0], mesh, [Replicate()]),
            lambda module, output, mesh: output.full_tensor(),
        )
    return model


def by_rows(name, module, mesh):
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    for key, parameter in list(module.named_parameters(recurse=False)):
        placement = Replicate() if parameter.ndim == 1 else Shard(0)
        cut_up = distribute_tensor(parameter.data, mesh, [placement])
        module.register_parameter(key, nn.Parameter(cut_up, parameter.requires_grad))


def whole_state(model):
    return {k: (v.full_tensor() if hasattr(v, "full_tensor") else v).clone() for k, v in model.state_dict().items()}


SETUPS = {
    "ddp": lambda model: nn.parallel.DistributedDataParallel(model),
    "fsdp2": sharded,
    "fsdp2 kept together": lambda model: sharded(model, reshard_after_forward=False),
    "tensor parallel, whole": distributed,
    "tensor parallel, cut": lambda model: distributed(model, by_rows),
}


@two
@pytest.mark.parametrize(
    ("kind", "setup"),
    # A sign cannot be taken of a product of which each process has a part.
    [(kind, setup) for kind in METHODS for setup in SETUPS if (kind, setup) != ("dual-lora", "tensor parallel, cut")],
)
def test_in_two_processes_as_in_one(kind, setup, tmp_path, in_two):
    """The same batches in both processes: the record is one process's."""

    def train(model, path, set_up=lambda model: model):
        inside, model = model, set_up(model)
        optimizer = adamw(inside, fused=True)
        with torch.no_grad():
            model(torch.ones(4, 6))
        generator, losses = torch.Generator().manual_seed(1), []
        with Recorder(model, path) as recorder:
            recorder.record(0)
            for step in range(1, 5):
                for _ in range(2):
                    losses.append(model(torch.randn(4, 6, generator=generator)).square().mean())
                    losses[-1].backward()
                optimizer.step()
                optimizer.zero_grad()
                recorder.record(step)
        return [loss.item() for loss in losses], whole_state(inside)

    def work(rank, path):
        losses, state = train(made(kind), path / f"rank{rank}", SETUPS[setup])
        return losses, {key: value.tolist() for key, value in state.items()}

    ours = in_two(work, tmp_path)
    losses, state = train(made(kind), tmp_path / "alone")
    record, alone = Trajectory.open(tmp_path / "rank0"), Trajectory.open(tmp_path / "alone")
    assert [int(record.state("0.0", s)["steps"]) for s in range(5)] == [0, 1, 2, 3, 4] if kind == "dual-lora" else True
    for found, whole in ours:
        assert found == pytest.approx(losses, rel=1e-5)
        for key, value in state.items():
            torch.testing.assert_close(torch.tensor(whole[key], dtype=value.dtype), value)
    for step in alone.steps:
        torch.testing.assert_close(record.update("1.0", step), alone.update("1.0", step))
        assert record.state("1.0", step)["steps"] == alone.state("1.0", step)["steps"]
    assert record.update("1.0", 4).norm() > 0


@two
@pytest.mark.parametrize("kind", METHODS)
def test_half_precision_under_fsdp2(kind, tmp_path, in_two):
    """The count and the parameters at a step are the optimizer's, not those rounded for the forward pass."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    def work(rank, path):
        model = sharded(made(kind), mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
        optimizer, anchors = adamw(model), []
        for step in range(1, 4):
            for _ in range(2):
                model(torch.ones(4, 6)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            assert steps(model) == (min(step, 2) if kind == "delta-lora" else step)
            if kind == "delta-lora" and step == 2:
                anchors = [model[0][0].lora_B.full_tensor(), model[0][0].anchor_B.clone()]
        assert all(torch.equal(anchors[0], anchor) for anchor in anchors)
        return True

    assert in_two(work, tmp_path) == (True, True)


@two
def test_a_sharded_state_goes_on_from_where_it_was_saved(tmp_path, in_two):
    """With the optimizer's: where it has none yet, loading makes a step at rate 0, which is none."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

    def work(rank, path):
        model, other = sharded(made()), sharded(made())
        optimizer, again = adamw(model), adamw(other)
        get_state_dict(model, optimizer)
        found = [steps(model)]
        go(model, optimizer, 2)
        whole = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        of_model, of_optimizer = get_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True))
        other(torch.ones(4, 6))
        set_state_dict(other, again, model_state_dict=of_model, optim_state_dict=of_optimizer, options=whole)
        for _ in range(2):
            other(torch.ones(4, 6))
            found.append(steps(other))
            go(other, again)
        return found

    assert in_two(work, tmp_path) == ([0, 2, 3], [0, 2, 3])


def test_layers_that_are_gone_are_told_nothing():
    from deltaw.adapters import clock

    before = len(clock._NOTIFIED)
    model = made()
    assert len(clock._NOTIFIED) == before + 2
    weight = effective_weight(adapted(model)["0.0"])
    del model
    assert len(clock._NOTIFIED) == before
    assert weight.shape == (5, 6)
