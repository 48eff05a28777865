"""The one walk over the modules and steps of runs that every table is made by.

It chooses the modules and the steps, keeps what is used again (a weight for the next pair, what was made of a base),
says in an error where it happened, and leaves out a module whose W₀ is not known, so that the others go on.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch

from deltaw.adapters.checks import whole_number
from deltaw.adapters.errors import DeltawWarning, OptionError
from deltaw.adapters.patterns import matching
from deltaw.analysis.measures.blocks import Axis
from deltaw.analysis.progress import progress as shown
from deltaw.analysis.tables.ahead import measured_ahead
from deltaw.analysis.tables.blocks import PARTS, Counts, nothing_along
from deltaw.analysis.tables.blocks import left_out as unknown_heads
from deltaw.analysis.tables.device import CPU, named_memory
from deltaw.analysis.tables.elsewhere import measured_elsewhere
from deltaw.analysis.tables.frame import ABOUT, frame_of
from deltaw.analysis.tables.kept.keeper import Keeper, keeping
from deltaw.analysis.tables.one_pass import OnePass, Stops, in_one_pass
from deltaw.analysis.tables.run import PairKind, Pairs, Run, Step, Steps
from deltaw.analysis.tables.stop import Found, Measure, Plan, Stop
from deltaw.analysis.tables.units import memory_of
from deltaw.analysis.tables.work import HERE, Work
from deltaw.analysis.workers.lost import LostError

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
        self._plans: list[Plan] = []
        self._no_rows: list[str] = []

    def __iter__(self) -> Iterator[Stop]:
        for plan in self._planned():
            for stop in self._stops_of(plan, None):
                if isinstance(stop, Stop):
                    yield stop

    def _planned(self) -> list[Plan]:
        """Choose the modules and stops of all runs, so that a wrong choice is said before anything is measured."""
        choose = self._modules
        for run in self.runs:
            modules = choose(run) if callable(choose) else chosen_modules(run.modules, choose)
            self._plans.append(Plan(run, modules, self._stops(run)))
            if not self._plans[-1].stops:
                self._no_rows.append(no_stops(run))
        return self._plans

    def _stops_of(self, plan: Plan, keeper: Keeper | None) -> Iterator[Stop | Found]:
        """Yield a run's stops in order, in the place of those that were measured before what was found."""
        run, stops = plan.run, plan.stops
        work = [(module, position) for module in plan.modules for position in range(len(stops))]
        for module, position in shown(work, f"{self._what} of {run.name}", self._unit, self._progress):
            if position == 0:
                known = {} if keeper is None else keeper.find(module, stops)
                one_pass, done = (
                    OnePass(run, module, [stop for stop in stops if stop not in known], self.work.device),
                    0,
                )
            if stops[position] in known:
                plan.measured.add(module)
                yield Found(run, module, *stops[position], known[stops[position]])
                continue
            stop = plan.stop(one_pass, done)
            if stop is not None:
                yield stop
            done += 1
        plan.check()

    def measured(self, measure: Measure) -> Iterator[Found]:
        """Yield what a function returns for every stop, in order; a stop that is left out is passed over."""
        plans = self._planned()
        if self.work.elsewhere:
            yield from measured_elsewhere(plans, measure, self.work, self._what, self._unit, progress=self._progress)
            return
        for plan in plans:
            with keeping(plan.run, measure, self.work.device, self.work.cache) as keeper:
                threads = torch.get_num_threads() if self.work.device == CPU else 1
                stops = self._stops_of(plan, keeper)
                for found in measured_ahead(plan, stops, measure, partial(_named_memory, plan.run), threads):
                    if isinstance(found, Found):
                        yield found
                        continue
                    stop, rows = found
                    if keeper is not None:
                        with plan.reading:
                            keeper.add(stop.module, (stop.step_from, stop.step), rows)
                    yield Found(plan.run, stop.module, stop.step_from, stop.step, rows)

    def rows(self, measure: Measure) -> list[dict[str, Any]]:
        """Return what a function returns for all stops, in order."""
        return [row for found in self.measured(measure) for row in found.rows]

    def frame(
        self,
        blocks: Sequence[dict[str, Any]],
        columns: Sequence[str],
        *,
        axes: Sequence[Axis] = (),
        heads: Counts = (),
    ) -> pd.DataFrame:
        """Return the table. ``attrs["left_out"]`` and ``attrs["no_rows"]`` say what it lacks; it warns of the first.

        Arguments:
            blocks, columns: As in `frame_of`.
            axes, heads: Of a table of changes.
        """
        frame = frame_of(blocks, columns)
        left_out = [note for plan in self._plans for note in _left_out(plan)]
        there = {block.get("run") for block in blocks}  # two runs against each other have other columns
        for plan in self._plans:
            unknown = unknown_heads(plan.run, plan.modules, axes, heads)
            if axes and set(PARTS).issuperset(axes) and plan.stops and plan.run.name not in there:
                self._no_rows += unknown or [nothing_along(plan.run, axes)]
            else:
                left_out += unknown
        frame.attrs |= {about: notes for about, notes in zip(ABOUT, (left_out, self._no_rows), strict=True) if notes}
        for note in left_out:
            warnings.warn(note, DeltawWarning, stacklevel=3)
        return frame


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
    chosen = [
        whole_number("a step", step, 0)
        for step in _several(steps, f"steps is {steps!r}; give a list of steps, 'last', or None for all")
    ]
    for step in chosen:  # said before the work begins
        if step not in run.steps and run.modules:
            run.source.check(run.modules[0], step)
    return chosen


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
        raise OptionError(
            f"the runs have no module in common: {listed}; pass runs that adapt the same modules of one model"
        )
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


def _named_memory(run: Run, stop: Stop) -> AbstractContextManager[None]:
    return named_memory(run.source.where, stop.module, run.shape(stop.module))


def _left_out(plan: Plan) -> Iterator[str]:
    """Yield what is said of modules that are left out, of those of which only the pairs with W₀ are, and of lost ones.

    A process that measured a lost one had not the memory.
    """
    where, lost = plan.run.source.where, [name for name, error in plan.left_out.items() if isinstance(error, LostError)]
    for partly in (False, True):
        names = [name for name in plan.left_out if (name in plan.measured) == partly and name not in lost]
        if names:
            many = "module is" if len(names) == 1 else "modules are"
            what = f"pairs with W₀ are left out of {len(names)} modules" if partly else f"{len(names)} {many} left out"
            yield f"{where}: {what}, {_listed(names)}: {plan.left_out[names[0]]}"
    if lost:
        many = "module is" if len(lost) == 1 else "modules are"
        sized = _listed([f"{name} {plan.run.shape(name)}" for name in lost])
        needed = max(memory_of(plan.run.shape(name)) for name in lost)
        yield (
            f"{where}: {len(lost)} {many} left out, all or in part, {sized}: {plan.left_out[lost[0]]}; to "
            f"measure it, a process needs about {needed / 1e9:.2g} GB. Where memory ran out, take fewer jobs, or a "
            "machine with more of it"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
