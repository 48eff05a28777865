"""The recorder as a callback of Lightning's Trainer."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from deltaw.trainers.arguments import check_names, checked_path
from deltaw.trainers.live import PREFIXES, Numbers
from deltaw.trainers.recorder import Recorder
from deltaw.trainers.schedules import Schedule, checked_schedule, with_steps


class LightningRecorder(pl.Callback):
    """Record a Lightning run: ``lightning.Trainer(..., callbacks=[LightningRecorder("runs/bora")])``.

    A step is an optimizer step, as in ``trainer.global_step``. Step 0 and the last one are recorded besides those of
    the schedule. Loss and learning rate go to the scalar log every ``log_every_n_steps``, the scores after each
    validation. With ``live=True``, ΔM and ΔD of each recorded step go to every logger, and by ``log_dict`` to the
    metrics that other callbacks can watch.

    Arguments:
        path, modules, when, options: As ``Recorder``'s; a run that Lightning resumes (``ckpt_path``) is resumed here as
            well, and ``total_steps`` is the Trainer's.

    Raises:
        OptionError: An argument cannot be used.
        RecordError: As ``Recorder``, when the training begins.
    """

    def __init__(
        self, path: str | Path, modules: Sequence[str] | None = None, when: Schedule | None = None, **options: Any
    ) -> None:
        check_names(options, Recorder)
        self.path, self.modules, self.when, self.options = checked_path(path), modules, checked_schedule(when), options
        self.recorder: Recorder | None = None
        self._step = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the record, and record the step that training starts from where it is new."""
        steps = trainer.estimated_stepping_batches
        last = int(steps) if math.isfinite(steps) else None
        options = {"resume": trainer.global_step > 0, "total_steps": last} | self.options
        recorder = Recorder(pl_module, self.path, self.modules, with_steps(self.when, [0, last]), **options)
        self.recorder = recorder.__enter__()
        self._step = trainer.global_step
        if trainer.global_step == 0:
            _report(trainer, self.recorder.record(0))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the step where the schedule says so; a batch whose gradients are only gathered is no step."""
        if self.recorder is None or trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if self._step % max(1, getattr(trainer, "log_every_n_steps", 50)) == 0:
            loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
            numbers = {"loss": float(loss)} if isinstance(loss, Tensor) else {}
            rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
            self.recorder.log(self._step, **numbers, learning_rate=float(rates[0]))
        changes = self.recorder.step(self._step)
        if changes:
            pl_module.log_dict(changes, logger=False, rank_zero_only=True)
        _report(trainer, changes)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the scores."""
        if self.recorder is not None and not trainer.sanity_checking:
            metrics = trainer.callback_metrics.items()
            scores = {name: float(value) for name, value in metrics if not name.startswith(PREFIXES)}
            self.recorder.log(trainer.global_step, **scores)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Have all on the disk first: a run that is resumed from there must find every checkpoint up to it."""
        if self.recorder is not None:
            self.recorder.flush()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the last step and close."""
        if self.recorder is not None:
            _report(trainer, self.recorder.record(trainer.global_step))
            recorder, self.recorder = self.recorder, None
            recorder.close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Close; the error that ended the training stays the one that is seen."""
        if self.recorder is not None:
            recorder, self.recorder = self.recorder, None
            recorder.__exit__(type(exception), exception, exception.__traceback__)


def _report(trainer: pl.Trainer, numbers: Numbers | None) -> None:
    """Straight to the loggers: ``log_dict`` would drop what falls between two of ``log_every_n_steps``."""
    if numbers:
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=trainer.global_step)
