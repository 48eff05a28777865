"""The numbers of every matrix at every checkpoint, from the tables: changes, spectra, geometry, rows and columns."""

import glob
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from deltaw.adapters.checks import whole_number
from deltaw.adapters.errors import DeltawError, NonFiniteError
from deltaw.analysis.measures.blocks import Axis
from deltaw.analysis.report.pack import Column, drawn, exact, whole
from deltaw.analysis.report.parts import Notes
from deltaw.analysis.tables.changes import changes_table
from deltaw.analysis.tables.distributions import distributions
from deltaw.analysis.tables.geometry import geometry_table
from deltaw.analysis.tables.run import PairKind, Run, Step
from deltaw.analysis.tables.singular_values import singular_values
from deltaw.analysis.tables.spectra import spectra_table
from deltaw.analysis.tables.walk import spread_out
from deltaw.analysis.tables.work import Work

Array = NDArray[np.float64]
Details = int | Literal["all"] | None

AXES: tuple[Axis, ...] = ("row", "column", "matrix")
SPECTRA = ("rank", "stable_rank", "effective_rank", "frobenius", "spectral")
GEOMETRY = (
    "rotation_left",
    "rotation_right",
    "rotation_random",
    "rotation_expected",
    "drift",
    "off_principal",
    "off_principal_expected",
    "visible_bfloat16",
)
PRINCIPAL = 16  # leading directions of W₀, or fewer where the matrices are small
LEADING = 16  # singular values that are kept
BINS = 24  # of a distribution
MOST = 5  # rows and columns that moved most

WORK = 1e12  # operations that the singular values of one run may take, twice: less than a minute on one thread
ENOUGH = 41  # checkpoints with details
KEPT = 16_000  # matrices with a distribution in one report, of all runs
DENSE = 12  # operations of the singular values of an n×n matrix, in n³
GEOMETRY_WORK = 1e12  # operations that the geometry of one run may take: less than half a minute


