"""The recorder in the trainers of others: transformers', Lightning, Accelerate; nothing changes, all is there."""

import json
import multiprocessing
import os
import sys
import time
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from deltaw.adapters import BoRA, RecordError, WriteError, adapted, effective_weight, inject
from deltaw.analysis.trajectory import Trajectory
from deltaw.trainers import Recorder, every
from deltaw.trainers import recorder as recorder_module

NAMES = [f"delta_{m}/{pair}/{kind}/{axis}" for m in "md" for pair in ("base", "consecutive")
         for kind in ("query", "value") for axis in ("row", "column")]  # fmt: skip


class Model(nn.Module):
    """Two layers, in the shape that every trainer wants."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.query, self.dropout, self.value = nn.Linear(6, 5), nn.Dropout(0.2), nn.Linear(5, 2)

    def forward(self, x, labels=None):
        out = self.value(self.dropout(self.query(x).tanh()))
        return {"loss": nn.functional.cross_entropy(out, labels), "logits": out} if labels is not None else out


def batches(count=16):
    generator = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(6, generator=generator), "labels": i % 2} for i in range(count)]


def made():
    return inject(Model(), BoRA(rank=2), targets=["query", "value"])


def same(model, other):
    return all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))


# --- transformers ---


@pytest.fixture
def trainer_of(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    def make(model, callbacks=(), **options):
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / "out"), max_steps=6, per_device_train_batch_size=4, logging_steps=4, seed=3,
            report_to="none", disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
            **({"save_strategy": "no"} | options),
        )  # fmt: skip
        trainer = transformers.Trainer(model, arguments, train_dataset=batches(), callbacks=list(callbacks))
        trainer.remove_callback(transformers.PrinterCallback)
        return trainer

    return make


def losses_of(trainer):
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def reports(name="Reporter"):
    from transformers import TrainerCallback

    def on_log(self, args, state, control, logs=None, model=None, **kwargs):
        assert model is not None
        self.seen.append((state.global_step, dict(logs)))

    return type(name, (TrainerCallback,), {"on_log": on_log, "seen": []})()


@pytest.mark.parametrize("options", [{}, {"background": 2, "live": True}], ids=["plain", "background, live"])
def test_the_trainer_trains_alike_and_reports_the_live_numbers(options, trainer_of, tmp_path):
    from deltaw.trainers import RecorderCallback

    plain = trainer_of(made())
    plain.train()
    model, reporter = made(), reports()
    trainer = trainer_of(model, [reporter, RecorderCallback(tmp_path / "run", when=every(4), **options)])
    trainer.train()
    assert losses_of(trainer) == losses_of(plain)
    assert same(model, plain.model)

    run = Trajectory.open(tmp_path / "run")
    assert run.steps == [0, 4, 6]
    assert torch.equal(run.weight("query", 6), effective_weight(model.query))
    log = run.scalars()
    assert log.loss.dropna().tolist() == losses_of(plain)
    assert not [name for name in log if name.startswith("delta_")]

    live = {step: numbers for step, numbers in reporter.seen if "delta_m/base/query/row" in numbers}
    history = {line["step"]: line for line in trainer.state.log_history if "delta_m/base/query/row" in line}
    if not options:
        assert not live
        assert not history
        return
    assert live.keys() == history.keys() == {0, 4, 6}
    assert set(live[4]) == set(NAMES)
    assert live[4].items() <= history[4].items()
    table = run.changes()
    chosen = table[(table.step_to == 6) & (table.kind == "value") & (table.axis == "column")]
    assert live[6]["delta_d/consecutive/value/column"] == pytest.approx(chosen.delta_d.item(), rel=1e-9)


def test_tensorboard_gets_the_live_numbers_at_their_step(trainer_of, tmp_path, monkeypatch):
    """With the Trainer's own callback for TensorBoard, and a writer that keeps what it is given."""
    from transformers.integrations import TensorBoardCallback, integration_utils

    from deltaw.trainers import RecorderCallback

    given = {}

    class Writer:
        def __getattr__(self, name):
            return lambda *args, **kwargs: None

        def add_scalar(self, name, value, step):
            given[name, step] = value

    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    trainer = trainer_of(made(), [TensorBoardCallback(Writer()), RecorderCallback(tmp_path / "run", live=True)])
    trainer.train()
    assert {("train/delta_d/consecutive/query/row", step) for step in range(1, 7)} <= given.keys()
    assert ("train/loss", 4) in given


