"""FSDP1 in two processes: the record is, bit for bit, one process's record of those weights."""

import functools

import pytest
import torch
import torch.distributed as dist
from torch import nn

from deltaw.adapters import LoRA, inject
from deltaw.analysis.trajectory import Trajectory
from deltaw.trainers import Recorder, every

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
fsdp = pytest.importorskip("torch.distributed.fsdp")
Flattened = fsdp.FullyShardedDataParallel


class Block(nn.Module):
    """A unit of two layers, with sides (5, 7) that two processes do not share evenly."""

    def __init__(self):
        super().__init__()
        self.query, self.value = nn.Linear(7, 5), nn.Linear(5, 7)

    def forward(self, x):
        return x + self.value(self.query(x).tanh())


PEFT = {
    "peft lora": ("LoraConfig", {"r": 2, "init_lora_weights": False}),
    "peft dora": ("LoraConfig", {"r": 2, "use_dora": True}),
    "peft pissa": ("LoraConfig", {"r": 2, "init_lora_weights": "pissa"}),
    "peft loha": ("LoHaConfig", {"r": 2}),
    "peft ia3": ("IA3Config", {"feedforward_modules": []}),
    "peft vera": ("VeraConfig", {"r": 2, "projection_prng_key": 3}),
}
OURS = {"lora": LoRA(rank=2)}


def make(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 7), Block(), Block(), nn.Linear(7, 3))
    if kind in PEFT:
        import peft

        config, options = PEFT[kind]
        names = ["query"] if "vera" in kind else ["query", "value"]
        return peft.get_peft_model(model, getattr(peft, config)(target_modules=names, **options))
    return model if kind == "ft" else inject(model, OURS[kind], targets=["*.query", "*.value"], trainable=["3"])


def wrapped(kind, original=True, policy="blocks", **options):
    """Under FSDP1: the blocks, each linear layer or nothing as a unit, and what is left over."""
    units = {"blocks": {Block}, "layers": {nn.Linear}, "one": set()}[policy]
    model = make(kind)
    wrap = functools.partial(fsdp.wrap.transformer_auto_wrap_policy, transformer_layer_cls=units) if units else None
    device = torch.device("cpu")
    return Flattened(model, auto_wrap_policy=wrap, use_orig_params=original, device_id=device, **options)


def whole_state(model):
    with Flattened.summon_full_params(model, writeback=False):
        return {
            name.replace("_fsdp_wrapped_module.", ""): value.detach().clone()
            for name, value in [*model.named_parameters(), *model.named_buffers()]
        }


def train(model, recorder=None, seen=None, steps=4):
    """Train with gradients gathered over two batches; keep the weights of the recorded steps in ``seen``."""
    generator = torch.Generator().manual_seed(dist.get_rank())
    losses = []
    for step in range(1, steps + 1):
        for _ in range(2):
            loss = model(torch.randn(4, 7, generator=generator)).square().mean()
            loss.backward()
            losses.append(loss.item())
        if recorder is not None and step == 2:
            recorder.record(1)  # with gradients that wait
        with torch.no_grad():
            for parameter in model.parameters():  # by hand: an optimizer loads half of torch in each process
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
                    parameter.grad = None
        if recorder is not None:
            recorder.step(step)
            if step != 3:
                seen[step] = whole_state(model)
    return losses


def record_alone(kind, seen, path):
    """One process's record of the same weights."""
    model = make(kind)
    with Recorder(model, path) as recorder:
        for step, state in seen.items():
            model.load_state_dict(state, assign=True, strict=False)
            recorder.record(step)


def files(folder):
    """What a record says, but for its identity and its time."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.safetensors"))}


CASES = [
    ("ft", True, "blocks"),
    ("ft", False, "blocks"),
    ("ft", True, "layers"),
    ("ft", False, "layers"),
    ("ft", True, "one"),
    ("ft", False, "one"),
    *((kind, True, "blocks") for kind in [*OURS, *PEFT]),
]


@pytest.mark.parametrize(("kind", "original", "policy"), CASES)
def test_fsdp1_is_recorded_as_in_one_process(kind, original, policy, tmp_path, in_two):
    if kind in PEFT:
        pytest.importorskip("peft")

    def work(rank, path):
        plain = train(wrapped(kind, original, policy))
        model = wrapped(kind, original, policy)
        names = [name for name, _ in model.named_modules()]
        seen = {0: {k: v.detach().clone() for k, v in make(kind).state_dict().items()}}
        with Recorder(model, path / f"rank{rank}", when=every(2)) as recorder:
            recorder.record(0)
            losses = train(model, recorder, seen)
        assert [name for name, _ in model.named_modules()] == names
        if rank == 0:
            record_alone(kind, seen, path / "alone")
        return losses == plain, recorder.steps

    assert in_two(work, tmp_path) == ((True, [0, 1, 2, 4]), (True, [0, 1, 2, 4]))
    assert not (tmp_path / "rank1").exists()
    ours, alone = files(tmp_path / "rank0"), files(tmp_path / "alone")
    assert ours == alone
    run, single = Trajectory.open(tmp_path / "rank0"), Trajectory.open(tmp_path / "alone")
    assert (run.modules, run.method) == (single.modules, single.method)
    assert run.verify() == 5
    assert run.update(run.modules[0], 4).norm() > 0
