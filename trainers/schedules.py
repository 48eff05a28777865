"""Schedules: which steps are recorded. A schedule is any function from a step to a bool.

The same step must always get the same answer: a plan asks for steps that are still to come. Those made here can also
say at once how many of their steps lie before another (``before``), where counting step by step would take long.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from deltaw.adapters.checks import whole_number
from deltaw.adapters.errors import OptionError

Schedule = Callable[[int], bool]


@runtime_checkable
class Countable(Protocol):
    """A schedule that knows how many of its steps, from 0 on, lie before one."""

    def __call__(self, step: int) -> bool:
        """Whether the step is recorded."""

    def before(self, step: int) -> int:
        """Return how many recorded steps lie before this one."""


def every(interval: int) -> Schedule:
    """Record steps 0, n, 2n, ….

    Raises:
        OptionError: ``interval`` is no whole number of at least 1.

    Example:
        >>> when = every(50)
        >>> when(0), when(50), when(51)
        (True, True, False)
    """
    return _Every(whole_number("interval", interval, 1))


def at(steps: Iterable[int]) -> Schedule:
    """Record these steps.

    Raises:
        OptionError: They are not whole numbers of at least 0.

    Example:
        >>> when = at([10, 20, 40])
        >>> when(20), when(30)
        (True, False)
    """
    return _At(_steps(steps))


def geometric(first: int = 1, ratio: float = 2.0) -> Schedule:
    """Record step 0 and the steps first, first·ratio, first·ratio², …, each rounded to a whole step.

    Early training moves weights most; this spends its checkpoints there.

    Raises:
        OptionError: ``first`` is no whole number of at least 1, or ``ratio`` is not a finite number above 1.

    Example:
        >>> when = geometric(first=10, ratio=2)
        >>> [step for step in range(100) if when(step)]
        [0, 10, 20, 40, 80]
    """
    first = whole_number("first", first, 1)
    try:
        number = float(ratio)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(ratio, bool | str) or not 1 < number < math.inf:
        raise OptionError(f"ratio must be a finite number above 1, not {ratio!r}")
    return _Geometric(first, number)


def epochs(steps_per_epoch: int, interval: int = 1) -> Schedule:
    """Record the end of every ``interval``-th epoch, and step 0.

    Raises:
        OptionError: One of them is no whole number of at least 1.

    Example:
        >>> when = epochs(steps_per_epoch=268)
        >>> when(268), when(300)
        (True, False)
    """
    return every(whole_number("steps_per_epoch", steps_per_epoch, 1) * whole_number("interval", interval, 1))


def with_steps(when: Schedule, steps: Iterable[int | None]) -> Schedule:
    """Return a schedule that records these steps besides its own; ``None`` among them is passed over.

    Example:
        >>> when = with_steps(every(50), [0, 130, None])
        >>> when(50), when(130), when(131)
        (True, True, False)
    """
    more = _steps(step for step in steps if step is not None)
    return _CountableWith(when, more) if isinstance(when, Countable) else _With(when, more)


def checked_schedule(when: Any) -> Schedule:
    """Return a schedule, every step for ``None``.

    Raises:
        OptionError: It is no function.
    """
    if when is None:
        return every(1)
    if not callable(when) or isinstance(when, type):
        raise OptionError(f"when must be a function of the step, such as every(50) or at([10, 20]), not {when!r}")
    schedule: Schedule = when
    return schedule


def _steps(steps: Any) -> tuple[int, ...]:
    if isinstance(steps, (str, bytes)) or not isinstance(steps, Iterable):
        raise OptionError(f"steps must be whole numbers, such as [10, 20], not {steps!r}")
    return tuple(sorted({whole_number("every one of the steps", step, 0) for step in steps}))


@dataclass(frozen=True)
class _Every:
    interval: int

    def __call__(self, step: int) -> bool:
        return step % self.interval == 0

    def before(self, step: int) -> int:
        return -(-step // self.interval)


class _At:
    def __init__(self, steps: tuple[int, ...]) -> None:
        self.steps = steps
        self._chosen = frozenset(steps)

    def __repr__(self) -> str:
        return f"at({list(self.steps)})"

    def __call__(self, step: int) -> bool:
        return step in self._chosen

    def before(self, step: int) -> int:
        return bisect_left(self.steps, step)


class _Geometric:
    def __init__(self, first: int, ratio: float) -> None:
        self.first, self.ratio = first, ratio
        self._point, self._reached = float(first), [0]  # as far as steps were asked for, rising

    def __repr__(self) -> str:
        return f"geometric({self.first}, {self.ratio})"

    def __call__(self, step: int) -> bool:
        place = self.before(step)
        return place < len(self._reached) and self._reached[place] == step

    def before(self, step: int) -> int:
        while round(self._point) <= step:
            if round(self._point) > self._reached[-1]:
                self._reached.append(round(self._point))
            self._point *= self.ratio
        return bisect_left(self._reached, step)


@dataclass(frozen=True)
class _With:
    when: Schedule
    more: tuple[int, ...]

    def __call__(self, step: int) -> bool:
        return step in self.more or bool(self.when(step))


@dataclass(frozen=True)
class _CountableWith(_With):
    when: Countable

    def before(self, step: int) -> int:
        return self.when.before(step) + sum(1 for s in self.more if s < step and not self.when(s))