def test_the_trainer_goes_on_and_the_plan_knows_its_steps(trainer_of, tmp_path):
    from deltaw.trainers import RecorderCallback

    trainer = trainer_of(made(), [RecorderCallback(tmp_path / "run")], save_strategy="steps", save_steps=3)
    trainer.train()
    again = trainer_of(made(), [RecorderCallback(tmp_path / "run")])
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    assert Trajectory.open(tmp_path / "run").steps == list(range(7))
    with pytest.raises(RecordError, match="7 checkpoints planned"):
        trainer_of(made(), [RecorderCallback(tmp_path / "small", max_bytes=1000)]).train()
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_before_the_trainer_saves_all_is_on_the_disk(strategy, trainer_of, tmp_path, monkeypatch):
    from transformers import TrainerCallback

    from deltaw.trainers import RecorderCallback

    original, saves = recorder_module._write_tensors, []

    def write(path, tensors):
        time.sleep(0.05)
        return original(path, tensors)

    class Saves(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            saves.append((state.global_step, Trajectory.open(tmp_path / "run").steps[-1]))

    monkeypatch.setattr(recorder_module, "_write_tensors", write)
    callbacks = [RecorderCallback(tmp_path / "run", background=4), Saves()]
    trainer_of(made(), callbacks, save_strategy=strategy, save_steps=3).train()
    assert saves == ([(3, 3), (6, 6)] if strategy == "steps" else [(4, 4), (6, 6)])


def test_an_error_in_the_background_stops_the_trainer(trainer_of, tmp_path, monkeypatch):
    from deltaw.trainers import RecorderCallback

    original = recorder_module._write_tensors

    def write(path, tensors):
        if path.name.startswith("0000000002"):
            raise WriteError(f"{path}: cannot be written")
        return original(path, tensors)

    monkeypatch.setattr(recorder_module, "_write_tensors", write)
    callback = RecorderCallback(tmp_path / "run", background=1)
    trainer = trainer_of(made(), [callback])
    with pytest.raises(WriteError, match="0000000002"):
        trainer.train()
    assert trainer.state.global_step <= 4
    callback.close()
    assert Trajectory.open(tmp_path / "run").steps == [0, 1]


def test_peft_in_the_trainer(trainer_of, tmp_path):
    peft = pytest.importorskip("peft")
    from deltaw.trainers import RecorderCallback

    model = peft.get_peft_model(Model(), peft.LoraConfig(r=2, target_modules=["query"]))
    trainer_of(model, [RecorderCallback(tmp_path / "run")]).train()
    run = Trajectory.open(tmp_path / "run")
    assert (run.method, run.modules) == ("lora", ["base_model.model.query"])
    weight = effective_weight(model.base_model.model.query)
    torch.testing.assert_close(run.weight(run.modules[0], 6), weight, rtol=1e-6, atol=1e-7)
    assert run.spectra(steps=[6])["rank"].item() == 2


# --- Lightning ---


@pytest.fixture
def fit(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pl = pytest.importorskip("lightning.pytorch")

    class Module(pl.LightningModule):
        def __init__(self, model):
            super().__init__()
            self.model, self.seen = model, []

        def training_step(self, batch, index):
            loss = self.model(**batch)["loss"]
            self.seen.append(loss.item())
            self.log("train/own", loss)
            return loss

        def validation_step(self, batch, index):
            self.log("score", self.model(**batch)["loss"])

        def configure_optimizers(self):
            return torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-2)

    def run(model, callbacks=(), logger=False, ckpt_path=None, **options):
        module = Module(model)
        loader = torch.utils.data.DataLoader(batches(), batch_size=4)
        torch.manual_seed(5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of few workers and a small number of batches
            trainer = pl.Trainer(
                accelerator="cpu", max_epochs=2, logger=logger, enable_checkpointing=False, log_every_n_steps=2,
                enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
                callbacks=list(callbacks), **options,
            )  # fmt: skip
            trainer.fit(module, loader, loader, ckpt_path=ckpt_path)
        return trainer, module

    return run


def test_lightning_trains_alike_and_its_loggers_get_the_live_numbers(fit, tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    from deltaw.trainers import LightningRecorder

    _, plain = fit(made())
    callback = LightningRecorder(tmp_path / "run", when=every(3), live=True, background=2)
    trainer, module = fit(made(), [callback], CSVLogger(tmp_path, "csv"))
    assert module.seen == plain.seen
    assert same(module, plain)
    run = Trajectory.open(tmp_path / "run")
    assert (run.steps, run.modules) == ([0, 3, 6, 8], ["model.query", "model.value"])
    assert torch.equal(run.weight("model.value", 8), effective_weight(module.model.value))
    log = run.scalars()
    assert log.loss.dropna().tolist() == [module.seen[i] for i in (1, 3, 5, 7)]
    assert log.learning_rate.dropna().unique().tolist() == [1e-2]
    assert len(log.score.dropna()) == 2
    assert not [name for name in log if name.startswith("delta_")]
    assert set(NAMES) <= trainer.callback_metrics.keys()
    text = (tmp_path / "csv" / "version_0" / "metrics.csv").read_text()
    assert "delta_d/consecutive/query/row" in text


def test_lightning_counts_optimizer_steps_and_goes_on(fit, tmp_path):
    from deltaw.trainers import LightningRecorder

    trainer, _ = fit(made(), [LightningRecorder(tmp_path / "run")], accumulate_grad_batches=2)
    assert Trajectory.open(tmp_path / "run").steps == [0, 1, 2, 3, 4]
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    fit(made(), [LightningRecorder(tmp_path / "run")], ckpt_path=tmp_path / "last.ckpt", min_epochs=3, max_steps=6,
        accumulate_grad_batches=2)  # fmt: skip
    assert Trajectory.open(tmp_path / "run").steps == [0, 1, 2, 3, 4]


def test_lightning_releases_the_folder_after_an_error(fit, tmp_path):
    from deltaw.trainers import LightningRecorder

    class Broken(Model):
        def forward(self, x, labels=None):
            if len(Trajectory.open(tmp_path / "run").steps) > 1:
                raise ZeroDivisionError
            return super().forward(x, labels)

    with pytest.raises(ZeroDivisionError):
        fit(Broken(), [LightningRecorder(tmp_path / "run")], num_sanity_val_steps=0)
    with (
        Recorder(Broken(), tmp_path / "run", resume=True, method="ft")
        if False
        else Recorder(nn.ModuleDict({"model": Broken()}), tmp_path / "run", resume=True) as recorder
    ):
        assert recorder.steps == [0, 1]


# --- Accelerate ---


def accelerated(rank, path, answers):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    torch.set_num_threads(1)
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from torch.distributed import init_process_group

    AcceleratorState._reset_state(reset_partial_state=True)  # what another test has left
    init_process_group("gloo", init_method=f"file://{path}/store", rank=rank, world_size=2)
    accelerator = Accelerator(cpu=True)
    model = made()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    loader = torch.utils.data.DataLoader(batches(), batch_size=2)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    with Recorder(model, path / f"rank{rank}", live=True, log=accelerator.log) as recorder:
        for step, batch in enumerate(loader, 1):
            accelerator.backward(model(**batch)["loss"])
            optimizer.step()
            optimizer.zero_grad()
            recorder.step(step)
    inside = accelerator.unwrap_model(model)
    answers.put((rank, type(model).__name__, recorder.steps, effective_weight(adapted(inside)["query"]).tolist()))
    torch.distributed.destroy_process_group()


def test_accelerate_in_two_processes(tmp_path):
    pytest.importorskip("accelerate")
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = [context.Process(target=accelerated, args=(rank, tmp_path, answers)) for rank in range(2)]
    for process in processes:
        process.start()
    found = sorted(answers.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(30)
    assert [(rank, kind, steps) for rank, kind, steps, _ in found] == [
        (0, "DistributedDataParallel", [1, 2, 3, 4]),
        (1, "DistributedDataParallel", []),
    ]
    assert not (tmp_path / "rank1").exists()
    run = Trajectory.open(tmp_path / "rank0")
    assert run.modules == ["query", "value"]
    assert run.weight("query", 4).tolist() == found[0][3] == found[1][3]
    assert json.loads((tmp_path / "rank0" / "manifest.json").read_text())["method"] == "bora"
