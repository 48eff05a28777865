"""One pass over the checkpoints of a module for all pairs of steps that are asked for.

The pairs are put in the order of the later step, so that each checkpoint is read once. What a later pair needs is kept,
at most four matrices. Matrices that lie in files are compared many steps at a time, a few rows of each (``streamed``),
so that they take less memory than that. Where the matrices follow from W₀ and a method's small tensors, a few steps at
a time are compared in one pass over W₀, and no W' is made (``measures.built``).
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from deltaw.adapters.errors import RecordError
from deltaw.adapters.layer import WIDENED
from deltaw.adapters.method import ScaledLowRank
from deltaw.analysis.measures.blocks import Axis, Blocks
from deltaw.analysis.measures.built import Built, built_sums
from deltaw.analysis.measures.built_on_device import sums_on_device
from deltaw.analysis.measures.change import Change, PairChanges, changes
from deltaw.analysis.records.storage.mapped import mapping_of, next_number, release
from deltaw.analysis.tables.device import CPU, placed
from deltaw.analysis.tables.run import Run, Step
from deltaw.analysis.tables.streamed import at_once, streamed_sums

T = TypeVar("T")
Stops = Sequence[tuple[Step, int]]  # (from, to); where a table has steps and no pairs, the first is not looked at
AT_ONCE = 4  # matrices in memory
STEPS_AT_ONCE = 17  # whose W' are built in one pass over W₀


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
        device: Where they are measured.
    """

    def __init__(self, run: Run, module: str, stops: Stops, device: str = CPU) -> None:
        steps = [step for stop in stops for step in stop if step is not None]
        self.run, self.module, self.position = placed(run, device, module, steps), module, 0
        self._device = device
        self.needs_base = False  # a pair of steps was found to need W₀, and there is none
        self.stops = stops
        self._uses: defaultdict[Step, list[int]] = defaultdict(list)  # the positions of the stops that need a step
        for position, stop in enumerate(stops):
            for step in stop:
                self._uses[step].append(position)
        self._weights: dict[Step, Tensor] = {}
        self._mapped: set[Step] = set()  # those of the weights that lie in files
        self._compared: dict[tuple[Step, int], tuple[PairChanges, int]] = {}  # those of this stop and of next ones
        self._made: dict[str, Any] = {}
        self._forms: dict[int, ScaledLowRank] = {}

    def weight(self, step: Step) -> Tensor:
        """Return W' at a step of the present stop."""
        if step not in self._weights:
            self._drop(1)
            number = next_number()
            # float64 where W' is rebuilt, so that its rounding does not stand in for a change.
            dtype = torch.float64 if self.run.source.rebuilt(self.module) else None
            self._weights[step] = self.run.weight(self.module, step, dtype)
            mapping = mapping_of(self._weights[step])
            if mapping is not None and mapping.number > number:
                self._mapped.add(step)
        return self._weights[step]

    def changes(
        self, axes: Sequence[Axis], allow_nonfinite: bool, blocks: Mapping[Axis, Blocks] | None = None
    ) -> dict[Axis, Change]:
        """Return the change of the present pair of steps along some axes."""
        options: dict[str, Any] = {"blocks": blocks, "allow_nonfinite": allow_nonfinite}
        step_from, step = pair = self.stops[self.position]
        if self._has_form(step):
            if pair not in self._compared:
                self._sum_next()
            compared, place = self._compared[pair]
            return compared.of(place, axes, **options)
        if self._device != CPU:
            return changes(self.weight(step_from), self.weight(step), axes, **options)
        if pair not in self._compared:
            self._compare_next()
        compared, place = self._compared[pair]
        change = compared.of(place, axes, **options)
        if compared.looked(place):  # a vector done again has brought in pages of the whole matrix
            for at in self._mapped.intersection(pair):
                release(self._weights[at])
        return change

    def once(self, name: str, make: Callable[[], T]) -> T:
        """Return what ``make`` returns, made once a module."""
        if name not in self._made:
            self._made[name] = make()
        found: T = self._made[name]
        return found

    def _base(self) -> Tensor:
        """Return W₀ as the compiled loop reads it."""

        def read() -> Tensor:
            base = self.run.base(self.module)
            return base.to(WIDENED.get(base.dtype, base.dtype)).contiguous()

        return self.once("base", read)

    def _has_form(self, step: int) -> bool:
        """Return whether W' is made of ρ, γ, U and V: at all steps of the module, or at none."""
        if not self.run.source.rebuilt(self.module):
            return False
        return self.once("has form", lambda: self._read_forms([step]))

    def _read_forms(self, steps: Sequence[int]) -> bool:
        """Read what W' is made of at some steps, and return whether it is there."""
        missing = [step for step in steps if step not in self._forms]
        found = self.run.source.scaled_low_ranks(self.module, missing, self._base()) if missing else []
        self._forms.update(zip(missing, found or [], strict=found is not None))
        return found is not None

    def _built(self, step: Step) -> Tensor | Built:
        return self._base() if step is None else Built(self._base(), self._forms[step])

    def _sum_next(self) -> None:
        """Make the sums of this stop and of the next ones, up to a number of steps."""
        pairs: list[tuple[Step, int]] = []
        steps: list[int] = []
        for pair in self.stops[self.position :]:
            new = [step for step in dict.fromkeys(pair) if step is not None and step not in steps]
            if pairs and (len(steps) + len(new) > STEPS_AT_ONCE or len(pairs) == 2 * STEPS_AT_ONCE):
                break
            pairs.append(pair)
            steps += new
        self._forms = {step: form for step, form in self._forms.items() if step in steps}
        self._read_forms(steps)
        forms = [self._forms[step] for step in steps]
        places = {None: -1} | {step: place for place, step in enumerate(steps)}
        base = self._base()
        sums = built_sums if base.device.type == CPU else sums_on_device
        found = sums(base, forms, [(places[a], places[b]) for a, b in pairs])
        compared = PairChanges([(self._built(a), self._built(b)) for a, b in pairs], found)
        self._compared = {pair: (compared, place) for place, pair in enumerate(pairs)}

    def _compare_next(self) -> None:
        """Compare the pair of this stop and those of the next ones, up to a number of matrices."""
        self._compared = {}  # before others are read: it holds matrices
        self._drop(0)
        held: dict[Step, Tensor] = {}
        pairs: list[tuple[Step, int]] = []
        broken: set[Step] = set()
        for pair in self.stops[self.position :]:
            missing = [step for step in dict.fromkeys(pair) if step not in self._weights]
            if pairs and len(self._weights) + len(missing) > self._room():
                break
            if broken.isdisjoint(pair):
                try:
                    held |= {step: self.weight(step) for step in pair}
                    pairs.append(pair)
                except RecordError:
                    if not pairs:
                        raise
                    broken |= set(missing)  # which is an error of that stop, not of this one
        try:
            self._compare(pairs, held)
        except RecordError:  # perhaps the file of another stop was cut meanwhile
            self._compare(pairs[:1], held)

    def _compare(self, pairs: Sequence[tuple[Step, int]], held: Mapping[Step, Tensor]) -> None:
        places = {step: place for place, step in enumerate(dict.fromkeys(step for pair in pairs for step in pair))}
        after = self.position + len(pairs)
        found = streamed_sums(
            [held[step] for step in places],
            [step in self._mapped for step in places],
            [(places[a], places[b]) for a, b in pairs],
            [place for step, place in places.items() if self._uses[step][-1] >= after and self._room() <= AT_ONCE],
        )
        compared = PairChanges([(held[a], held[b]) for a, b in pairs], found)
        self._compared = {pair: (compared, place) for place, pair in enumerate(pairs)}

    def _room(self) -> int:
        """Return how many matrices may be held: those in files take no memory."""
        own = len(self._weights) - len(self._mapped)
        if own > 1 or not self._weights:
            return AT_ONCE
        return self.once("at once", lambda: max(at_once(next(iter(self._weights.values()))), self._needed()))

    def _needed(self) -> int:
        """Return how many matrices have to be held so that none is read twice, as far as that many may be."""
        held: set[Step] = set()
        most = 0
        for position, pair in enumerate(self.stops):
            held |= set(pair)
            most = max(most, len(held))
            held -= {step for step in held if self._uses[step][-1] == position}
        return min(most, AT_ONCE)

    def _drop(self, more: int) -> None:
        """Let go of what no later stop needs, and of what is needed last until there is room for some more."""
        later = self._next_uses()
        for step in [step for step in self._weights if step not in later]:
            del self._weights[step]
        while len(self._weights) + more > max(self._room(), 2):
            del self._weights[max(self._weights, key=later.__getitem__)]
        self._mapped &= self._weights.keys()

    def _next_uses(self) -> dict[Step, int]:
        """Return by step, of those whose matrix is here, the position of the next stop that needs it, this included."""
        found: dict[Step, int] = {}
        for step in self._weights:
            uses = self._uses[step]
            place = bisect_left(uses, self.position)
            if place < len(uses):
                found[step] = uses[place]
        return found
