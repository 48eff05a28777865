"""The recorder in the trainers of others, and what reports for them; nothing changes, all is there."""

import contextlib
import csv
import json
import multiprocessing
import os
import sqlite3
import struct
import sys
import time
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from deltaw.adapters import BoRA, RecordError, WriteError, adapted, effective_weight, inject
from deltaw.analysis.records.run_folder import run_writer as recorder_module
from deltaw.analysis.trajectory import Trajectory
from deltaw.trainers import Recorder, every

NAMES = [f"delta_{m}/{pair}/{kind}/{axis}" for m in "md" for pair in ("base", "consecutive")
         for kind in ("query", "value") for axis in ("row", "column")]  # fmt: skip
SIZES = ("norm", "update", "stable_rank")


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
            disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
            **({"save_strategy": "no", "report_to": "none"} | options),
        )  # fmt: skip
        data = {"train_dataset": batches(), "eval_dataset": batches(8)}
        trainer = transformers.Trainer(model, arguments, **data, callbacks=list(callbacks))
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
    assert set(live[4]) == {*NAMES, *(f"{name}/{kind}" for name in SIZES for kind in ("query", "value"))}
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


def test_the_last_step_is_what_was_trained_and_not_the_best_checkpoint(trainer_of, tmp_path):
    """Training that stops early stops where no plan knew of; the Trainer then loads its best checkpoint."""
    import transformers

    from deltaw.trainers import RecorderCallback

    seen, reporter = {}, reports()

    class Stops(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            seen[state.global_step] = effective_weight(model.query)
            control.should_training_stop = state.global_step == 5

        def on_train_end(self, args, state, control, **kwargs):
            reporter.seen.append(("end", {}))

    callbacks = [reporter, Stops(), RecorderCallback(tmp_path / "run", when=every(10), live=True)]
    trainer = trainer_of(made(), callbacks, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2,
                         load_best_model_at_end=True, metric_for_best_model="loss", learning_rate=0.1)  # fmt: skip
    trainer.train()
    run = Trajectory.open(tmp_path / "run")
    assert run.steps == [0, 5]
    assert not torch.equal(seen[5], effective_weight(trainer.model.query))  # the best one
    assert torch.equal(run.weight("query", 5), seen[5])
    live = [step for step, numbers in reporter.seen if step == "end" or "delta_m/base/query/row" in numbers]
    assert live == [0, 5, "end"]  # while those that report are open


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
    assert (run.method, run.modules) == ("lora", ["query"])
    weight = effective_weight(model.base_model.model.query)
    torch.testing.assert_close(run.weight(run.modules[0], 6), weight, rtol=1e-6, atol=1e-7)
    assert run.spectra(steps=[6])["rank"].item() == 2


# --- TRL ---


def sft_trainer(path, model, callbacks=(), **options):
    """TRL's trainer for supervised fine-tuning, on a tokenizer of ten words."""
    import transformers
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from trl import SFTConfig, SFTTrainer

    words = ["<pad>", "<eos>", "<unk>", "a", "cat", "dog", "mat", "on", "ran", "sat", "the"]
    inside = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inside.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    arguments = SFTConfig(
        output_dir=str(path / "out"), max_steps=4, per_device_train_batch_size=2, logging_steps=2, learning_rate=1e-2,
        seed=3, report_to="none", disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False, save_strategy="no",
        bf16=False, gradient_checkpointing=False, max_length=16,
    )  # fmt: skip
    trainer = SFTTrainer(
        model,
        arguments,
        train_dataset=Dataset.from_dict({"text": ["the cat sat on a mat", "a dog ran", "the dog and a cat sat"] * 2}),
        processing_class=transformers.PreTrainedTokenizerFast(tokenizer_object=inside, **special),
        callbacks=list(callbacks),
        **options,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


@pytest.mark.filterwarnings("ignore")  # TRL's own, in its import and its configuration
@pytest.mark.parametrize("kind", ["bora", "peft"])
def test_trl_trains_alike_and_is_recorded(kind, tmp_path):
    pytest.importorskip("trl", reason="needs TRL")
    import peft
    from transformers import GPT2Config, GPT2LMHeadModel

    from deltaw.trainers import RecorderCallback

    def trained(*callbacks):
        torch.manual_seed(0)
        size = {"n_positions": 32, "n_embd": 8, "n_layer": 1, "n_head": 2}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=11, **size, bos_token_id=1, eos_token_id=1, pad_token_id=0))
        options = {}
        if kind == "peft":  # put in by the trainer
            options["peft_config"] = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
        else:
            inject(model, BoRA(rank=2), targets=["*.c_attn"])
        trainer = sft_trainer(tmp_path, model, callbacks, **options)
        trainer.train()
        return trainer

    plain, reporter = trained(), reports()
    trainer = trained(reporter, RecorderCallback(tmp_path / "run", when=every(2), live=True))
    assert losses_of(trainer) == losses_of(plain)
    assert same(trainer.model, plain.model)
    run = Trajectory.open(tmp_path / "run")
    assert (run.steps, run.method, len(run.modules)) == ([0, 2, 4], "bora" if kind == "bora" else "lora", 1)
    layer = trainer.model.get_submodule(run.modules[0])
    torch.testing.assert_close(run.weight(run.modules[0], 4), effective_weight(layer), rtol=1e-6, atol=1e-7)
    log = run.scalars()
    assert log.loss.dropna().tolist() == losses_of(plain)
    assert len(log.mean_token_accuracy.dropna()) == 2
    assert [step for step, numbers in reporter.seen if "delta_d/base/qkv/row" in numbers] == [0, 2, 4]


