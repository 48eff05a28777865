"""Recording in two processes: one writes, and what it writes is, bit for bit, one process's record of those weights."""

import json

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils import parametrize

from deltaw.adapters import (
    AdaptedLayer,
    BoRA,
    DeltaLoRA,
    DualLoRA,
    LoRA,
    PiSSA,
    RecordError,
    WriteError,
    create,
    inject,
)
from deltaw.adapters.modules import linear_modules
from deltaw.analysis.records.run_folder import run_writer as recorder_module
from deltaw.analysis.trajectory import Trajectory
from deltaw.trainers import Recorder, every

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
fsdp = pytest.importorskip("torch.distributed.fsdp")
if not hasattr(fsdp, "fully_shard"):
    pytest.skip("this torch has no fully_shard", allow_module_level=True)
from torch.distributed.checkpoint.state_dict import (  # noqa: E402
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # noqa: E402
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module  # noqa: E402


class Product(nn.Module):
    """A LoRA of one's own."""

    def __init__(self):
        super().__init__()
        self.A, self.B = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.zeros(5, 2))

    def forward(self, weight):
        return weight + self.B @ self.A


def make(kind):
    """A model whose sides (5, 7) two processes do not share evenly."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 7), nn.Tanh())
    if kind == "parametrized":
        model[0].weight.requires_grad_(False)
        parametrize.register_parametrization(model[0], "weight", Product())
        return model
    if kind.startswith("peft"):
        import peft

        configs = {
            "peft dora": peft.LoraConfig(r=2, use_dora=True, target_modules=["0"]),
            "peft pissa": peft.LoraConfig(r=2, init_lora_weights="pissa", target_modules=["0"]),
            "peft loha": peft.LoHaConfig(r=2, target_modules=["0"]),
            "peft ia3": peft.IA3Config(target_modules=["0"], feedforward_modules=[]),
        }
        return peft.get_peft_model(model, configs[kind])
    methods = {
        "bora": BoRA(rank=2),
        "lora": LoRA(rank=2),
        "pissa": PiSSA(rank=2),
        "dual-lora": DualLoRA(rank=2, warmup_steps=5),
        "delta-lora": DeltaLoRA(rank=2, start_step=3),
    }
    return inject(model, methods.get(kind) or create(kind), targets=["0", "2"])


def shard(model, **options):
    """Every linear layer of its own, PEFT's with its adapter, and what is left over with the model."""
    for _, layer in list(linear_modules(model)):
        if not isinstance(layer, AdaptedLayer):
            fully_shard(layer, **options)
    return fully_shard(model, **options)


def whole_state(model):
    """The model's full state dict, in every process."""
    state = model.state_dict()
    return {name: (v.full_tensor() if hasattr(v, "full_tensor") else v).clone() for name, v in state.items()}


def train(model, recorder=None, seen=None, steps=4):
    """Train on another batch in every process; keep the full weights of the recorded steps in ``seen``."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    generator = torch.Generator().manual_seed(dist.get_rank())
    losses = []
    for step in range(1, steps + 1):
        loss = model(torch.randn(4, 6, generator=generator)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if recorder is not None:
            recorder.step(step, loss=loss.item())
            if seen is not None and step % 2 == 0:
                seen[step] = whole_state(model)
    return losses


def files(folder):
    """What a record says, but for its identity and its time."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    manifest = json.loads(found.pop("manifest.json"))
    return found, {key: value for key, value in manifest.items() if key not in ("run_id", "created")}


def record_alone(kind, seen, path):
    """One process's record of the same weights."""
    model = make(kind)
    with Recorder(model, path) as recorder:
        for step, state in seen.items():
            model.load_state_dict(state, assign=True)
            recorder.record(step)


OURS = ["ft", "lora", "bora", "pissa", "dual-lora", "delta-lora"]
KINDS = [*OURS, "parametrized", "peft dora", "peft pissa", "peft loha", "peft ia3"]


@pytest.mark.parametrize("kind", KINDS)
def test_fsdp2_is_recorded_as_in_one_process(kind, tmp_path, in_two):
    if kind.startswith("peft"):
        pytest.importorskip("peft")

    def work(rank, path):
        plain = train(shard(make(kind)))
        model, seen = shard(make(kind)), {0: whole_state(make(kind))}
        with Recorder(model, path / f"rank{rank}", when=every(2)) as recorder:
            recorder.record(0)
            losses = train(model, recorder, seen)
        if rank == 0:
            record_alone(kind, seen, path / "alone")
        return losses == plain, recorder.steps

    assert in_two(work, tmp_path) == ((True, [0, 2, 4]), (True, [0, 2, 4]))
    assert not (tmp_path / "rank1").exists()
    (ours, manifest), (alone, wanted) = files(tmp_path / "rank0"), files(tmp_path / "alone")
    assert manifest == wanted
    del ours["scalars.jsonl"]
    assert ours.keys() == alone.keys()
    for name, data in alone.items():
        assert ours[name] == data, name
    record = Trajectory.open(tmp_path / "rank0")
    assert record.verify() == 4
    assert record.update(record.modules[0], 4).norm() > 0


