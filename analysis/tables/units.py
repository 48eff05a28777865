"""Units of work: some stops of a module, in a row, which any process measures with the same result to the bit."""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deltaw.adapters.errors import DeltawError, OptionError
from deltaw.analysis.tables.device import checked_device, named_memory
from deltaw.analysis.tables.kept.keys import machine
from deltaw.analysis.tables.one_pass import AT_ONCE, OnePass, Stops
from deltaw.analysis.tables.run import Run
from deltaw.analysis.tables.stop import Later, Measure, Plan
from deltaw.analysis.workers.lost import LostError, wants_memory

SHARE = 4  # units of a process that what is left would make: large ones first, small ones at the end
AT_LEAST = 4  # stops of a unit: a pass builds several steps at once, and a matrix is read anew for every unit
LARGE = 2**34  # bytes of matrices in a unit: seconds of work
PROCESS = 4e8  # bytes of a process with torch and pandas


@dataclass(frozen=True)
class Unit:
    """Some stops of a module.

    Arguments:
        number: Its place among all.
        run: The place of its run.
        module: The module.
        stops: Some of the module's, in order.
    """

    number: int
    run: int
    module: str
    stops: Stops


@dataclass(frozen=True)
class Measured:
    """What was measured in a unit.

    Arguments:
        rows: Of every stop; ``None`` where it is left out.
        left_out: Why.
        machine: Its versions and processor, as a key.
    """

    rows: list[list[dict[str, Any]] | None]
    left_out: DeltawError | None
    machine: str


class Shared:
    """What all units rest on: runs, measure, device. It is pickled here, so that what cannot be is named.

    Raises:
        OptionError: A run or the measure cannot be handed to another process.
    """

    def __init__(self, runs: Sequence[Run], measure: Measure, device: str) -> None:
        self.device = device
        self._parts = [_pickled(run, run.source.where) for run in runs], _pickled(measure, "what is measured")
        self._found: tuple[list[Run], Measure] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"device": self.device, "_parts": self._parts, "_found": None}

    def open(self) -> tuple[list[Run], Measure]:
        """Return the runs and the measure, opened once in a process."""
        if self._found is None:
            runs, measure = self._parts
            self._found = [pickle.loads(run) for run in runs], pickle.loads(measure)  # written by our own parent
        return self._found


def units_of(plans: Sequence[Plan], todo: Sequence[dict[str, Stops]], processes: int) -> list[Unit]:
    """Return the units of some plans, in the order of the walk.

    A matrix is read anew for every unit, and a pass builds some steps at once, so that units are large; and become
    smaller towards the end, so that all processes end at about the same time, whatever slowed one of them down.

    Arguments:
        plans: Of the runs.
        todo: Of each plan, the stops by module.
        processes: How many are at work.
    """
    bytes_of = [
        {module: len(stops) * _size(plan.run, module) for module, stops in of_run.items()}
        for plan, of_run in zip(plans, todo, strict=True)
    ]
    left = sum(sum(sizes.values()) for sizes in bytes_of)
    units: list[Unit] = []
    for number, of_run in enumerate(todo):
        for module, stops in of_run.items():
            start = 0
            while start < len(stops):
                rest, of_stop = len(stops) - start, max(1, bytes_of[number][module] // len(stops))
                wanted = max(AT_LEAST, min(left // (SHARE * processes), LARGE) // of_stop)
                end = start + -(-rest // max(1, rest // wanted))  # what is left of a module is no unit of a few stops
                units.append(Unit(len(units), number, module, stops[start:end]))
                left, start = left - (end - start) * of_stop, end
    return units


def measured_unit(unit: Unit, shared: Shared) -> Measured:
    """Measure a unit.

    Raises:
        LostError: There is no memory for it.
        Exception: As the measure does.
    """
    runs, measure = shared.open()
    run = runs[unit.run]
    plan = Plan(run, [unit.module], unit.stops)
    one_pass = OnePass(run, unit.module, unit.stops, checked_device(shared.device))
    rows: list[list[dict[str, Any]] | None] = []
    for position in range(len(unit.stops)):
        rows.append(None)
        stop = plan.stop(one_pass, position)
        if stop is not None:
            try:
                with stop, named_memory(run.source.where, unit.module, run.shape(unit.module)):
                    found = measure(stop)
                    rows[-1] = found.make() if isinstance(found, Later) else found
            except Exception as error:
                if wants_memory(error):
                    raise LostError("had not the memory for it") from None
                raise
    return Measured(rows, plan.left_out.get(unit.module), machine())


def memory_of(shape: tuple[int, int]) -> float:
    """Return about how many bytes a process needs to measure a matrix (out, in): itself, and some in float64."""
    return PROCESS + AT_ONCE * 8 * shape[0] * shape[1]


def _size(run: Run, module: str) -> int:
    rows, columns = run.shape(module)
    return 8 * rows * columns


def _pickled(value: Any, name: str) -> bytes:
    try:
        return pickle.dumps(value)
    except Exception as error:
        raise OptionError(
            f"{name}: cannot be handed to other processes ({type(error).__name__}: {error!s:.200}); give a folder or a "
            "function of a module, or leave jobs and engine out"
        ) from None
