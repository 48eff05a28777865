"""Training at two levels: some parameters on one part of the examples, the others by a hypergradient on the rest."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback
from typing_extensions import override

from deltaw.adapters.checks import public
from deltaw.adapters.errors import OptionError
from deltaw.adapters.method import Bilevel
from deltaw.adapters.modules import adapted
from deltaw.trainers.method_trainer import MethodTrainer


@public
def hypergradient(
    lower: Sequence[Tensor],
    upper: Sequence[Tensor],
    training_loss: Callable[[], Tensor],
    validation_loss: Callable[[], Tensor],
    rate: float,
    *,
    gradient: Sequence[Tensor] | None = None,
    distance: float = 0.01,
) -> list[Tensor]:
    r"""Return the gradient of L_val(V − ξ ∇_V L_train(V, M), M) with respect to M, without second derivatives.

        V' = V − ξ ∇_V L_train(V, M),    v = ∇_V' L_val(V', M),    ε = distance / ‖v‖
        ∇_M L_val(V', M) − ξ · (∇_M L_train(V + ε v, M) − ∇_M L_train(V − ε v, M)) / 2ε

    It costs one forward and backward pass of the validation loss, two of the training loss, and one more where
    ``gradient`` is not given. The parameters are as they were afterwards, to the last bit; gradients that they hold are
    left alone. What the training loss draws at random (dropout) is drawn alike on both sides of the difference, whose
    noise would otherwise be divided by ε.

    Arguments:
        lower: V, parameters of the lower level.
        upper: M, parameters of the upper level.
        training_loss, validation_loss: Compute the losses from the parameters as they are when called.
        rate: ξ, the learning rate of the lower level.
        gradient: ∇_V L_train(V, M), where it is known already.
        distance: Of the two points of the difference from V, in norm.

    Source:
        Liu, Simonyan, Yang 2019, "DARTS", equations 6 to 8, with its ε; the betty library, by which BiDoRA is trained.

    Example: of L_train = (V − M)²/2 and L_val = V²/2 it is ξ (V − ξ (V − M)).
        >>> V, M = (torch.tensor([value], requires_grad=True) for value in (3.0, 1.0))
        >>> hypergradient([V], [M], lambda: ((V - M) ** 2).sum() / 2, lambda: (V**2).sum() / 2, rate=0.5)
        [tensor([1.0000])]
    """

    def gradients(loss: Tensor, of: Sequence[Tensor]) -> list[Tensor]:
        found = torch.autograd.grad(loss, of, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(of, found, strict=True)]

    def go(direction: Sequence[Tensor], by: float) -> None:
        with torch.no_grad():
            for parameter, start, part in zip(lower, kept, direction, strict=True):
                parameter.copy_(start).add_(part, alpha=by)

    kept = [parameter.detach().clone() for parameter in lower]
    devices = list({p.device for p in [*lower, *upper] if p.device.type == "cuda"})
    try:
        first = gradients(training_loss(), lower) if gradient is None else gradient
        go(first, -rate)
        both = gradients(validation_loss(), [*lower, *upper])
        v, result = both[: len(lower)], both[len(lower) :]
        length = math.sqrt(sum(float(part.double().square().sum()) for part in v))
        if length == 0 or rate == 0:
            return result
        step, sides = distance / length, []
        for sign in (1.0, -1.0):
            go(v, sign * step)
            with torch.random.fork_rng(devices):
                sides.append(gradients(training_loss(), upper))
        for one, plus, minus in zip(result, *sides, strict=True):
            one.sub_(plus - minus, alpha=rate / (2 * step))
        return result
    finally:
        go(kept, 0.0)


class TwoPhases:
    """Batches of the keys 0, …, n − 1: of the inner part for the epochs of a search, of all after it.

    Every epoch has as many batches as all examples make, in an order that the seed and the epoch decide; in the search
    the inner examples come again until they are full.

    Arguments:
        length: n.
        batch_size: Keys in a batch.
        seed: Of the split and of the order.
        epochs: Of the whole training.
        levels: How large the inner part and the search are.

    Raises:
        OptionError: There are fewer than 2 epochs or examples, so that one phase or part has none.

    Example:
        >>> batches = TwoPhases(10, 4, seed=0, epochs=2, levels=Bilevel((), 0.8, 0.5))
        >>> len(batches.inner), len(batches.outer), len(list(batches))
        (8, 2, 3)
    """

    def __init__(self, length: int, batch_size: int, seed: int, epochs: int, levels: Bilevel) -> None:
        if epochs < 2 or length < 2:
            raise OptionError(
                "training at two levels needs at least 2 epochs, to search and to train anew, and 2 examples; here "
                f"are {epochs} and {length}"
            )
        self._length, self._size, self._seed = length, batch_size, seed
        order = torch.randperm(length, generator=self._generator(0)).tolist()
        inner = min(max(1, int(length * levels.inner_share)), length - 1)
        self.inner, self.outer = sorted(order[:inner]), sorted(order[inner:])
        self.search_epochs = min(max(1, round(epochs * levels.search_share)), epochs - 1)
        self.epoch = 0

    def _generator(self, stream: int) -> torch.Generator:
        return torch.Generator().manual_seed(self._seed * 1_000_003 + stream)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch; the Trainer does."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self._length / self._size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = self._generator(2 * self.epoch + 1)
        if self.epoch >= self.search_epochs:
            keys = torch.randperm(self._length, generator=generator).tolist()
        else:
            keys = self._repeated(self.inner, self._length, generator)
        for start in range(0, self._length, self._size):
            yield keys[start : start + self._size]

    def validation(self, step: int) -> list[int]:
        """Return the keys of the outer part's batch for a step from 0; they follow from the step alone."""
        epoch, place = divmod(step, len(self))
        keys = self._repeated(self.outer, self._length, self._generator(2 * epoch + 2))
        return keys[place * self._size : (place + 1) * self._size]

    @staticmethod
    def _repeated(keys: Sequence[int], length: int, generator: torch.Generator) -> list[int]:
        found: list[int] = []
        while len(found) < length:
            found += [keys[k] for k in torch.randperm(len(keys), generator=generator).tolist()]
        return found[:length]


class BilevelTrainer(MethodTrainer):
    """A Trainer that searches for the parameters of the upper level, and trains the others anew with them fixed.

    In the search each step has the training batch's gradient for the lower level and the ``hypergradient`` for the
    upper, and one optimizer moves both. Then the lower level goes back to where it started, with the optimizer's state
    and the schedule of the learning rate, and the upper stays. All of it follows from the step, so an interrupted run
    goes on to the same weights.
    """

    levels: Bilevel
    phases: TwoPhases

    def set_up(self, levels: Bilevel, phases: TwoPhases) -> None:
        """Take over the two levels, and remember the parameters as they are, which is the start.

        Raises:
            OptionError: There are several processes.
        """
        if self.args.world_size > 1 or self.args.gradient_accumulation_steps > 1:
            raise OptionError("training at two levels is for one process, without gradient accumulation")
        self.levels, self.phases, self.batches = levels, phases, phases
        model: Any = self.model
        names = {id(layer.tensor(name)) for layer in adapted(model).values() for name in levels.upper}
        trained = [p for p in model.parameters() if p.requires_grad]
        self._upper = [p for p in trained if id(p) in names]
        self._lower = [p for p in trained if id(p) not in names]
        self._start = [p.detach().clone() for p in self._lower]
        self.add_callback(_Switch(self))

    @override
    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        """One linear schedule for the search, and one for the training after it."""
        if self.lr_scheduler is None:
            scheduled: Any = self.optimizer if optimizer is None else optimizer
            search = self.phases.search_epochs * len(self.phases)
            share = self.args.warmup_steps / max(1, num_training_steps)

            def factor(step: int) -> float:
                start, length = (0, search) if step < search else (search, num_training_steps - search)
                place, warm = step - start, math.ceil(share * length)
                return place / warm if place < warm else max(0.0, (length - place) / max(1, length - warm))

            self.lr_scheduler = LambdaLR(scheduled, factor)
        found: LambdaLR = self.lr_scheduler
        return found

    @override
    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(model, dict(inputs), *args, **kwargs)
        step = self.state.global_step
        if step < self.phases.search_epochs * len(self.phases):
            examples: Any = self.train_dataset
            outer = self.data_collator([examples[k] for k in self.phases.validation(step)])
            prepared, chosen = self._prepare_inputs(inputs), self._prepare_inputs(outer)
            found = hypergradient(
                self._lower,
                self._upper,
                lambda: self._loss(model, prepared),
                lambda: self._loss(model, chosen),
                self._get_learning_rate(),
                gradient=[torch.zeros_like(p) if p.grad is None else p.grad for p in self._lower],
            )
            for parameter, gradient in zip(self._upper, found, strict=True):
                parameter.grad = gradient
        return loss

    def _loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """The loss without the penalty, which the upper level has no part in."""
        with self.compute_loss_context_manager():
            found: Any = Trainer.compute_loss(self, model, dict(inputs))
        loss: Tensor = found
        return loss

    def switch(self, epoch: int) -> None:
        """Before an epoch: fix the upper level once the search is over, and begin anew where it ends."""
        search = self.phases.search_epochs
        if epoch < search:
            return
        for parameter in self._upper:
            parameter.requires_grad_(False)
            parameter.grad = None
        if epoch == search:
            with torch.no_grad():
                for parameter, start in zip(self._lower, self._start, strict=True):
                    parameter.copy_(start)
            optimizer: Any = self.optimizer
            optimizer.state.clear()


class _Switch(TrainerCallback):
    def __init__(self, trainer: BilevelTrainer) -> None:
        self._trainer = trainer

    @override
    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.switch(round(state.epoch or 0))