@pytest.mark.parametrize("full", [True, False])
def test_a_residual_under_fsdp2_saves_and_loads_as_w0(full, tmp_path, in_two):
    def work(rank, path):
        options = StateDictOptions(full_state_dict=full, broadcast_from_rank0=full)
        source, target, x = shard(make("pissa")), shard(make("pissa")), torch.ones(3, 6)
        train(source)
        state = get_model_state_dict(source, options=StateDictOptions(full_state_dict=full))
        set_model_state_dict(target, state, options=options)
        w0 = whole_state(target)["0.weight"]
        return torch.equal(source(x), target(x)), target[0].holds_residual, torch.equal(w0, plain_weight())

    def plain_weight():
        torch.manual_seed(0)
        return nn.Linear(6, 5).weight

    assert in_two(work, tmp_path) == ((True, True, True), (True, True, True))


def test_tensor_parallel_weights_are_recorded_as_in_one_process(tmp_path, in_two):
    def work(rank, path):
        mesh = init_device_mesh("cpu", (2,))
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6))
        alone = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6))
        model = parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
        torch.manual_seed(0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        seen = {}
        with Recorder(model, path / f"rank{rank}", live=True) as recorder:
            for step in range(3):
                optimizer.zero_grad()
                model(torch.randn(4, 6)).square().mean().backward()
                optimizer.step()
                recorder.step(step)
                seen[step] = whole_state(model)
        if rank == 0:
            with Recorder(alone, path / "alone") as single:
                for step, state in seen.items():
                    alone.load_state_dict(state, assign=True)
                    single.record(step)
        return recorder.last_changes.get("delta_d/consecutive/0/row", 0) > 0

    assert in_two(work, tmp_path) == (True, False)  # the live numbers are made where it is written
    assert not (tmp_path / "rank1").exists()
    ours, alone = files(tmp_path / "rank0")[0], files(tmp_path / "alone")[0]
    for name in alone.keys() - {"base.safetensors"}:  # the one alone began with other weights
        assert ours[name] == alone[name], name


def test_ddp_one_process_writes_and_nothing_changes(tmp_path, in_two):
    def work(rank, path):
        plain = train(nn.parallel.DistributedDataParallel(make("bora")))
        model = nn.parallel.DistributedDataParallel(make("bora"))
        seen = {}
        with Recorder(model, path / f"rank{rank}", when=every(2), background=2) as recorder:
            losses = train(model, recorder, seen)
        if rank == 0:
            record_alone(
                "bora", {s: {k[len("module.") :]: v for k, v in w.items()} for s, w in seen.items()}, path / "a"
            )
        return losses == plain, recorder.steps

    assert in_two(work, tmp_path) == ((True, [2, 4]), (True, []))
    assert not (tmp_path / "rank1").exists()
    ours, alone = files(tmp_path / "rank0")[0], files(tmp_path / "a")[0]
    assert all(ours[name] == alone[name] for name in alone)


def test_half_precision_that_is_kept_together_after_a_forward_is_not_what_is_recorded(tmp_path, in_two):
    def work(rank, path):
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
        model = shard(make("ft"), mp_policy=policy, reshard_after_forward=False)
        with torch.no_grad():
            model(torch.ones(1, 6))
        with Recorder(model, path / "run") as recorder:
            recorder.record(0)
            with torch.no_grad():
                model(torch.ones(1, 6))
            recorder.record(1)
        return True

    in_two(work, tmp_path)
    record, model = Trajectory.open(tmp_path / "run"), make("ft")
    for step in (None, 0, 1):
        assert torch.equal(record.weight("2", step), model[2].weight)


def test_an_error_of_the_one_that_writes_reaches_both(tmp_path, in_two):
    with Recorder(make("ft"), tmp_path / "taken"):
        pass

    def work(rank, path):
        model, said = shard(make("ft")), []
        try:
            with Recorder(model, path / "taken"):
                pass
        except RecordError as error:
            said.append(str(error))

        def fail(*_):
            raise WriteError("the disk is full")

        with Recorder(model, path / "run") as recorder:
            recorder.record(0)
        with Recorder(model, path / "run", resume=True, background=2 * rank + 2) as recorder:
            said.append(recorder.steps)
            original, recorder_module._write_tensors = recorder_module._write_tensors, fail
            recorder.record(1)
            try:
                for step in range(2, 5):
                    recorder.record(step)
            except (RecordError, WriteError) as error:
                said.append(str(error))
            recorder_module._write_tensors = original
        return said

    first, second = in_two(work, tmp_path)
    assert first == second
    assert "already holds a run" in first[0]
    assert first[1:] == [[0], "the disk is full"]
    assert Trajectory.open(tmp_path / "run").steps == [0]


def test_fsdp2_goes_on_behind_the_step_it_went_back_to(tmp_path, in_two):
    def work(rank, path):
        model, steps = shard(make("lora")), []
        for first in (0, 2):
            with Recorder(model, path / "run", resume=True) as recorder:
                for step in range(first, 4):
                    recorder.step(step, loss=float(first))
                steps.append(recorder.steps)
        return steps

    assert in_two(work, tmp_path) == ([[0, 1, 2, 3]] * 2,) * 2
    record = Trajectory.open(tmp_path / "run")
    assert record.scalars()["loss"].tolist() == [0, 0, 2, 2]
    assert record.verify() == 5
