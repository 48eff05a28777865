"""Which checkpoints of a schedule stay, where their number is limited."""

from collections.abc import Sequence

from deltaw.trainers.schedules import Countable, Schedule

LONGEST_WALK = 1_000_000  # steps that are asked one after the other: a fraction of a second


class Thinning:
    """Keep at most so many checkpoints of a schedule, evenly over the run however long it gets.

    The schedule's steps are numbered 0, 1, 2, …: the hits. Of them every s-th stays, where s is the smallest power of
    two with which at most ``keep`` stay.

    Schedules made by ``every``, ``at``, ``geometric`` and ``epochs`` say the number of a hit at once. Any other
    function is asked step by step. Where more than a million steps lie between two that were seen, those between count
    as no hits: at most ``keep`` stay all the same, but they may lie less evenly.

    Arguments:
        when: The schedule.
        keep: How many stay at most; ``None`` for all.

    Example:
        >>> from deltaw.trainers import every
        >>> thinning, steps = Thinning(every(10), keep=3), []
        >>> for step in range(100):
        ...     if thinning.stays(step):
        ...         dropped = thinning.dropped(steps, step)
        ...         steps = [s for s in steps if s not in dropped] + [step]
        >>> steps
        [0, 40, 80]
    """

    def __init__(self, when: Schedule, keep: int | None) -> None:
        self._when, self._keep = when, keep
        self._hits: dict[int, int] = {}  # of the steps that stayed, where counting them takes long
        self._reached = self._count = 0  # up to which step they are counted, and how many there were

    def resume(self, steps: Sequence[int]) -> None:
        """Take up the recorded steps of a run that goes on."""
        if self._keep is not None:
            for step in steps:
                if self._when(step):
                    self._hit(step)

    def stays(self, step: int) -> bool:
        """Whether the schedule says yes, and the step is one of those to keep."""
        if not self._when(step):
            return False
        return self._keep is None or self._hit(step) % stride(self._hit(step), self._keep) == 0

    def dropped(self, steps: Sequence[int], step: int) -> set[int]:
        """Return which of the recorded steps make room for this one; those of no schedule never do."""
        if self._keep is None or not self._when(step):
            return set()
        scheduled = [s for s in steps if self._when(s)]
        hits = {s: self._hit(s) for s in scheduled}  # rising, so that a resumed run is counted in one walk
        apart = stride(self._hit(step), self._keep)
        dropped = {s for s, hit in hits.items() if hit % apart}
        self._hits = {s: hit for s, hit in self._hits.items() if s == step or (s in hits and s not in dropped)}
        return dropped

    def _hit(self, step: int) -> int:
        if isinstance(self._when, Countable):
            return self._when.before(step)
        if step not in self._hits:
            if step < self._reached:
                self._reached = max((s for s in self._hits if s <= step), default=0)
                self._count = self._hits.get(self._reached, 0)
            if step - self._reached <= LONGEST_WALK:
                self._count += sum(1 for s in range(self._reached, step) if self._when(s))
            else:
                self._count += bool(self._when(self._reached))
            self._reached = step
            self._hits[step] = self._count
        return self._hits[step]


def stride(hit: int, keep: int) -> int:
    """Return s, a power of two: when the schedule has said yes ``hit`` + 1 times, every s-th of them stays.

    The smallest with which at most ``keep`` stay, so that they lie evenly over the run however long it gets.

    Example:
        >>> [stride(hit, keep=4) for hit in range(10)]
        [1, 1, 1, 1, 2, 2, 2, 2, 4, 4]
    """
    found = 1
    while hit // found + 1 > keep:
        found *= 2
    return found
