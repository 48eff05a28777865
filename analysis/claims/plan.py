"""What has to be measured in which runs for the claims of some packs, each matrix read as seldom as can be."""

from collections.abc import Iterable, Sequence
from functools import cache

import pandas as pd

from deltaw.analysis.claims.curves import four_of
from deltaw.analysis.claims.evidence import CHANGES
from deltaw.analysis.claims.measuring import Need
from deltaw.analysis.claims.pack import Pack
from deltaw.analysis.measures.change import ALL_AXES, AXES
from deltaw.analysis.tables.changes import changes_table
from deltaw.analysis.tables.frame import joined
from deltaw.analysis.tables.geometry import MEASURES, geometry_table
from deltaw.analysis.tables.intruders import intruder_table
from deltaw.analysis.tables.run import Step
from deltaw.analysis.tables.spectra import spectra_table
from deltaw.analysis.tables.work import Work
from deltaw.analysis.trajectory import Trajectory

CHANGED = ("consecutive", "initial", "base")


class Plan:
    """The tables of some packs over some runs.

    Arguments:
        runs: Opened runs.
        labels: What each counts as: its method, or its role.
        packs: Whose claims are checked.
        progress: Show progress bars.
        work: Where and how it is measured.
    """

    def __init__(
        self, runs: Sequence[Trajectory], labels: Sequence[str], packs: Sequence[Pack], progress: bool, work: Work
    ) -> None:
        self._runs, self._labels, self._progress, self._work = runs, labels, progress, work
        self._needs = [pack.needs() for pack in packs]
        kinds = {kind for run in runs for kind in _kinds(run)}
        self.kind = "query" if "query" in kinds else next(iter(_kinds(runs[0])))
        self.changes = cache(self._changes)

    def runs_of(self, table: str) -> list[Trajectory]:
        """Return the runs in which a table is measured."""
        return self._of(need for needs in self._needs for need in needs if need.table == table)

    def _of(self, needs: Iterable[Need]) -> list[Trajectory]:
        methods = {method for need in needs for method in need.methods}
        return [run for run, label in zip(self._runs, self._labels, strict=True) if label in methods]

    def _shared(self, table: str, run: Trajectory) -> set[int]:
        """The last step that all runs of a pack have, of every pack that measures this run."""
        groups = [self._of(need for need in needs if need.table == table) for needs in self._needs]
        last = (max(set.intersection(*(set(one.steps) for one in of)), default=None) for of in groups if run in of)
        return {step for step in last if step is not None}

    def _ends(self, table: str, run: Trajectory) -> list[int]:
        """The last step of a run, and the last that it shares with the others."""
        return sorted({run.steps[-1], *self._shared(table, run)})

    def _pairs(self, run: Trajectory) -> dict[str, list[tuple[Step, int]]]:
        """What is compared in one run."""
        start = 0 if 0 in run.steps else None  # the base, where the start was not recorded
        after = [step for step in run.steps if step > 0]
        ends = {*four_of(after), *self._shared("base", run)} if after else set()
        later = {step for step in self._ends("initial", run) if step}
        return {
            "consecutive": run.pairs("consecutive") if run in self.runs_of("consecutive") else [],
            "initial": [(start, end) for end in sorted(later)] if run in self.runs_of("initial") else [],
            "base": [(None, end) for end in sorted(ends)] if run in self.runs_of("base") else [],
        }

    def _changes(self, run: Trajectory) -> dict[str, pd.DataFrame]:
        """Return the changes of each kind of pairs; each checkpoint of a module is read once."""
        pairs, by_kind = self._pairs(run), _kinds(run)
        needs = [need for of_pack in self._needs for need in of_pack if need.table in CHANGED]
        others = {axis for need in needs for axis in need.axes}
        axes = [axis for axis in ALL_AXES if axis in AXES or axis in others]
        kinds = {kind for need in needs if need.table == "base" for kind in need.kinds or (self.kind,)}
        own = by_kind.get(self.kind, [])
        of_base = [name for kind, names in by_kind.items() if kind in kinds for name in names]
        measured = {
            "consecutive": own,
            "initial": own,
            "base": of_base,
        }
        every = [pair for name, of_pairs in pairs.items() if self.kind in kinds or name != "base" for pair in of_pairs]
        frames = [
            changes_table([run], at, axes, modules, progress=self._progress, work=self._work)
            for at, modules in ((every, own), (pairs["base"], [name for name in of_base if name not in own]))
            if at and modules
        ]
        whole = joined(frames) if frames else pd.DataFrame(columns=list(CHANGES))
        found = {}
        for name, modules in measured.items():
            there = {(module, *pair) for module in modules for pair in pairs[name]}
            steps = zip(whole["module"], whole["step_from"].astype(object), whole["step_to"], strict=True)
            keep = [(module, None if a is pd.NA else a, b) in there for module, a, b in steps]
            found[name] = whole[pd.Series(keep, index=whole.index, dtype=bool)].reset_index(drop=True)
        return found

    def spectra(self, run: Trajectory) -> pd.DataFrame:
        """Return the ranks at the last step, of a method's groups too."""
        return spectra_table([run], run.steps[-1:], groups=True, progress=self._progress, work=self._work)

    def distances(self, run: Trajectory) -> pd.DataFrame:
        """Return ‖ΔW‖ at the last step and at the one nearest to half of it, never at the start."""
        after = [step for step in run.steps if step > 0] or run.steps
        half = min(after, key=lambda step: (abs(2 * step - after[-1]), step))
        steps = sorted({half, after[-1]})
        return spectra_table([run], steps, measures=("frobenius",), progress=self._progress, work=self._work)

    def intruders(self, run: Trajectory) -> pd.DataFrame:
        """Return the leading singular vectors of W' beside those of W₀."""
        steps = self._ends("intruders", run)
        return intruder_table([run], steps=steps, progress=self._progress, work=self._work)

    def geometry(self, run: Trajectory) -> pd.DataFrame:
        """Return rotation, drift, off-principal share and visible share, those that a claim needs."""
        needs = [need for of_pack in self._needs for need in of_pack if need.table == "geometry"]
        columns = {column for need in needs for column in need.columns}
        measures = None if any(not need.columns for need in needs) else _measures_of(columns)
        return geometry_table(
            [run],
            self._ends("geometry", run),
            measures=measures,
            visible=("bfloat16", "path-not-taken"),
            progress=self._progress,
            work=self._work,
        )


def _measures_of(columns: set[str]) -> list[str]:
    """The measures of the geometry table that make some of its columns."""
    return [name for name in MEASURES if any(column.startswith(name) for column in columns)]


def _kinds(run: Trajectory) -> dict[str, list[str]]:
    """The modules by kind."""
    found: dict[str, list[str]] = {}
    for name in run.modules:
        found.setdefault(run.labels(name)["kind"], []).append(name)
    return found
