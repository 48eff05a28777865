"""The recorder as a callback of Hugging Face's Trainer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from deltaw.trainers.recorder import Recorder
from deltaw.trainers.schedules import Schedule

# What the Trainer logs under other names; everything else that is a number is kept under its own.
NAMES = {"eval_loss": "evaluation_loss"}
SKIPPED = {"total_flos", "train_runtime", "train_samples_per_second", "train_steps_per_second"}


class RecorderCallback(TrainerCallback):
    """Record a Trainer's run: ``Trainer(..., callbacks=[RecorderCallback("runs/bora")])``.

    Step 0 and the last step are recorded besides those of the schedule; losses, learning rate and scores go to the
    scalar log as the Trainer logs them.

    Arguments:
        path, modules, when, options: As ``Recorder``'s; a run that the Trainer resumes from one of its checkpoints is
            resumed here as well.

    Raises:
        RecordError: As ``Recorder``, when the training begins.
    """

    def __init__(
        self, path: str | Path, modules: Sequence[str] | None = None, when: Schedule | None = None, **options: Any
    ) -> None:
        self.path, self.modules, self.when, self.options = path, modules, when, options
        self.recorder: Recorder | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Open the record, and record the step that training starts from where it is new."""
        if not state.is_world_process_zero:
            return
        if model is None:
            raise TypeError("the Trainer handed no model to the callback")
        options = {"resume": state.global_step > 0} | self.options
        self.recorder = Recorder(model, self.path, self.modules, self.when, **options).__enter__()
        if state.global_step == 0:
            self.recorder.record(0)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Record the step where the schedule says so."""
        if self.recorder is not None:
            self.recorder.step(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keep the Trainer's numbers."""
        numbers = {
            NAMES.get(name, name): float(value)
            for name, value in (logs or {}).items()
            if isinstance(value, (int, float)) and name not in SKIPPED
        }
        if self.recorder is not None and numbers:
            self.recorder.log(state.global_step, **numbers)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the last step and close."""
        if self.recorder is not None:
            self.recorder.record(state.global_step)
        self.close()

    def close(self) -> None:
        """Release the folder; only needed where training ends in an error and the process goes on."""
        if self.recorder is not None:
            self.recorder.close()
            self.recorder = None
