"""One pass over the checkpoints of a module for all pairs of steps that are asked for.

The pairs are put in the order of the later step, so that each checkpoint is read once. What a later pair needs is kept,
at most four matrices.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from deltaw.analysis.measures.change import Axis, Change, changes
from deltaw.analysis.tables.run import Run, Step

T = TypeVar("T")
Stops = Sequence[tuple[Step, int]]  # (from, to); where a table has steps and no pairs, the first is not looked at
AT_ONCE = 4  # matrices in memory


def in_one_pass(pairs: Iterable[tuple[Step, int]]) -> list[tuple[Step, int]]:
    """Return pairs of steps, each once, in the order in which each checkpoint is read once.

    Example:
        >>> in_one_pass([(0, 5), (5, 9), (None, 0), (None, 5), (None, 9), (0, 5)])
        [(None, 0), (None, 5), (0, 5), (None, 9), (5, 9)]
    """

    def order(pair: tuple[Step, int]) -> tuple[int, ...]:
        start, end = (-1 if step is None else step for step in pair)
        return max(start, end), min(start, end), end

    return sorted(set(pairs), key=order)


class OnePass:
    """The matrices of one module at the stops of a walk, each read once where the order of the stops allows it.

    Arguments:
        run: The run.
        module: The module.
        stops: All of the module's stops, in order.
    """

    def __init__(self, run: Run, module: str, stops: Stops) -> None:
        self.run, self.module, self.position = run, module, 0
        self._stops = stops
        self._weights: dict[Step, Tensor] = {}
        self._made: dict[str, Any] = {}

    def weight(self, step: Step) -> Tensor:
        """Return W' at a step of the present stop."""
        if step not in self._weights:
            self._drop(1)
            # float64 where W' is rebuilt, so that its rounding does not stand in for a change.
            dtype = torch.float64 if self.run.source.rebuilt(self.module) else None
            self._weights[step] = self.run.weight(self.module, step, dtype)
        return self._weights[step]

    def changes(self, axes: Sequence[Axis], allow_nonfinite: bool) -> dict[Axis, Change]:
        """Return the change of the present pair of steps along some axes."""
        step_from, step = self._stops[self.position]
        return changes(self.weight(step_from), self.weight(step), axes, allow_nonfinite=allow_nonfinite)

    def once(self, name: str, make: Callable[[], T]) -> T:
        """Return what ``make`` returns, made once a module."""
        if name not in self._made:
            self._made[name] = make()
        found: T = self._made[name]
        return found

    def _drop(self, more: int) -> None:
        """Let go of what no later stop needs, and of what is needed last until there is room for some more."""
        later = self._next_uses()
        for step in [step for step in self._weights if step not in later]:
            del self._weights[step]
        while len(self._weights) + more > AT_ONCE:
            del self._weights[max(self._weights, key=later.__getitem__)]

    def _next_uses(self) -> dict[Step, int]:
        """Return by step the position of the next stop that needs it, this one included."""
        found: dict[Step, int] = {}
        for position in range(len(self._stops) - 1, self.position - 1, -1):
            found.update(dict.fromkeys(self._stops[position], position))
        return found
