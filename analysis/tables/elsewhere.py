"""Measuring in other processes: units are handed out, and what comes back is yielded in the walk's order."""

import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from typing import Any

import torch

from deltaw.adapters.errors import DeltawWarning
from deltaw.analysis.progress import Progress
from deltaw.analysis.progress import progress as shown
from deltaw.analysis.tables.kept.keeper import Keeper, keeping
from deltaw.analysis.tables.kept.keys import machine
from deltaw.analysis.tables.one_pass import Stops
from deltaw.analysis.tables.stop import Found, Measure, Plan
from deltaw.analysis.tables.units import Measured, Shared, Unit, measured_unit, units_of
from deltaw.analysis.tables.work import Work
from deltaw.analysis.workers.engine import handed_to_dask
from deltaw.analysis.workers.lost import LostError
from deltaw.analysis.workers.processes import outcomes

MANY = 64  # processes that an engine elsewhere is taken to have: how many, shows only when it is asked
Rows = list[dict[str, Any]]


def measured_elsewhere(
    plans: Sequence[Plan], measure: Measure, work: Work, what: str, unit: str, *, progress: bool
) -> Iterator[Found]:
    """Yield what a function returns for every stop of some plans, in order, measured by other processes.

    An error is raised when its turn comes, so that it is the one that a single process would have met first. What a
    process ended at, twice, is left out, and the rest goes on.

    Arguments:
        plans: Of the runs; why something is left out is noted in them.
        measure: A function of a stop, which can be pickled.
        work: Which processes.
        what, unit, progress: For the progress bar.
    """
    with ExitStack() as stack:
        # Which GPU the engine's machines have, and so which digits, is not known here.
        cache = work.cache and (work.address is None or work.device == "cpu")
        keepers = [stack.enter_context(keeping(plan.run, measure, work.device, cache)) for plan in plans]
        known = [
            {module: {} if keeper is None else keeper.find(module, plan.stops) for module in plan.modules}
            for plan, keeper in zip(plans, keepers, strict=True)
        ]
        todo: list[dict[str, Stops]] = [
            {module: [stop for stop in plan.stops if stop not in found] for module, found in of_run.items()}
            for plan, of_run in zip(plans, known, strict=True)
        ]
        units = units_of(plans, todo, work.jobs if work.address is None else MANY)
        whose = plans[0].run.name if len(plans) == 1 else f"{len(plans)} runs"
        total, missing = (sum(len(p.modules) * len(p.stops) for p in plans), sum(len(one.stops) for one in units))
        bar = stack.enter_context(shown(total, f"{what} of {whose}", unit, progress, initial=total - missing))
        results = _Results(units, keepers, bar)
        shared = Shared([plan.run for plan in plans], measure, work.device)
        results.arrivals = stack.enter_context(closing(_handed_out(results.waiting(), shared, work)))
        for number, plan in enumerate(plans):
            for module in plan.modules:
                kept, rows = known[number][module], results.rows(plan, number, module)
                for stop in plan.stops:
                    found = kept[stop] if stop in kept else next(rows)
                    if found is not None:
                        plan.measured.add(module)
                        yield Found(plan.run, module, *stop, found)
            plan.check()


def _handed_out(units: Iterator[Unit], shared: Shared, work: Work) -> Generator[tuple[int, Any], None, None]:
    """Yield the number of each unit and what it came to, in the order in which they are done."""
    tasks = ((unit.number, partial(measured_unit, unit)) for unit in units)
    if work.engine is not None:
        return handed_to_dask(tasks, shared=shared, address=work.address, jobs=work.jobs)
    threads = max(1, torch.get_num_threads() // work.jobs)
    return outcomes(tasks, work.jobs, shared={"shared": shared}, threads=threads, again=True, stay=True)


class _Results:
    """What the units came to, kept until their turn."""

    arrivals: Iterator[tuple[int, Any]]

    def __init__(self, units: Sequence[Unit], keepers: Sequence[Keeper | None], bar: Progress[Any]) -> None:
        self._units, self._keepers, self._bar = units, keepers, bar
        self._there: dict[int, Measured | Exception] = {}
        self._machine = machine()  # what another one measures may differ in the last digit: it is not kept
        self._said = False
        self._lost: set[tuple[int, str]] = set()
        self._of_module: dict[tuple[int, str], list[Unit]] = {}
        for unit in units:
            self._of_module.setdefault((unit.run, unit.module), []).append(unit)

    def waiting(self) -> Iterator[Unit]:
        """Yield the units to be measured; no more of a module that a process has ended at."""
        for unit in self._units:
            if (unit.run, unit.module) not in self._lost:
                yield unit

    def rows(self, plan: Plan, run: int, module: str) -> Iterator[Rows | None]:
        """Yield the rows of a module's units, a stop's at a time; ``None`` for what is left out."""
        for unit in self._of_module.get((run, module), []):
            lost = isinstance(plan.left_out.get(module), LostError)
            found = None if lost else self._result(unit)
            if isinstance(found, Measured):
                for stop, rows in zip(unit.stops, found.rows, strict=True):
                    if rows is None and found.left_out is not None:
                        plan.left_out.setdefault(module, found.left_out)
                    # What needs W₀ is left out from where it was first missed, as in one process.
                    yield None if module in plan.left_out and stop[0] is None else rows
            elif isinstance(found, LostError):
                plan.left_out[module] = found
            elif found is not None:
                raise found
            if not isinstance(found, Measured):
                yield from [None] * len(unit.stops)

    def _result(self, unit: Unit) -> Measured | Exception:
        while unit.number not in self._there:
            number, found = next(self.arrivals)
            self._there[number] = found
            self._arrived(self._units[number], found)
        return self._there.pop(unit.number)

    def _arrived(self, unit: Unit, found: Measured | Exception) -> None:
        self._bar.update(len(unit.stops))
        keeper = self._keepers[unit.run]
        if isinstance(found, LostError):
            self._lost.add((unit.run, unit.module))
        elif isinstance(found, Measured) and found.machine != self._machine:
            self._say_once()
        elif isinstance(found, Measured) and keeper is not None:
            for stop, rows in zip(unit.stops, found.rows, strict=True):
                if rows is not None:
                    keeper.add(unit.module, stop, rows)

    def _say_once(self) -> None:
        if not self._said:
            self._said = True
            warnings.warn(
                "some of it is measured where the processor, or the code or version of deltaw, torch, NumPy or numba "
                "is another than here: the last digits may be others, and that part is not kept for the next time",
                DeltawWarning,
                stacklevel=2,
            )
