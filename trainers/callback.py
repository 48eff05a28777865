"""The recorder as a callback of Hugging Face's Trainer."""

import inspect
import itertools
import logging
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainerControl, TrainerState
from transformers import TrainingArguments as Arguments
from transformers.trainer_callback import CallbackHandler

from deltaw.adapters.errors import OptionError, WriteError
from deltaw.trainers.arguments import check_names, checked_path
from deltaw.trainers.gathering import has_parts
from deltaw.trainers.live import Numbers
from deltaw.trainers.recorder import Recorder
from deltaw.trainers.schedules import Schedule, checked_schedule, with_steps

# The callbacks that record now, by thread and folder.
_open: "weakref.WeakValueDictionary[tuple[int, Path], RecorderCallback]" = weakref.WeakValueDictionary()
logger = logging.getLogger(__name__)
# What the Trainer logs under other names; everything else that is a number is kept under its own.
NAMES = {"eval_loss": "evaluation_loss"}
REPORT = "report.html"  # beside the manifest
ENDS = "train_runtime"  # is in what the Trainer logs last
SKIPPED = {"total_flos", ENDS, "train_samples_per_second", "train_steps_per_second"}


class RecorderCallback(TrainerCallback):
    """Record a Trainer's run: ``Trainer(..., callbacks=[RecorderCallback("runs/bora")])``.

    Step 0 and the last step are recorded besides those of the schedule; losses, learning rate and scores go to the
    scalar log as the Trainer logs them. With ``live=True``, ΔM and ΔD of each recorded step go wherever the Trainer
    reports to (``report_to``: TensorBoard, Weights & Biases, trackio, …) and to its ``log_history``.

    Arguments:
        path, modules, when, options: As ``Recorder``'s; a run that the Trainer resumes from one of its checkpoints is
            resumed here as well, and ``total_steps`` is the Trainer's.
        report: Leave ``report.html`` in the run's folder at the end of the training, as ``deltaw.report`` writes it.

    In ``trainer.hyperparameter_search`` each trial has a folder of its own in ``path``, by the name that ``hp_name``
    gives it, or else ``run-N``, the first that is free; its parameters are in the record's ``info`` as ``trial``.

    A training that begins anew by itself after an out-of-memory (``auto_find_batch_size``) goes on in the same record,
    from step 0 with the weights as they are then.

    Raises:
        OptionError: An argument cannot be used.
        RecordError: As ``Recorder``, when the training begins.
    """

    def __init__(
        self,
        path: str | Path,
        modules: Sequence[str] | None = None,
        when: Schedule | None = None,
        *,
        report: bool = False,
        **options: Any,
    ) -> None:
        check_names(options, Recorder)
        self.path, self.modules, self.when, self.options = checked_path(path), modules, checked_schedule(when), options
        self.report = report
        self.folder = self.path  # of the training that goes on, or went on last
        self.recorder: Recorder | None = None
        self._handler: Any = None
        self._broke_off = False  # the Trainer began anew without coming to an end
        self._trial: dict[str, Any] | None = None  # the parameters of a search's trial

    def on_train_begin(
        self,
        args: Arguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Open the record, and record the step that training starts from where it is new."""
        if model is None:
            raise OptionError("on_train_begin needs the model; call it as the Trainer does, with model=…")
        self._close_abandoned()
        if not (state.is_world_process_zero or has_parts(model)):
            return
        self._handler = _handler()
        last = state.max_steps
        options = {"resume": state.global_step > 0, "total_steps": last} | self.options
        if self._broke_off and args.auto_find_batch_size and state.trial_params == self._trial:
            options["resume"] = True  # out of memory, it has begun anew with a smaller batch: the run is our own
        elif state.is_hyper_param_search:
            self.folder = _folder_of_trial(self.path, state.trial_name)
        self._trial = state.trial_params
        if state.is_hyper_param_search:
            options["info"] = dict(self.options.get("info") or {}) | {"trial": dict(state.trial_params or {})}
        recorder = Recorder(model, self.folder, self.modules, with_steps(self.when, [0, last]), **options)
        self.recorder = recorder.__enter__()
        _open[threading.get_ident(), self.path.resolve()] = self
        if state.global_step == 0:
            self._report(args, state, control, self.recorder.record(0))

    def on_step_end(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Record the step where the schedule says so."""
        if self.recorder is not None:
            self._report(args, state, control, self.recorder.step(state.global_step))
        self._before_a_save(control)

    def on_epoch_end(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Have all on the disk before the Trainer saves."""
        self._before_a_save(control)

    def on_log(
        self,
        args: Arguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep the Trainer's numbers, and record the last step when it logs that it has come to the end.

        That is where a training that was stopped early is still what it came to: after it, the Trainer loads the best
        checkpoint (``load_best_model_at_end``), and the callbacks that report close.
        """
        numbers = {
            NAMES.get(name, name): float(value)
            for name, value in (logs or {}).items()
            if isinstance(value, (int, float)) and name not in SKIPPED
        }
        if self.recorder is not None and numbers:
            self.recorder.log(state.global_step, **numbers)
        if self.recorder is not None and ENDS in (logs or {}):
            self._report(args, state, control, self.recorder.record(state.global_step))

    def on_train_end(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Close; the last step is recorded. Then write the report, where one is wanted."""
        recorded = self.recorder is not None
        self.close()
        if self.report and recorded and state.is_world_process_zero:
            self._write_report()

    def close(self) -> None:
        """Release the folder; only needed where training ends in an error and the process goes on."""
        self._broke_off = False
        if self.recorder is not None:
            recorder, self.recorder, self._handler = self.recorder, None, None
            recorder.close()

    def _write_report(self) -> None:
        """Write the report; what goes wrong is logged, as a training that has come to its end must not fail here."""
        from deltaw.analysis.report.write import report  # loads pandas and matplotlib, which recording does without

        try:
            where = report(self.folder, self.folder / REPORT)
        except Exception as error:  # whatever it is, the record is whole
            logger.warning("%s: the report could not be written: %s", self.folder, error)
        else:
            logger.info("%s: written", where)

    def _close_abandoned(self) -> None:
        """Close what a training left open that ended in an error, which the Trainer tells no callback.

        A thread trains one model at a time, so whatever this one left open has ended.
        """
        other = _open.pop((threading.get_ident(), self.path.resolve()), None)
        for callback in {id(c): c for c in (self, other) if c is not None and c.recorder is not None}.values():
            try:
                callback.close()
            except WriteError as error:
                logger.warning("%s: the record of the training that broke off is not whole: %s", self.path, error)
            self._broke_off |= callback is self

    def _before_a_save(self, control: TrainerControl) -> None:
        """A run that is resumed from what is saved now must find every checkpoint up to here."""
        if self.recorder is not None and control.should_save:
            self.recorder.flush()

    def _report(self, args: Arguments, state: TrainerState, control: TrainerControl, numbers: Numbers | None) -> None:
        """Hand the live numbers to the callbacks that report, at their own step and not with the next loss."""
        if not numbers:
            return
        state.log_history.append({**numbers, "epoch": state.epoch, "step": state.global_step})
        handler = self._handler
        for callback in handler.callbacks if handler is not None else []:
            # What writes to the terminal would drown the losses in them.
            if callback is not self and not isinstance(callback, (ProgressCallback, PrinterCallback)):
                callback.on_log(args, state, control, logs=dict(numbers), model=handler.model)
                # TensorBoard has no alerts: what W&B and trackio were told stands among its texts.
                board = getattr(callback, "tb_writer", None)
                if board is not None and self.recorder is not None:
                    for text in self.recorder.live_numbers.alarms:
                        board.add_text("deltaw/alarms", text, state.global_step)


def _folder_of_trial(path: Path, name: str | None) -> Path:
    """A trial's folder: by its name, with _ for what no file's name holds, or else the first run-N that is free."""
    if name:
        return path / ("".join(c if c.isalnum() or c in "-_.=" else "_" for c in name).lstrip(".") or "_")
    return next(path / f"run-{n}" for n in itertools.count() if not (path / f"run-{n}").exists())


def _handler() -> Any:
    """Return the Trainer's list of callbacks. It hands it to none of them, so it is looked up among the callers."""
    frame = inspect.currentframe()
    while frame is not None:
        found = frame.f_locals.get("self")
        if isinstance(found, CallbackHandler):
            return found
        frame = frame.f_back
    return None
