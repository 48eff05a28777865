"""Hugging Face's Trainer for any method, and the callback that times, evaluates and saves a run."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from typing_extensions import override

from deltaw.adapters.errors import RecordError
from deltaw.adapters.method import Method
from deltaw.adapters.methods.lora_plus import parameter_groups
from deltaw.adapters.modules import penalty
from deltaw.adapters.state_file import repeated
from deltaw.analysis.progress import Progress, progress
from deltaw.trainers.settings import Settings
from deltaw.trainers.task import Task


class MethodTrainer(Trainer):
    """A Trainer for any method: with the optimizer, the penalty and the part in the training that the method has.

    The learning-rate schedule scales every group of the optimizer.
    """

    make_optimizer: Callable[[], torch.optim.Optimizer | None] | None = None
    follow: Callable[[torch.optim.Optimizer], None] | None = None
    batches: Any = None
    score: Callable[[nn.Module], dict[str, float]] | None = None

    @override
    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        if self.optimizer is None and self.make_optimizer is not None:
            self.optimizer = self.make_optimizer()
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        if self.follow is not None:
            self.follow(optimizer)
            self.follow = None  # once
        return optimizer

    @override
    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        found: Any = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        added = penalty(model) if model.training else 0.0
        if not isinstance(added, torch.Tensor):
            return found
        return (found[0] + added, found[1]) if return_outputs else found + added

    @override
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

    @override
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


def optimizer_of(
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


class Watch(TrainerCallback):
    """Times the epochs, has them evaluated and their state saved when it is time, and shows one progress bar."""

    def __init__(self, settings: Settings, task: Task, steps: int, progress: bool, label: str) -> None:
        self.seconds: list[float] = []
        self._start = 0.0
        self._settings, self._task, self._steps = settings, task, steps
        self._progress, self._label = progress, label
        self._bar: Progress[Any] | None = None

    @override
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar = progress(self._steps, self._label, "step", self._progress, initial=state.global_step)

    @override
    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start = time.perf_counter()

    @override
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update()

    @override
    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds.append(time.perf_counter() - self._start)
        epoch, last = round(state.epoch), self._settings.epochs
        control.should_evaluate = epoch % self._task.eval_every == 0 or epoch == last
        # Saved after the epoch's evaluation, which draws random numbers: so a run goes on to the very same weights.
        control.should_save = epoch % self._settings.save_every == 0 and epoch < last

    @override
    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        if self._bar is not None and metrics:
            shown = self._task.shown
            self._bar.note(**{"epoch": f"{state.epoch:.0f}", shown: f"{metrics[f'eval_{shown}']:.3f}"})

    def close(self) -> None:
        """End the progress bar."""
        if self._bar is not None:
            self._bar.close()
