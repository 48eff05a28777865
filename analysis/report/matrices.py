"""The numbers of every matrix at every checkpoint: its changes, its spectrum, how its rows and columns moved."""

from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deltaw.adapters.checks import whole_number
from deltaw.adapters.errors import DeltawError, NonFiniteError
from deltaw.analysis.measures.change import AXES
from deltaw.analysis.measures.spectrum import spectrum
from deltaw.analysis.report.pack import Column, drawn, exact, whole
from deltaw.analysis.tables.changes import from_to
from deltaw.analysis.tables.one_pass import Stops, in_one_pass
from deltaw.analysis.tables.run import Run, Step, update_of
from deltaw.analysis.tables.walk import PAIRS, Walk, at_steps, spread_out

Array = NDArray[np.float64]
Details = int | Literal["all"] | None

SPECTRA = ("rank", "stable_rank", "effective_rank", "frobenius", "spectral")
LEADING = 16  # singular values that are kept
BINS = 24  # of a distribution
MOST = 5  # rows and columns that moved most
MEASURES = {"m": "magnitude", "d": "direction"}  # the vectors of a ``Change``

WORK = 2e11  # operations that the spectra of one run may take: less than a minute
ENOUGH = 41  # checkpoints with details
KEPT = 16_000  # matrices with a distribution in one report, of all runs
DENSE = 12  # operations of the singular values of an n×n matrix, in n³


class Matrices:
    """The arrays of one run; the first place is the module's, the second the checkpoint's.

    Arguments:
        run: The run.
        modules: Those that are shown.
        details: The checkpoints with spectrum and distribution, see ``detailed_steps``.
    """

    def __init__(self, run: Run, modules: Sequence[str], details: Sequence[int]) -> None:
        self.run, self.modules, self.details = run, list(modules), list(details)
        self._module = {name: place for place, name in enumerate(self.modules)}
        self._step = {step: place for place, step in enumerate(run.steps)}
        self._detail = {step: place for place, step in enumerate(self.details)}
        self._arrays: dict[str, Array] = {}
        self.undefined = 0  # vectors that are zero at exactly one of two steps
        self.nonfinite: dict[str, int] = {}  # by module, the first step with NaN or infinity

    def measure_changes(self, *, base: bool, progress: bool = False) -> None:
        """Fill in ΔM and ΔD of all pairs of steps in one pass over the checkpoints.

        Arguments:
            base: Whether there is a W₀ to compare with; a module that it lacks is compared with the first checkpoint.
        """
        self._changes_of(self.modules, base=base, progress=progress)
        if base:
            measured = ~np.isnan(self._array("changes.base.row.m")).all(axis=1)
            rest = [name for name in self.modules if not measured[self._module[name]] and name not in self.nonfinite]
            if rest:
                self._changes_of(rest, base=False, progress=progress)

    def _changes_of(self, modules: Sequence[str], *, base: bool, progress: bool) -> None:
        pairs = pairs_of(self.run.steps, base=base)
        stops: Stops = in_one_pass(pair for of_kind in pairs.values() for pair in of_kind)
        kinds: dict[tuple[Step, int], list[str]] = {}
        for kind, of_kind in pairs.items():
            for pair in of_kind:
                kinds.setdefault(pair, []).append(kind)
        origin = None if base else next(iter(self.run.steps), None)  # what a distribution is counted from
        for stop in Walk([self.run], "changes", lambda _: stops, lambda _: modules, unit="pair", progress=progress):
            stop.where = from_to(stop.step_from, stop.step)
            with stop:
                place = self._module[stop.module], self._step[stop.step]
                for axis, found in stop.changes(AXES, allow_nonfinite=True).items():
                    self.undefined += found.undefined
                    if found.nonfinite:
                        self.nonfinite.setdefault(stop.module, stop.step)
                    for kind in kinds[stop.step_from, stop.step]:
                        self._array(f"changes.{kind}.{axis}.m")[place] = found.delta_m
                        self._array(f"changes.{kind}.{axis}.d")[place] = found.delta_d
                    if stop.step_from == origin and stop.step in self._detail:
                        for measure, name in MEASURES.items():
                            self._spread(f"{axis}.{measure}", stop.module, stop.step, getattr(found, name))

    def measure_spectra(self, *, progress: bool = False) -> None:
        """Fill in ranks, norms and the largest singular values at the checkpoints with details."""
        for stop in Walk([self.run], "spectra", at_steps(self.details), lambda _: self.modules, progress=progress):
            with stop:
                module, step = self._module[stop.module], self._step[stop.step]
                try:
                    found = spectrum(**update_of(self.run, stop.module, stop.step))
                except NonFiniteError:  # the others go on
                    self.nonfinite.setdefault(stop.module, stop.step)
                    continue
                for name in SPECTRA:
                    self._array(f"spectra.{name}")[module, step] = getattr(found, name)
                values = found.singular_values[:LEADING].numpy()
                self._array("singular", (len(self.details), LEADING))[
                    module, self._detail[stop.step], : len(values)
                ] = values
                self._array("tolerance", (len(self.details),))[module, self._detail[stop.step]] = found.tolerance

    def measure_norms(self) -> None:
        """Fill in ‖W₀‖ of every module."""
        for name in self.modules:
            norm = float(torch.linalg.vector_norm(self.run.base(name).double()))
            self._array("base_norm", ())[self._module[name]] = norm

    def columns(self) -> dict[str, Column]:
        """Return the arrays as they are packed."""
        found = {}
        for name, values in self._arrays.items():
            if name.startswith(("bins.", "index.")):
                found[name] = whole(np.nan_to_num(values).astype(np.int64))
            elif name in ("singular", "tolerance"):
                found[name] = drawn(values)
            else:
                found[name] = exact(values)
        return found

    def array(self, name: str) -> Array | None:
        """Return an array by its name, ``None`` where nothing was measured."""
        return self._arrays.get(name)

    def _array(self, name: str, shape: tuple[int, ...] | None = None) -> Array:
        """Return an array, at first of NaN: a place for each module and checkpoint, or of another shape a module."""
        if name not in self._arrays:
            rest = (len(self.run.steps),) if shape is None else shape
            self._arrays[name] = np.full((len(self.modules), *rest), np.nan)
        return self._arrays[name]

    def _spread(self, which: str, module: str, step: int, vector: Tensor) -> None:
        """Keep how a vector's numbers are spread, and the largest of them."""
        at, steps = (self._module[module], self._detail[step]), len(self.details)
        values = vector.numpy()
        finite = values[np.isfinite(values)]
        if not finite.size:
            return
        counts, edges = np.histogram(finite, BINS)
        self._array(f"bins.{which}", (steps, BINS))[at] = counts
        self._array(f"range.{which}", (steps, 2))[at] = edges[[0, -1]]
        order = np.argsort(-np.nan_to_num(values, nan=-1.0), kind="stable")[: min(MOST, finite.size)]
        self._array(f"index.{which}", (steps, MOST))[at][: len(order)] = order
        self._array(f"value.{which}", (steps, MOST))[at][: len(order)] = values[order]