# --- Weights & Biases, trackio ---


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wandb = pytest.importorskip("wandb", reason="needs Weights & Biases")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR"):
        (tmp_path / "wandb").mkdir(exist_ok=True)
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / "wandb"))
    yield wandb
    wandb.teardown()


def kept_by_wandb(folder):
    """The lines of a run's history from its file: blocks of 32 KiB, as LevelDB's log has them."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.finish()
    wandb.teardown()  # only then is the file sure to be whole
    (path,) = folder.rglob("*.wandb")
    data, at, whole, lines = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        length, part = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if part in (1, 4):  # the whole of a record, or its last part
            record = Record.FromString(whole)
            whole = b""
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                lines.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return lines


def kept_by_trackio(path):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return [(step, json.loads(text)) for step, text in connection.execute("select step, metrics from metrics")]


def test_weights_and_biases_gets_the_live_numbers(wandb, trainer_of, tmp_path):
    from deltaw.trainers import RecorderCallback

    callbacks = [RecorderCallback(tmp_path / "run", when=every(4), live=True)]
    trainer = trainer_of(made(), callbacks, report_to="wandb")
    trainer.train()
    plain = trainer_of(made())
    plain.train()
    assert same(trainer.model, plain.model)
    live = [line for line in kept_by_wandb(tmp_path / "wandb") if "train/delta_d/base/query/row" in line]
    assert [line["train/global_step"] for line in live] == [0, 4, 6]
    wanted = [line for line in trainer.state.log_history if "delta_d/base/query/row" in line]
    for kept, line in zip(live[1:], wanted[1:], strict=True):
        assert [kept[f"train/{name}"] for name in NAMES] == [line[name] for name in NAMES]


def test_weights_and_biases_in_a_loop_of_ones_own(wandb, tmp_path):
    with wandb.init(project="deltaw") as run, Recorder(made(), tmp_path / "run", log=run.log) as recorder:
        for step in (0, 10, 20):
            run.log({"loss": 0.5}, step=step)
            changes = recorder.step(step)
    lines = kept_by_wandb(tmp_path / "wandb")
    assert [line["_step"] for line in lines if "delta_d/base/value/row" in line] == [0, 10, 20]
    assert changes.items() <= lines[-1].items()
    assert lines[-1]["loss"] == 0.5


@pytest.fixture
def trackio(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("trackio", reason="needs trackio", exc_type=ImportError)


@pytest.mark.filterwarnings("ignore")  # of trackio and what it is made of
def test_trackio_gets_the_live_numbers(trackio, trainer_of, tmp_path):
    from deltaw.trainers import RecorderCallback

    callbacks = [RecorderCallback(tmp_path / "run", when=every(4), live=True)]
    trainer = trainer_of(made(), callbacks, report_to="trackio", project="trainer", run_name="first")
    trainer.train()
    plain = trainer_of(made())
    plain.train()
    assert same(trainer.model, plain.model)
    lines = [numbers for _, numbers in kept_by_trackio(tmp_path / "trackio" / "trainer.db")]
    live = [numbers for numbers in lines if "train/delta_d/base/query/row" in numbers]
    assert [numbers["train/global_step"] for numbers in live] == [0, 4, 6]
    assert all(f"train/{name}" in live[-1] for name in NAMES)

    trackio.init(project="own")
    with Recorder(made(), tmp_path / "own", log=trackio.log) as recorder:
        for step in (0, 10, 20):
            changes = recorder.step(step)
    trackio.finish()
    lines = kept_by_trackio(tmp_path / "trackio" / "own.db")
    assert [step for step, _ in lines] == [0, 10, 20]
    assert lines[-1][1] == changes


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


def test_the_loggers_of_lightning_in_a_loop_of_ones_own(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("lightning")
        from lightning.fabric import Fabric
        from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path, "logger")
    fabric = Fabric(accelerator="cpu", devices=1, loggers=[CSVLogger(tmp_path, "fabric")])
    for name, log in (("logger", logger.log_metrics), ("fabric", fabric.log_dict)):
        with Recorder(made(), tmp_path / f"run {name}", log=log) as recorder:
            recorder.step(10)
        for used in (logger, *fabric.loggers):
            used.save()
        (table,) = (tmp_path / name).rglob("metrics.csv")
        lines = list(csv.DictReader(table.read_text().splitlines()))
        assert [line["step"] for line in lines] == ["10"]
        assert "delta_d/base/query/row" in lines[0]


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


def test_the_trackers_of_accelerate(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    from accelerate.state import AcceleratorState
    from accelerate.tracking import GeneralTracker

    class Tracker(GeneralTracker):
        name, requires_logging_directory, tracker = "mine", False, None

        def store_init_configuration(self, values):
            pass

        def log(self, values, step=None, **kwargs):
            seen[step] = values

    AcceleratorState._reset_state(reset_partial_state=True)  # what another test has left
    seen = {}
    accelerator = accelerate.Accelerator(cpu=True, log_with=Tracker())
    accelerator.init_trackers("deltaw")
    with Recorder(made(), tmp_path / "run", log=accelerator.log) as recorder:
        for step in (0, 10):
            recorder.step(step)
    assert list(seen) == [0, 10]
    assert seen[10] == recorder.last_changes