class Matrices:
    """The arrays of one run; the first place is the module's, the second the checkpoint's.

    Arguments:
        run: The run.
        modules: Those that are shown.
        details: The checkpoints with spectrum and distribution, see ``detailed_steps``.
        turns: The checkpoints with geometry, see ``geometry_steps``.
        notes: What is to be said where something is missing.
        work: Where and how it is measured.
        principal: How many leading directions of W₀ the geometry is of.
        progress: Show progress bars.
    """

    def __init__(
        self,
        run: Run,
        modules: Sequence[str],
        details: Sequence[int],
        turns: Sequence[int],
        notes: Notes,
        work: Work,
        *,
        principal: int = PRINCIPAL,
        progress: bool,
    ) -> None:
        self.run, self.modules, self.details, self.turns = run, list(modules), list(details), list(turns)
        self.principal = principal
        self._notes, self._work, self._progress = notes, work, progress
        self._module = {name: place for place, name in enumerate(self.modules)}
        self._step = {step: place for place, step in enumerate(run.steps)}
        self._detail = {step: place for place, step in enumerate(self.details)}
        self._arrays: dict[str, Array] = {}
        self.since_first: list[str] = []  # modules whose distributions are counted from the first checkpoint

    def measure_changes(self) -> None:
        """Fill in ΔM and ΔD of all pairs of steps."""
        pairs: list[PairKind] = ["consecutive", "initial"] if len(self.run.steps) > 1 else []
        pairs += ["base"] if self.run.source.base_from is not None else []
        if not pairs:
            return

        def make(modules: Sequence[str] | None, allow: bool) -> pd.DataFrame:
            return changes_table(
                [self.run], pairs, AXES, modules, allow_nonfinite=allow, progress=self._progress, work=self._work
            )

        patterns = self._patterns()
        try:
            frame = make(patterns, False)
        except NonFiniteError as error:
            seen = str(error).partition("; ")[0]  # without its advice, which is followed here
            self._notes.add("changes", f"{seen}; such rows and columns are left out", f"{self.run.name}: ")
            frame = make(patterns, True)
        for (kind, axis), rows in frame.groupby(["pairs", "axis"], sort=False):
            at = self._places(rows["module"], rows["step_to"], self._step)
            for measure in "md":
                self._array(f"changes.{kind}.{axis}.{measure}")[at] = rows[f"delta_{measure}"].to_numpy(np.float64)

    def measure_distributions(self) -> None:
        """Fill in how rows and columns moved since W₀, or since the first checkpoint where that is not known."""
        rest = self.modules
        if self.run.source.base_from is not None:
            with suppress(DeltawError):  # of all modules W₀ is missing: it is said with the changes
                rest = self._distributions_since(None, rest)
        if rest and len(self.run.steps) > 1:
            none = set(self._distributions_since(self.run.steps[0], rest))
            self.since_first = [name for name in rest if name not in none]

    def _distributions_since(self, origin: Step, modules: Sequence[str]) -> list[str]:
        """Return the modules that have none."""
        pairs = [(origin, step) for step in self.details if step != origin]
        without = dict.fromkeys(modules)
        if not pairs:
            return list(modules)
        for found in distributions(
            self.run, pairs, modules, bins=BINS, most=MOST, progress=self._progress, work=self._work
        ):
            without.pop(found.module, None)
            at, steps = (self._module[found.module], self._detail[found.step]), len(self.details)
            for row in found.rows:
                which = f"{row['axis']}.{row['measure']}"
                if not len(row["counts"]):
                    continue
                self._array(f"bins.{which}", (steps, BINS))[at] = row["counts"]
                self._array(f"range.{which}", (steps, 2))[at] = row["low"], row["high"]
                self._array(f"index.{which}", (steps, MOST))[at][: len(row["index"])] = row["index"]
                self._array(f"value.{which}", (steps, MOST))[at][: len(row["value"])] = row["value"]
        return list(without)

    def measure_spectra(self) -> None:
        """Fill in ranks, norms and the largest singular values at the checkpoints with details."""
        shown, work = self._progress, self._work
        frame = self._of_all(
            lambda modules: spectra_table([self.run], self.details, modules, progress=shown, work=work)
        )
        at = self._places(frame["module"], frame["step"], self._step)
        for name in SPECTRA:
            self._array(f"spectra.{name}")[at] = frame[name].to_numpy(np.float64)
        values = self._of_all(
            lambda modules: singular_values(
                [self.run], steps=self.details, modules=modules, top=LEADING, progress=shown, work=work
            )
        )
        module, step = self._places(values["module"], values["step"], self._detail)
        place = (module, step, values["index"].to_numpy(np.int64) - 1)
        self._array("singular", (len(self.details), LEADING))[place] = values["singular_value"].to_numpy(np.float64)

    def measure_geometry(self) -> None:
        """Fill in how the updates stand to W₀ at the checkpoints with geometry."""
        shown, work = self._progress, self._work
        frame = self._of_all(
            lambda modules: geometry_table(
                [self.run], self.turns, modules, k=self.principal, progress=shown, work=work
            ),
            "geometry",
        )
        self._leave_out_all_directions(frame)
        at = self._places(frame["module"], frame["step"], self._step)
        for name in GEOMETRY:
            self._array(f"geometry.{name}")[at] = frame[name].to_numpy(np.float64)
        # Near 1 the share outside has few digits left in float32: the rest is kept beside it.
        for end in ("", "_expected"):
            self._array(f"geometry.principal{end}")[at] = 1 - frame[f"off_principal{end}"].to_numpy(np.float64)

    def _leave_out_all_directions(self, frame: pd.DataFrame) -> None:
        """Make NaN of what says nothing: directions that span the whole space cannot turn, and nothing lies outside."""
        sides = np.array([self.run.shape(name) for name in frame["module"]]).reshape(-1, 2)  # (rows, 2): out, in
        spans = dict(zip(("left", "right"), frame["k"].to_numpy() >= sides.T, strict=True))
        either = spans["left"] | spans["right"]
        for side, whole_space in spans.items():
            frame.loc[whole_space, f"rotation_{side}"] = np.nan
        frame.loc[either, ["rotation_random", "rotation_expected"]] = np.nan  # of the smaller of the two spaces
        frame.loc[spans["left"] & spans["right"], ["off_principal", "off_principal_expected"]] = np.nan
        if either.any():
            names = list(dict.fromkeys(frame.loc[either, "module"]))
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            text = f"{names[0]}{more}: {self.principal} directions are all that a side of it has, which cannot turn"
            self._notes.add("geometry", text, f"{self.run.name}: ")

    def measure_norms(self) -> None:
        """Fill in ‖W₀‖ of every module that has one."""
        for name in self.modules:
            with suppress(DeltawError):
                norm = float(torch.linalg.vector_norm(self.run.base(name).double()))
                self._array("base_norm", ())[self._module[name]] = norm

    def columns(self) -> dict[str, Column]:
        """Return the arrays as they are packed."""
        found = {}
        for name, values in self._arrays.items():
            if name.startswith(("bins.", "index.")):
                found[name] = whole(np.nan_to_num(values).astype(np.int64))
            else:
                found[name] = drawn(values) if name == "singular" else exact(values)
        return found

    def _of_all(self, make: Callable[[Sequence[str] | None], pd.DataFrame], part: str = "spectra") -> pd.DataFrame:
        """Return a table of all modules; where one holds NaN, of all the others."""
        try:
            return make(self._patterns())
        except NonFiniteError:
            frames = []
            for name in self.modules:
                try:
                    frames.append(make([glob.escape(name)]))
                except NonFiniteError as error:
                    self._notes.add(part, str(error), f"{self.run.name}: ")
            if not frames:
                raise
            return pd.concat(frames, ignore_index=True)

    def _patterns(self) -> list[str] | None:
        """Return the modules as the tables take them."""
        return None if self.modules == list(self.run.modules) else [glob.escape(name) for name in self.modules]

    def _places(
        self, modules: "pd.Series[str]", steps: "pd.Series[int]", places: dict[int, int]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return np.asarray(modules.map(self._module), np.int64), np.asarray(steps.map(places), np.int64)

    def _array(self, name: str, shape: tuple[int, ...] | None = None) -> Array:
        """Return an array, at first of NaN: a place for each module and checkpoint, or of another shape a module."""
        if name not in self._arrays:
            rest = (len(self.run.steps),) if shape is None else shape
            self._arrays[name] = np.full((len(self.modules), *rest), np.nan)
        return self._arrays[name]


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
        return _last_of(run.steps, whole_number("details", details, 1, also="'all', None"))
    most = min(WORK / max(work_of(run, modules), 1.0), KEPT / max(runs * len(modules), 1), ENOUGH)
    return _last_of(run.steps, max(1, int(most)))


def geometry_steps(run: Run, modules: Sequence[str], details: Sequence[int], wanted: bool | None) -> list[int]:
    """Return the checkpoints that are held against W₀, which costs the eigenvectors of every W': the last one first.

    Arguments:
        run: The run.
        modules: Those that are shown.
        details: The checkpoints with a spectrum; those with geometry are among them.
        wanted: ``True`` for all of these, ``False`` for none, ``None`` for as many as take less than half a minute, and
            none where one alone takes minutes.
    """
    if wanted is not None:
        return list(details) if wanted else []
    once = max(dense_work([run.shape(name) for name in modules]), 1.0)
    affordable = int(GEOMETRY_WORK / once) - 1  # W₀ is decomposed too
    return _last_of(details, max(1, affordable)) if once < 4 * GEOMETRY_WORK else []


def principal_count(shapes: Iterable[tuple[int, int]]) -> int:
    """Return how many leading directions of W₀ the geometry is of: 16, or half of all where matrices are so small.

    Example:
        >>> principal_count([(768, 768), (2, 768)]), principal_count([(12, 12)])
        (16, 6)
    """
    return max(1, min(PRINCIPAL, max((min(shape) for shape in shapes), default=PRINCIPAL) // 2))


def _last_of(steps: Sequence[int], count: int) -> list[int]:
    return spread_out(steps, count) if count > 1 else list(steps[-1:])


def work_of(run: Run, modules: Sequence[str]) -> float:
    """Return about how many operations the singular values of one checkpoint's updates take."""
    shapes = [run.shape(name) for name in modules]
    factors = None
    if modules and run.steps:
        with suppress(DeltawError):  # it is said where the numbers are missing
            factors = run.factors(modules[0], run.steps[-1])
    if factors is not None:
        rank = factors[0].shape[1]
        return float(sum(20.0 * sum(shape) * min(rank, *shape) ** 2 for shape in shapes))
    return dense_work(shapes)


def dense_work(shapes: Iterable[tuple[int, int]]) -> float:
    """Return about how many operations the singular values of dense matrices of these shapes take."""
    return float(sum(DENSE * min(shape) ** 2 * max(shape) for shape in shapes))