def pairs_of(steps: Sequence[int], *, base: bool) -> dict[str, list[tuple[Step, int]]]:
    """Return the pairs of steps of each kind; those with W₀ only where there is one.

    Example:
        >>> pairs_of([0, 5, 9], base=False)
        {'consecutive': [(0, 5), (5, 9)], 'initial': [(0, 5), (0, 9)]}
    """
    found: dict[str, list[tuple[Step, int]]] = {
        "consecutive": list(pairwise(steps)),
        "initial": [(steps[0], step) for step in steps[1:]],
    }
    if base:
        found["base"] = [(None, step) for step in steps]
    return {kind: found[kind] for kind in PAIRS if found.get(kind)}


def detailed_steps(run: Run, modules: Sequence[str], details: Details, runs: int) -> list[int]:
    """Return the checkpoints that get a spectrum and distributions: evenly spread, the last one always.

    Arguments:
        run: The run.
        modules: Those that are shown.
        details: How many; "all"; ``None`` for as many as take less than a minute and keep the file small.
        runs: How many runs the report has.

    Raises:
        OptionError: It is none of these.
    """
    if details == "all":
        return list(run.steps)
    if details is not None:
        return _last_of(run.steps, whole_number("details", details, 1, also="'all' or None"))
    most = min(WORK / max(work_of(run, modules), 1.0), KEPT / max(runs * len(modules), 1), ENOUGH)
    return _last_of(run.steps, max(1, int(most)))


def _last_of(steps: Sequence[int], count: int) -> list[int]:
    return spread_out(steps, count) if count > 1 else list(steps[-1:])


def work_of(run: Run, modules: Sequence[str]) -> float:
    """Return about how many operations the singular values of one checkpoint's updates take."""
    sides = [sorted(run.shape(name)) for name in modules]
    factors = None
    if modules and run.steps:
        with suppress(DeltawError):  # it is said where the numbers are missing
            factors = run.factors(modules[0], run.steps[-1])
    if factors is not None:
        rank = factors[0].shape[1]
        return float(sum(20.0 * (small + large) * min(rank, small) ** 2 for small, large in sides))
    return float(sum(DENSE * small**2 * large for small, large in sides))
