"""The one walk over the modules and steps of runs that every table is made by.

It chooses the modules and the steps, keeps what is used again (a weight for the next pair, what was made of a base),
says in an error where it happened, and leaves out a module whose W₀ is not known, so that the others go on.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
import pandas as pd

from deltaw.adapters.checks import whole_number
from deltaw.adapters.errors import DeltawWarning, NonFiniteError, OptionError, RecordError, ShapeError
from deltaw.adapters.patterns import matching
from deltaw.analysis.measures.change import Axis, Change
from deltaw.analysis.progress import progress as shown
from deltaw.analysis.records.foreign.base import BaseError
from deltaw.analysis.tables.frame import ABOUT, frame_of
from deltaw.analysis.tables.kept.keeper import Keeper, keeping
from deltaw.analysis.tables.one_pass import OnePass, Stops, in_one_pass
from deltaw.analysis.tables.run import PairKind, Pairs, Run, Step, Steps
from deltaw.analysis.tables.work import HERE, Work

T = TypeVar("T")
PAIRS = ("consecutive", "initial", "base")


class Walk:
    """All stops of all modules of some runs, a module's stops in a row.

    Arguments:
        runs: Opened runs.
        what: What is computed, for the progress bar.
        stops: A run's stops, as `at_steps` and `at_pairs` make them.
        modules: Glob patterns over a run's modules, ``None`` for all; or a function from a run to its modules.
        unit: What a stop is, for the progress bar.
        progress: Show it.
        work: Where `rows` and `measured` do it: in this process, or in others.

    Raises:
        OptionError: No run is given.

    What is measured is a function of a stop, of a module of this package or of another, so that other processes can
    call it (``Work``):

        def norm(stop: Stop) -> list[dict[str, Any]]:
            update = stop.run.update(stop.module, stop.step)
            return [stop.labels | {"step": stop.step, "norm": float(update.norm())}]

        walk = Walk(runs, "norms", at_steps(steps), modules, work=work)
        return walk.frame(walk.rows(norm), [*LABELS, "step", "norm"])

    What needs more than that iterates over the stops. Every stop is a context: what is done for it stands in a ``with``
    statement.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        what: str,
        stops: Callable[[Run], Stops],
        modules: Sequence[str] | Callable[[Run], Sequence[str]] | None = None,
        *,
        unit: str = "matrix",
        progress: bool = False,
        work: Work = HERE,
    ) -> None:
        self.runs, self.work = some(runs), work
        self._what, self._stops, self._modules, self._unit, self._progress = what, stops, modules, unit, progress
        self._left_out: list[tuple[Run, dict[str, RecordError], set[str]]] = []  # why, and the modules that have rows
        self._no_rows: list[str] = []

    def __iter__(self) -> Iterator["Stop"]:
        for run in self.runs:
            for stop in self._stops_of(run, None):
                if isinstance(stop, Stop):
                    yield stop

    def _stops_of(self, run: Run, keeper: Keeper | None) -> Iterator["Stop | Found"]:
        """Yield a run's stops in order, in the place of those that were measured before what was found."""
        choose = self._modules
        modules = choose(run) if callable(choose) else chosen_modules(run.modules, choose)
        stops = self._stops(run)
        if not stops:
            self._no_rows.append(no_stops(run))
        left_out: dict[str, RecordError] = {}
        measured: set[str] = set()
        self._left_out.append((run, left_out, measured))
        work = [(module, position) for module in modules for position in range(len(stops))]
        for module, position in shown(work, f"{self._what} of {run.name}", self._unit, self._progress):
            if position == 0:
                known = {} if keeper is None else keeper.find(module, stops)
                one_pass, done = OnePass(run, module, [stop for stop in stops if stop not in known]), 0
            stop = stops[position]
            if stop in known:
                measured.add(module)
                yield Found(run, module, *stop, known[stop])
                continue
            # A pair of steps may do without W₀, where whole matrices were recorded.
            if module not in left_out or (stop[0] is not None and not one_pass.needs_base):
                one_pass.position = done
                yield Stop(run, module, *stop, one_pass, left_out, measured)
            done += 1
        if left_out and not measured:
            raise next(iter(left_out.values()))

    def measured(self, measure: "Measure") -> Iterator["Found"]:
        """Yield what a function returns for every stop, in order; a stop that is left out is passed over."""
        for run in self.runs:
            with keeping(run, measure, self.work.device, self.work.cache) as keeper:
                for stop in self._stops_of(run, keeper):
                    if isinstance(stop, Found):
                        yield stop
                        continue
                    with stop:
                        rows = measure(stop)
                        if keeper is not None:
                            keeper.add(stop.module, (stop.step_from, stop.step), rows)
                        yield Found(run, stop.module, stop.step_from, stop.step, rows)

    def rows(self, measure: "Measure") -> list[dict[str, Any]]:
        """Return what a function returns for all stops, in order."""
        return [row for found in self.measured(measure) for row in found.rows]

    def frame(self, blocks: Sequence[dict[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
        """Return the table. ``attrs["left_out"]`` and ``attrs["no_rows"]`` say what it lacks; it warns of the first."""
        frame = frame_of(blocks, columns)
        left_out = [note for found in self._left_out for note in _left_out(*found)]
        frame.attrs |= {about: notes for about, notes in zip(ABOUT, (left_out, self._no_rows), strict=True) if notes}
        for note in left_out:
            warnings.warn(note, DeltawWarning, stacklevel=3)
        return frame


class Stop:
    """A module at a step, or at a pair of steps."""

    def __init__(
        self,
        run: Run,
        module: str,
        step_from: Step,
        step: int,
        kept: OnePass,
        left_out: dict[str, RecordError],
        measured: set[str],
    ) -> None:
        self.run, self.module, self.step_from, self.step = run, module, step_from, step
        self.where = f"at step {step}"  # for errors
        self.weight, self.once, self._kept = kept.weight, kept.once, kept
        self._left_out, self._measured = left_out, measured

    @property
    def labels(self) -> dict[str, Any]:
        """The first columns: run, method, module, layer, kind."""
        return self.once("labels", lambda: self.run.labels(self.module))

    def changes(self, axes: Sequence[Axis], *, allow_nonfinite: bool = False) -> dict[Axis, Change]:
        """Return the change of the pair along some axes."""
        return self._kept.changes(axes, allow_nonfinite)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        if isinstance(error, BaseError):
            self._left_out.setdefault(self.module, error)
            self._kept.needs_base |= self.step_from is not None
            return True
        if error is None:
            self._measured.add(self.module)
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
    rows: list[dict[str, Any]]


Measure = Callable[[Stop], list[dict[str, Any]]]


def at_steps(steps: Steps) -> Callable[[Run], Stops]:
    """Return a run's stops for these steps, "last" for its last, ``None`` for all."""
    return lambda run: [(None, step) for step in chosen_steps(run, steps)]


def at_pairs(pairs: Pairs) -> Callable[[Run], Stops]:
    """Return a run's stops for these pairs, in the order of one pass; see `chosen_pairs`."""
    return lambda run: in_one_pass(chosen_pairs(run, pairs))


def chosen_steps(run: Run, steps: Steps) -> list[int]:
    """Return the steps that are meant.

    Raises:
        OptionError: It is none of what can be given, or nothing was recorded and the last is asked for.
    """
    if steps is None:
        return run.steps
    if isinstance(steps, str) and steps == "last":
        if not run.steps:
            raise OptionError(f"{run.source.where}: no step was recorded")
        return run.steps[-1:]
    return [
        whole_number("a step", step, 0)
        for step in _several(steps, f"steps is {steps!r}; give a list of steps, 'last', or None for all")
    ]


def chosen_pairs(run: Run, pairs: Pairs) -> list[tuple[Step, int]]:
    """Return the pairs of steps that are meant; ``None`` means consecutive, and base where there is one checkpoint.

    Raises:
        OptionError: There are no such pairs.
    """
    if pairs is None:
        pairs = "consecutive" if len(run.steps) > 1 else "base"
    first, *rest = run.steps or [0]
    named: dict[str, list[tuple[Step, int]]] = {
        "consecutive": list(pairwise(run.steps)),
        "initial": [(first, step) for step in rest],
        "base": [(None, step) for step in run.steps],
    }
    if isinstance(pairs, str) and pairs in named:
        return named[pairs]
    wrong = (
        f"pairs is {pairs!r}; choose one of {', '.join(PAIRS)}, or give a list of pairs of steps (from, to), "
        "with None for the base"
    )
    given = [_several(pair, wrong) for pair in _several(pairs, wrong)]
    if any(len(pair) != 2 for pair in given):
        raise OptionError(wrong)
    return [
        (None if start is None else whole_number("a step", start, 0, also="None"), whole_number("a step", end, 0))
        for start, end in given
    ]


def pairs_by_kind(run: Run, pairs: Pairs | Sequence[PairKind]) -> dict[str | None, list[tuple[Step, int]]]:
    """Return the pairs of steps of every kind that is named, or under ``None`` those of `chosen_pairs`."""
    if not isinstance(pairs, str) and isinstance(pairs, Sequence) and pairs and all(isinstance(p, str) for p in pairs):
        return {str(kind): chosen_pairs(run, kind) for kind in pairs}  # type: ignore[arg-type]
    return {None: chosen_pairs(run, pairs)}  # type: ignore[arg-type]


def _several(values: object, wrong: str) -> list[Any]:
    """Return a list or an array as a list; of anything else, a text too, say what is wrong."""
    if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray):
        raise OptionError(wrong)
    return list(values)


def chosen_modules(modules: Sequence[str], patterns: Sequence[str] | None) -> list[str]:
    """Return the modules that fit one of the glob patterns; ``None`` for all.

    Raises:
        OptionError: The patterns are no texts.
        TargetError: A pattern fits none.
    """
    if patterns is None:
        return list(modules)
    given = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(given, Sequence) or not all(isinstance(pattern, str) for pattern in given):
        raise OptionError(f"modules is {patterns!r}; give glob patterns over module names, or None for all")
    return matching(list(modules), given, "module")


def modules_of_kind(run: Run, kind: str | None, patterns: Sequence[str] | None) -> list[str]:
    """Return the modules that fit the patterns, of a kind if there are any of it: a figure names those there are."""
    chosen = chosen_modules(run.modules, patterns or None)
    return [name for name in chosen if kind is None or run.labels(name)["kind"] == kind] or chosen


def common_modules(first: Run, second: Run, patterns: Sequence[str] | None) -> list[str]:
    """Return the modules that both runs have.

    Raises:
        OptionError: There is none.
        ShapeError: One has another shape in the other run.
    """
    there = set(second.modules)
    common = [module for module in first.modules if module in there]
    if not common:
        listed = " and ".join(f"{run.source.where} has {', '.join(run.modules[:3])}, …" for run in (first, second))
        raise OptionError(f"the runs have no module in common: {listed}; pass runs of one model")
    return chosen_modules(common, patterns)


def moved_steps(run: Run, at_most: int) -> list[int]:
    """Return the recorded steps, or so many evenly spread; not step 0, where nothing has moved."""
    moved = [step for step in run.steps if step > 0] or run.steps
    return spread_out(moved, at_most) if at_most > 1 else moved[-1:]


def spread_out(values: Sequence[int], count: int) -> list[int]:
    """Return at most ``count`` of sorted values, evenly spread, the first and the last among them.

    Example:
        >>> spread_out([0, 1, 2, 3, 4, 5, 6], 3), spread_out([4, 5], 3)
        ([0, 3, 6], [4, 5])
    """
    if len(values) <= count:
        return list(values)
    return [values[round(place)] for place in np.linspace(0, len(values) - 1, count)]


def no_stops(run: Run) -> str:
    """Return why a run has no pair or step to show, and what to ask for."""
    where = f"{run.source.where}: no row, as"
    if not run.steps:
        return f"{where} no step was recorded; train on, or leave this run out"
    if len(run.steps) == 1:
        return (
            f"{where} there is one checkpoint, that of step {run.steps[0]}, and nothing to compare it with but the "
            'base; ask for the pairs "base" (at the command line --pairs base)'
        )
    return f"{where} no pair of steps is asked for; there are {', '.join(map(str, run.steps[:8]))}"


def some(runs: Sequence[T]) -> Sequence[T]:
    """Return the runs.

    Raises:
        OptionError: There is none, or it is no list of runs.
    """
    if isinstance(runs, str) or not isinstance(runs, Sequence):
        raise OptionError(f"runs is a {type(runs).__name__}; pass a list of opened runs, as open_runs returns")
    for run in runs:
        if not hasattr(run, "source"):
            raise OptionError(f"a run is a {type(run).__name__}; pass opened runs, as open_runs returns")
    if not runs:
        raise OptionError("no run is given; pass a list of one or more")
    return runs


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


def _left_out(run: Run, modules: dict[str, RecordError], measured: set[str]) -> Iterator[str]:
    """Yield what is said of modules that are left out, and of those of which only the pairs with W₀ are."""
    for partly in (False, True):
        names = [name for name in modules if (name in measured) == partly]
        if names:
            listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
            many = "module is" if len(names) == 1 else "modules are"
            what = f"pairs with W₀ are left out of {len(names)} modules" if partly else f"{len(names)} {many} left out"
            yield f"{run.source.where}: {what}, {listed}: {modules[names[0]]}"
