"""A recorded fine-tuning run with any method: what every experiment has in common."""

import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

from deltaw.adapters.errors import OptionError, RecordError
from deltaw.adapters.injection import inject, linear_shape, repeated
from deltaw.adapters.method import Method
from deltaw.adapters.methods.lora_plus import parameter_groups
from deltaw.adapters.quantization import load_bitsandbytes, quantize
from deltaw.analysis.records.format import BASE, CHECKPOINTS, MANIFEST, read_manifest
from deltaw.analysis.records.lock import LOCK
from deltaw.analysis.records.results import RESULT, read_result, write_result
from deltaw.trainers.callback import RecorderCallback
from deltaw.trainers.memory import peak_megabytes, reset_peak
from deltaw.trainers.schedules import Schedule
from deltaw.trainers.settings import Settings

R = TypeVar("R")
TRAINING = "training"


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a run trains, on what, and how it is scored.

    Arguments:
        experiment, corpus: Their names in the record.
        model: The plain model.
        targets: The names of the modules that the method goes on.
        heads: The names of the parts that are trained with any method, and are not counted as the method's.
        train: The training examples; their order is the Trainer's, or that of ``batches``.
        batches: What yields the keys of a batch after the other, over and over, with a length and ``set_epoch``.
        batch_size: Examples in a batch.
        collator: Makes a batch of examples.
        context: Yields this many batches for a method that starts from data.
        evaluation: The Trainer's arguments for evaluating: eval_dataset, compute_metrics.
        score: Instead of these, a function from the model to its scores by name.
        eval_every: Epochs between two evaluations; there is one at the end in any case.
        shown: The score beside the progress bar.
        when: The recorded steps from the number of all steps.
        log_every: Steps between two entries of the loss.
    """

    experiment: str
    corpus: str
    model: nn.Module
    targets: list[str]
    heads: list[str]
    train: Any
    batches: Any = None
    batch_size: int
    collator: Callable[[list[Any]], Any]
    context: Callable[[int], Iterable[dict[str, Any]]]
    evaluation: dict[str, Any] = field(default_factory=dict)
    score: Callable[[nn.Module], dict[str, float]] | None = None
    eval_every: int = 1
    shown: str
    when: Callable[[int], Schedule]
    log_every: int


@dataclass(frozen=True)
class Trained:
    """What a run has come to.

    Arguments:
        trainable: Trainable parameters, of the method alone, without the heads (with them where all weights train).
        share: Their share of all parameters of the base model.
        log: What was logged, entry by entry; scores are named ``eval_…``.
        seconds_per_epoch: Median time of an epoch of training, without evaluation.
        peak_megabytes: Peak memory of the process (or of the GPU) during the run.
        device: Where it was trained.
    """

    trainable: int
    share: float
    log: list[dict[str, Any]]
    seconds_per_epoch: float
    peak_megabytes: float
    device: str


def fine_tune(settings: Settings, task: Task, out: Path, *, progress: bool) -> Trained:
    """Fine-tune and record; an interrupted run goes on. ``finish`` is to follow.

    Arguments:
        settings: With them the task was made.
        task: Its model is changed.
        out: The run folder.
        progress: Show a progress bar.

    Raises:
        OptionError, TargetError: As ``inject``.
        RecordError: As ``Recorder``.
    """
    model, method = task.model, settings.make_method()
    total = sum(p.numel() for p in model.parameters())
    if settings.base == "nf4":
        quantize(model.to("cuda" if torch.cuda.is_available() else "cpu"), task.targets)  # where the Trainer has it
    context = _context(task, settings.context_batches) if method.needs_context else None
    inject(model, method, task.targets, trainable=task.heads, seed=settings.seed, context=context)
    trainable = _trainable_parameters(model, method, task.heads)

    steps_per_epoch = len(task.batches) if task.batches is not None else math.ceil(len(task.train) / task.batch_size)
    steps = settings.epochs * steps_per_epoch
    watch = _Watch(settings, task, steps, progress, out.name)
    recorder = RecorderCallback(
        out,
        settings.record_modules or task.targets,
        task.when(steps),
        method=method.name,
        info={"experiment": task.experiment, "settings": settings.plain(), "corpus": task.corpus},
        resume=True,  # the settings are the same, and W₀ is compared
    )
    arguments = TrainingArguments(
        output_dir=str(out / TRAINING),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=task.batch_size,
        per_device_eval_batch_size=4 * task.batch_size,
        learning_rate=settings.rate(),
        lr_scheduler_type="linear",
        warmup_steps=math.ceil(settings.warmup_ratio * steps),
        weight_decay=settings.weight_decay,
        eval_strategy="no",  # the watch asks for it, at the end of an epoch
        logging_strategy="steps",
        logging_steps=task.log_every,
        save_strategy="no",  # the watch asks for it as well
        save_total_limit=1,
        seed=settings.seed,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    reset_peak()
    with quiet():
        trainer = _Trainer(
            model=model,
            args=arguments,
            train_dataset=task.train,
            data_collator=task.collator,
            callbacks=[recorder, watch],
            **task.evaluation,
        )
        trainer.make_optimizer = _optimizer_of(method, model, task.targets, arguments)
        trainer.batches, trainer.score = task.batches, task.score
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        try:
            trainer.train(resume_from_checkpoint=_last_state(out / TRAINING))
        finally:
            recorder.close()
            watch.close()
    seconds = float(np.median(watch.seconds)) if watch.seconds else math.nan
    return Trained(
        trainable, trainable / total, trainer.state.log_history, seconds, peak_megabytes(), str(arguments.device)
    )


def finish(settings: Settings, out: Path, result: Any) -> None:
    """Keep the result in the run folder, and drop the states to go on from."""
    write_result(out, settings.plain(), asdict(result))
    shutil.rmtree(out / TRAINING, ignore_errors=True)


def finished(settings: Settings, out: Path, kind: Callable[..., R]) -> R | None:
    """Return the result of a finished run with these settings; None where there is work to do.

    Arguments:
        kind: The result's class.

    Raises:
        RecordError: The folder holds something else.
    """
    wanted = settings.plain()
    kept = read_result(out)
    if kept is not None:
        values = {"rank": kept.options.get("rank")} | kept.values
        if values.get("seconds_per_epoch", 0.0) is None:
            values["seconds_per_epoch"] = math.nan  # every epoch was trained before the run went on
        try:
            result = kind(**values)
        except TypeError as error:
            raise RecordError(f"{out / RESULT}: is damaged ({error})") from None
        _same_settings(out, kept.settings, wanted)
        return result
    if (out / MANIFEST).is_file():
        _same_settings(out, read_manifest(out).info.get("settings", {}), wanted)
    elif out.exists():
        foreign = sorted(path.name for path in out.iterdir() if path.name not in (TRAINING, BASE, CHECKPOINTS, LOCK))
        if foreign:
            raise RecordError(f"{out}: holds {foreign[0]!r} and is no run; choose another folder, or a new one")
    return None


def check_library(method: Method, settings: Settings) -> None:
    """Raise a DataError where a library is missing, an OptionError where the method cannot train such a base."""
    method.check_available()
    if settings.base == "nf4":
        load_bitsandbytes()
        if not method.injects:
            raise OptionError(f"{method.name} trains the matrices themselves, which a base in 4 bits cannot be")


def check_shapes(methods: Iterable[Method], model: nn.Module, targets: Sequence[str]) -> None:
    """Raise an OptionError where a method does not fit a target."""
    modules = dict(model.named_modules())
    for name in targets:
        for method in dict.fromkeys(methods):
            try:
                method.check_shape(*linear_shape(modules[name]), name)
            except OptionError as error:
                raise OptionError(f"{method.name}: {error}") from None


class _Trainer(Trainer):
    """A Trainer for any method: with the method's optimizer where it has one, and for layers that share tensors.

    The learning-rate schedule scales every group of the optimizer.
    """

    make_optimizer: Callable[[], torch.optim.Optimizer | None] | None = None
    batches: Any = None
    score: Callable[[nn.Module], dict[str, float]] | None = None

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        if self.optimizer is None and self.make_optimizer is not None:
            self.optimizer = self.make_optimizer()
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        return optimizer

    def get_train_dataloader(self) -> DataLoader[Any]:
        if self.batches is None:
            loader: DataLoader[Any] = super().get_train_dataloader()
        else:
            train: Any = self.train_dataset
            pinned = self.args.dataloader_pin_memory
            loader = self.accelerator.prepare(
                DataLoader(train, batch_sampler=self.batches, collate_fn=self.data_collator, pin_memory=pinned)
            )
        return loader

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        if self.score is None:
            found: dict[str, float] = super().evaluate(*args, **kwargs)
            return found
        model: Any = self.model
        found = {f"eval_{name}": value for name, value in self.score(model).items()}
        self.log(found)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        # transformers refuses to write a tensor under two names; once is enough, as the layers still share it when
        # the state is loaded again.
        whole = {} if self.model is None else self.model.state_dict()
        same = repeated(whole)
        if same and state_dict is None:
            state_dict = {name: value for name, value in whole.items() if name not in same}
        super()._save(output_dir, state_dict)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        left_out = set(repeated({} if self.model is None else self.model.state_dict()))
        if set(load_result.missing_keys) - left_out or load_result.unexpected_keys:
            raise RecordError(f"{self.args.output_dir}: holds the state of another model; remove it to begin again")


def _optimizer_of(
    method: Method, model: nn.Module, targets: Sequence[str], arguments: TrainingArguments
) -> Callable[[], torch.optim.Optimizer | None]:
    """Return what makes the method's own optimizer, once the model is placed; ``None`` where the Trainer's will do."""
    if method.rate_factors():
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
        return lambda: kind(parameter_groups(model, arguments.learning_rate, arguments.weight_decay), **options)
    return lambda: method.optimizer(
        model,
        targets,
        arguments.learning_rate,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        eps=arguments.adam_epsilon,
        weight_decay=arguments.weight_decay,
    )


class _Watch(TrainerCallback):
    """Times the epochs, has them evaluated and their state saved when it is time, and shows one progress bar."""

    def __init__(self, settings: Settings, task: Task, steps: int, progress: bool, label: str) -> None:
        self.seconds: list[float] = []
        self._start = 0.0
        self._settings, self._task, self._steps = settings, task, steps
        self._progress, self._label = progress, label
        self._bar: tqdm[Any] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar = tqdm(
            total=self._steps, initial=state.global_step, desc=self._label, unit="step", disable=not self._progress
        )

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self._start)
        epoch, last = round(state.epoch), self._settings.epochs
        control.should_evaluate = epoch % self._task.eval_every == 0 or epoch == last
        # Saved after the epoch's evaluation, which draws random numbers: so a run goes on to the very same weights.
        control.should_save = epoch % self._settings.save_every == 0 and epoch < last

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        if self._bar is not None and metrics:
            shown = self._task.shown
            self._bar.set_postfix({"epoch": f"{state.epoch:.0f}", shown: f"{metrics[f'eval_{shown}']:.3f}"})

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _same_settings(out: Path, there: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name in dict.fromkeys([*wanted, *there]):
        value = wanted.get(name)
        if there.get(name) != value:
            raise RecordError(
                f"{out}: holds another run ({name} is {there.get(name)!r}, not {value!r}); choose another folder"
            )


def _last_state(folder: Path) -> str | None:
    """The newest state of the Trainer that was written whole: its own description is written last."""
    states = []
    for path in folder.glob("checkpoint-*"):
        try:
            step = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
        except (OSError, ValueError, KeyError):
            shutil.rmtree(path, ignore_errors=True)
            continue
        states.append((step, str(path)))
    return max(states)[1] if states else None


def _trainable_parameters(model: nn.Module, method: Method, heads: Sequence[str]) -> int:
    if not method.injects:
        return sum(p.numel() for p in model.parameters())
    prefixes = tuple(name + "." for name in heads)
    return sum(p.numel() for n, p in model.named_parameters() if p.requires_grad and not n.startswith(prefixes))


def _context(task: Task, count: int) -> dict[str, torch.Tensor]:
    """The covariance of every target's inputs over training examples, under the model as it is."""
    from deltaw.adapters.methods.corda import input_covariances

    device = next(task.model.parameters()).device
    batches = ({name: value.to(device) for name, value in batch.items()} for batch in task.context(count))
    return input_covariances(task.model, task.targets, batches)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the notices of transformers (a new head, say) out of the output while its functions run."""
    before = transformers_logging.get_verbosity()
    quieter: Any = transformers_logging  # its functions are not typed
    quieter.set_verbosity_error()
    quieter.disable_progress_bar()
    try:
        yield
    finally:
        quieter.set_verbosity(before)
        quieter.enable_progress_bar()


def first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return str(error).strip().split("\n")[0]
