"""transformers' Trainer with the recorder in two processes, under DDP and under FSDP2."""

import os

import pytest
import torch
import torch.distributed as dist
from torch import nn

from deltaw.adapters import BoRA, DualLoRA, inject
from deltaw.analysis.trajectory import Trajectory
from deltaw.trainers import every

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
if not hasattr(pytest.importorskip("torch.distributed.fsdp"), "fully_shard"):
    pytest.skip("this torch has no fully_shard", allow_module_level=True)

METHODS = {"bora": BoRA(rank=2), "dual-lora": DualLoRA(rank=2, warmup_steps=8), "ft": None}


class Block(nn.Module):
    """What FSDP2 shards on its own; its sides (5, 7) two processes do not share evenly."""

    def __init__(self):
        super().__init__()
        self.query, self.dropout, self.value = nn.Linear(7, 5), nn.Dropout(0.2), nn.Linear(5, 7)

    def forward(self, x):
        return x + self.value(self.dropout(self.query(x).tanh()))


class Model(nn.Module):
    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.block, self.head = Block(), nn.Linear(7, 2)
        if METHODS[kind] is not None:
            inject(self, METHODS[kind], targets=["*.query", "*.value"], trainable=["head"])

    def forward(self, x, labels):
        out = self.head(self.block(x))
        return {"loss": nn.functional.cross_entropy(out, labels), "logits": out}


def batches():
    generator = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(7, generator=generator), "labels": i % 2} for i in range(24)]


def on_the_cpu(monkeypatch):
    """Let Accelerate go its way of FSDP2 without a GPU; it would take DDP, and say nothing.

    Its ``AcceleratorState`` looks at the settings of FSDP for processes with GPUs and their like alone. All that comes
    after that decision is its own.
    """
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    original = AcceleratorState.__init__

    def init(self, *args, fsdp_plugin=None, **kwargs):
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.fsdp_plugin = fsdp_plugin
        if getattr(self, "fsdp_plugin", None) is not None:
            self.distributed_type = DistributedType.FSDP

    monkeypatch.setattr(AcceleratorState, "__init__", init)


def whole_state(model):
    state = model.state_dict()
    return {k: (v.full_tensor() if hasattr(v, "full_tensor") else v).clone() for k, v in state.items()}


class Seen(transformers.TrainerCallback):
    """Keeps the whole weights of every step."""

    def __init__(self):
        self.states = {}

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.states[state.global_step] = whole_state(getattr(model, "module", model))


def trainer_of(rank, path, kind, callbacks, **options):
    from accelerate.state import AcceleratorState

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    AcceleratorState._reset_state(reset_partial_state=True)
    arguments = transformers.TrainingArguments(
        output_dir=str(path / "out"), max_steps=6, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        logging_steps=2, learning_rate=1e-2, seed=3, report_to="none", disable_tqdm=True, use_cpu=True,
        dataloader_pin_memory=False, ddp_find_unused_parameters=False, **{"save_strategy": "no"} | options,
    )  # fmt: skip
    trainer = transformers.Trainer(Model(kind), arguments, train_dataset=batches(), callbacks=callbacks)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def losses_of(trainer):
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


SETUPS = {
    "ddp": {},
    "fsdp2": {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["Block"]}},
}


@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("kind", METHODS)
def test_the_trainer_trains_alike_and_one_process_writes(kind, setup, tmp_path, in_two, monkeypatch):
    from deltaw.trainers import RecorderCallback

    on_the_cpu(monkeypatch)

    def work(rank, path):
        plain = trainer_of(rank, path, kind, [], **SETUPS[setup])
        plain.train()
        seen = Seen()
        recording = RecorderCallback(path / f"rank{rank}", when=every(4), live=True)
        trainer = trainer_of(rank, path, kind, [seen, recording], **SETUPS[setup])
        trainer.train()
        inside, other = (t.accelerator.unwrap_model(t.model) for t in (trainer, plain))
        assert trainer.accelerator.is_fsdp2 == (setup == "fsdp2")
        spread = {hasattr(p, "full_tensor") for p in inside.parameters()}
        assert spread == {setup == "fsdp2"}, spread
        assert (type(trainer.model_wrapped).__name__ == "DistributedDataParallel") == (setup == "ddp")
        assert losses_of(trainer) == losses_of(plain)
        after, wanted = whole_state(inside), whole_state(other)
        assert all(torch.equal(after[key], wanted[key]) for key in wanted)
        live = [line["step"] for line in trainer.state.log_history if "delta_d/base/query/row" in line]
        return losses_of(trainer), live, {s: {k: v.tolist() for k, v in w.items()} for s, w in seen.states.items()}

    (losses, live, states), (others, nothing, same) = in_two(work, tmp_path)
    assert (losses, live) == (others, [0, 4, 6])
    assert nothing == []
    assert states == same
    assert not (tmp_path / "rank1").exists()
    run = Trajectory.open(tmp_path / "rank0")
    assert (run.steps, run.method) == ([0, 4, 6], kind)
    assert run.verify() == 4
    assert run.scalars().loss.dropna().tolist() == losses
    model = Model(kind)
    for step in (4, 6):
        model.load_state_dict({k: torch.tensor(v, dtype=model.state_dict()[k].dtype) for k, v in states[step].items()})
        for module in run.modules:
            layer = model.get_submodule(module)
            kept = run.state(module, step) if METHODS[kind] else {"weight": run.weight(module, step)}
            for key, value in kept.items():
                assert torch.equal(value, getattr(layer, key)), (step, module, key)
    if kind == "dual-lora":
        assert [int(run.state(run.modules[0], step)["steps"]) for step in run.steps] == run.steps
    assert run.update(run.modules[0], 6).norm() > 0


@pytest.mark.parametrize("kept", ["SHARDED_STATE_DICT", "FULL_STATE_DICT"])
def test_under_fsdp2_the_trainer_goes_on_from_its_checkpoint(kept, tmp_path, in_two, monkeypatch):
    from deltaw.trainers import RecorderCallback

    on_the_cpu(monkeypatch)

    def work(rank, path):
        options = {"fsdp": True, "fsdp_config": SETUPS["fsdp2"]["fsdp_config"] | {"state_dict_type": kept}}
        saving = {"save_strategy": "steps", "save_steps": 3} | options
        whole = trainer_of(rank, path, "dual-lora", [RecorderCallback(path / "run", background=2)], **saving)
        whole.train()
        again = trainer_of(rank, path, "dual-lora", [RecorderCallback(path / "run")], **options)
        again.train(resume_from_checkpoint=str(path / "out" / "checkpoint-3"))
        after, wanted = whole_state(again.model), whole_state(whole.model)
        return all(torch.equal(after[key], wanted[key]) for key in wanted)

    assert in_two(work, tmp_path) == (True, True)
    run = Trajectory.open(tmp_path / "run")
    assert run.steps == list(range(7))
    assert [int(run.state(run.modules[0], step)["steps"]) for step in run.steps] == run.steps
