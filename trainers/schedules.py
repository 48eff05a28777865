"""Schedules: which steps are recorded. A schedule is any function from a step to a bool.

The same step must always get the same answer: a plan asks for steps that are still to come.
"""

from collections.abc import Callable, Iterable

from deltaw.adapters.errors import OptionError

Schedule = Callable[[int], bool]


def every(interval: int) -> Schedule:
    """Record steps 0, n, 2n, ….

    Raises:
        OptionError: ``interval`` is below 1.

    Example:
        >>> when = every(50)
        >>> when(0), when(50), when(51)
        (True, True, False)
    """
    if interval < 1:
        raise OptionError(f"interval must be at least 1, not {interval!r}")
    return lambda step: step % interval == 0


def at(steps: Iterable[int]) -> Schedule:
    """Record these steps.

    Example:
        >>> when = at([10, 20, 40])
        >>> when(20), when(30)
        (True, False)
    """
    chosen = frozenset(steps)
    return lambda step: step in chosen


def geometric(first: int = 1, ratio: float = 2.0) -> Schedule:
    """Record step 0 and the steps first, first·ratio, first·ratio², …, each rounded to a whole step.

    Early training moves weights most; this spends its checkpoints there.

    Raises:
        OptionError: ``first`` is below 1, or ``ratio`` is not above 1.

    Example:
        >>> when = geometric(first=10, ratio=2)
        >>> [step for step in range(100) if when(step)]
        [0, 10, 20, 40, 80]
    """
    if first < 1 or not ratio > 1:
        raise OptionError(f"geometric needs first ≥ 1 and ratio > 1, not first={first!r}, ratio={ratio!r}")

    chosen, point = {0}, float(first)  # as far as steps were asked for

    def when(step: int) -> bool:
        nonlocal point
        while round(point) <= step:
            chosen.add(round(point))
            point *= ratio
        return step in chosen

    return when


def epochs(steps_per_epoch: int, interval: int = 1) -> Schedule:
    """Record the end of every ``interval``-th epoch, and step 0.

    Example:
        >>> when = epochs(steps_per_epoch=268)
        >>> when(268), when(300)
        (True, False)
    """
    if steps_per_epoch < 1 or interval < 1:
        raise OptionError(f"epochs needs two numbers of at least 1, not {steps_per_epoch!r} and {interval!r}")
    return every(steps_per_epoch * interval)
