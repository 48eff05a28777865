"""A recorded fine-tuning run with any method: what every experiment has in common."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PrinterCallback, ProgressCallback, TrainingArguments

from deltaw.adapters.bitsandbytes import load_bitsandbytes
from deltaw.adapters.errors import OptionError
from deltaw.adapters.injection import inject
from deltaw.adapters.method import Method
from deltaw.adapters.methods.corda import input_covariances
from deltaw.adapters.modules import linear_shape
from deltaw.adapters.quantization import quantize
from deltaw.analysis.progress import tell
from deltaw.trainers.bilevel import BilevelTrainer, TwoPhases
from deltaw.trainers.callback import RecorderCallback
from deltaw.trainers.finished import TRAINING, last_state
from deltaw.trainers.loading import quiet
from deltaw.trainers.memory import peak_megabytes, reset_peak
from deltaw.trainers.method_trainer import MethodTrainer, Watch, optimizer_of
from deltaw.trainers.settings import Settings
from deltaw.trainers.task import Task, Trained
from deltaw.trainers.threads import on_threads, suitable_threads


def fine_tune(settings: Settings, task: Task, out: Path, *, progress: bool) -> Trained:
    """Fine-tune and record; an interrupted run goes on. ``finish`` is to follow.

    It is done on as many threads as ``suitable_threads`` says, whatever torch has here.

    Arguments:
        settings: With them the task was made.
        task: Its model is changed.
        out: The run folder.
        progress: Show a progress bar.

    Raises:
        OptionError, TargetError: As ``inject``.
        RecordError: As ``Recorder``.
    """
    with on_threads(suitable_threads(task.model)):
        return _fine_tune(settings, task, out, progress)


def _fine_tune(settings: Settings, task: Task, out: Path, progress: bool) -> Trained:
    model, method = task.model, settings.make_method()
    total = sum(p.numel() for p in model.parameters())
    if settings.base == "nf4":
        quantize(model.to("cuda" if torch.cuda.is_available() else "cpu"), task.targets)  # where the Trainer has it
    context = _context(task, settings.context_batches) if method.needs_context else None
    if settings.advice is None:
        inject(model, method, task.targets, trainable=task.heads, seed=settings.seed, context=context)
    else:
        methods = settings.methods_by_module(task.targets)
        inject(model, methods, trainable=task.heads, seed=settings.seed, context=context)
    trainable = _trainable_parameters(model, method, task.heads)

    phases = _phases(method, settings, task)
    steps_per_epoch = len(task.batches) if task.batches is not None else math.ceil(len(task.train) / task.batch_size)
    steps = settings.epochs * steps_per_epoch
    watch = Watch(settings, task, steps, progress, out.name)
    recorder = RecorderCallback(
        out,
        settings.record_modules or task.targets,
        task.when(steps),
        method=method.name,
        info={"experiment": task.experiment, "settings": settings.plain(), "corpus": task.corpus},
        resume=True,  # the settings are the same, and W₀ is compared
    )
    low = settings.precision == "bfloat16"
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
        train_sampling_strategy="group_by_length" if task.group_by_length else "random",
        bf16=low,
        use_cpu=low and not torch.cuda.is_available(),  # without it transformers refuses bfloat16 on a CPU
        seed=settings.seed,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    state = last_state(out / TRAINING)
    if state is not None:
        tell(f"{out}: goes on from step {state[0]} of {steps}", enabled=progress)
    reset_peak()
    with quiet():
        trainer = (MethodTrainer if phases is None else BilevelTrainer)(
            model=model,
            args=arguments,
            train_dataset=task.train,
            data_collator=task.collator,
            callbacks=[recorder, watch],
            **task.evaluation,
        )
        trainer.make_optimizer = optimizer_of(method, model, task.targets, arguments)
        trainer.follow = lambda optimizer: method.follow(model, optimizer, steps)
        trainer.batches, trainer.score = task.batches, task.score
        if method.bilevel is not None and phases is not None and isinstance(trainer, BilevelTrainer):
            trainer.set_up(method.bilevel, phases)
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        try:
            trainer.train(resume_from_checkpoint=None if state is None else state[1])
        finally:
            recorder.close()
            watch.close()
    seconds = float(np.median(watch.seconds)) if watch.seconds else math.nan
    return Trained(
        trainable, trainable / total, trainer.state.log_history, seconds, peak_megabytes(), str(arguments.device)
    )


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


def _trainable_parameters(model: nn.Module, method: Method, heads: Sequence[str]) -> int:
    if not method.injects:
        return sum(p.numel() for p in model.parameters())
    prefixes = tuple(name + "." for name in heads)
    return sum(p.numel() for n, p in model.named_parameters() if p.requires_grad and not n.startswith(prefixes))


def _phases(method: Method, settings: Settings, task: Task) -> TwoPhases | None:
    """The examples of a method that trains at two levels, in their order."""
    if method.bilevel is None:
        return None
    if task.batches is not None or task.group_by_length:
        raise OptionError(
            f"{method.name} trains on two parts of the examples, in an order of its own; it cannot be trained with "
            f"{'group_by_length' if task.group_by_length else task.experiment + ', whose batches are of one task each'}"
        )
    return TwoPhases(len(task.train), task.batch_size, settings.seed, settings.epochs, method.bilevel)


def _context(task: Task, count: int) -> dict[str, torch.Tensor]:
    """The covariance of every target's inputs over training examples, under the model as it is."""
    device = next(task.model.parameters()).device
    batches = ({name: value.to(device) for name, value in batch.items()} for batch in task.context(count))
    return input_covariances(task.model, task.targets, batches)
