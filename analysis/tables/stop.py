"""A stop of a walk: a module at a step, or at a pair of steps, and what was measured there."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from threading import RLock
from types import TracebackType
from typing import Any, Self

from deltaw.adapters.errors import DeltawError, NonFiniteError, OptionError, ShapeError
from deltaw.analysis.measures.blocks import Axis, Blocks, checked_axes
from deltaw.analysis.measures.change import Change
from deltaw.analysis.records.foreign.base import BaseError
from deltaw.analysis.tables.blocks import PARTS, Counts, blocks_of
from deltaw.analysis.tables.one_pass import OnePass, Stops
from deltaw.analysis.tables.run import Run, Step


@dataclass(eq=False)
class Plan:
    """What is measured of a run: all stops of all modules.

    Attributes:
        left_out: Why a module is left out, or some of its stops.
        measured: The modules of which something was measured.
        reading: Held by who reads of the run: a source reads one thing at a time.
    """

    run: Run
    modules: Sequence[str]
    stops: Stops
    left_out: dict[str, DeltawError] = field(default_factory=dict)
    measured: set[str] = field(default_factory=set)
    reading: AbstractContextManager[Any] = field(default_factory=RLock)

    def stop(self, one_pass: OnePass, position: int) -> "Stop | None":
        """Return a stop of a module; ``None`` where it is left out, as it needs W₀, which is not known."""
        # A pair of steps may do without W₀, where whole matrices were recorded.
        if one_pass.module in self.left_out and (one_pass.stops[position][0] is None or one_pass.needs_base):
            return None
        one_pass.position = position
        return Stop(one_pass, self)

    def check(self) -> None:
        """Raise where all is left out."""
        if self.left_out and not self.measured:
            raise next(iter(self.left_out.values()))


class Stop:
    """A module at a step, or at a pair of steps."""

    def __init__(self, kept: OnePass, plan: "Plan") -> None:
        self.run, self.module = kept.run, kept.module
        self.step_from, self.step = kept.stops[kept.position]
        self.where = f"at step {self.step}"  # for errors
        self.weight, self.once, self._kept, self._plan = kept.weight, kept.once, kept, plan
        self.reading = plan.reading

    @property
    def labels(self) -> dict[str, Any]:
        """The first columns: run, method, module, layer, kind."""
        return self.once("labels", lambda: self.run.labels(self.module))

    def changes(self, axes: Sequence[Axis], *, heads: Counts = (), allow_nonfinite: bool = False) -> dict[Axis, Change]:
        """Return the change of the pair along some axes; without "head", "expert" and "entry" where there is none."""
        wanted, blocks = checked_axes(axes), self.blocks(axes, heads)
        there = [axis for axis in wanted if axis in blocks or axis not in PARTS]
        return self._kept.changes(there, allow_nonfinite, blocks) if there else {}

    def blocks(self, axes: Sequence[Axis], heads: Counts = ()) -> dict[Axis, Blocks]:
        """Return the module's heads, experts, or a convolution's inputs, as far as they are among the axes."""
        return self.once(f"blocks {axes} {heads}", lambda: blocks_of(self.run, self.module, axes, heads))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        if isinstance(error, BaseError):
            self._plan.left_out.setdefault(self.module, error)
            self._kept.needs_base |= self.step_from is not None
            return True
        if error is None:
            self._plan.measured.add(self.module)
        if isinstance(error, NonFiniteError | OptionError | ShapeError):
            _locate(error, self.run, self.module, self.where)
        return False


@dataclass(frozen=True, eq=False)
class Found:
    """What was measured at a stop: rows or blocks of rows of a table, see ``frame_of``."""

    run: Run
    module: str
    step_from: Step
    step: int
    rows: "Rows"


Rows = list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Later:
    """Rows of a stop that are still to be computed: perhaps by another thread, while the next stop is read.

    Arguments:
        make: Computes them. What it reads of the run, it reads while it holds the stop's ``reading``.
        size: About how many bytes that takes.
    """

    make: Callable[[], Rows]
    size: int


Measure = Callable[[Stop], Rows | Later]


@contextmanager
def located(run: Run, module: str, where: str) -> Iterator[None]:
    """Say in an error of a measure where it happened; those of the run itself say so already."""
    try:
        yield
    except (NonFiniteError, OptionError, ShapeError) as error:
        _locate(error, run, module, where)
        raise


def _locate(error: NonFiniteError | OptionError | ShapeError, run: Run, module: str, where: str) -> None:
    if not str(error).startswith(run.source.where):
        raise type(error)(f"{run.source.where}: {module}, {where}: {error}") from None
