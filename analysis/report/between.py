"""The runs against each other: how far two runs' updates of a matrix point the same way, at their last steps."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from deltaw.adapters.errors import DeltawError
from deltaw.analysis.measures.inner import Operand, cosine_of
from deltaw.analysis.measures.subspace import SIDES, Directions, overlap, principal_angles
from deltaw.analysis.progress import progress as shown
from deltaw.analysis.report.matrices import WORK, work_of
from deltaw.analysis.report.pack import Column, drawn, exact
from deltaw.analysis.report.parts import Notes
from deltaw.analysis.tables.updates import update_in
from deltaw.analysis.trajectory import Trajectory

PART = "between"
RANKS = 8  # leading directions


def between(
    runs: Sequence[Trajectory], modules: Sequence[str], notes: Notes, *, progress: bool = False
) -> dict[str, Column]:
    """Return the arrays of all pairs of runs, in the order of ``combinations``; the second place is the module's.

    Each run is taken at its last step. NaN where one of the two has not the module, another shape, or too few
    directions.

    Returns:
        between.cosine (pairs, modules): ⟨ΔW₁, ΔW₂⟩ / (‖ΔW₁‖‖ΔW₂‖);
        between.overlap.SIDE (pairs, modules, 8): φ(k, k) of the k leading directions, see `overlap`;
        between.angle.SIDE (pairs, modules, 8): the principal angles of the 8 leading directions in radians, smallest
        first, see `principal_angles`.
    """
    pairs = list(combinations(range(len(runs)), 2))
    cosine = np.full((len(pairs), len(modules)), np.nan)
    tables = {
        f"{name}.{side}": np.full((len(pairs), len(modules), RANKS), np.nan)
        for name in ("overlap", "angle")
        for side in SIDES
    }
    work = sum(2 * work_of(run, [name for name in modules if name in run.source.shapes]) for run in runs)
    if work > 4 * WORK * len(runs):
        notes.add(PART, "not measured: the directions of matrices this large would take minutes; ask for some modules")
        return {}
    for place, module in enumerate(shown(modules, "runs against each other", "module", progress)):
        found: dict[int, tuple[Operand, Directions]] = {}
        for number, run in enumerate(runs):
            if module in run.source.shapes and run.steps:
                try:
                    update = update_in(run, module, run.steps[-1])
                    found[number] = update.operand(), update.leading(RANKS)
                except DeltawError as error:  # one without W₀, or with NaN: the others are compared
                    notes.add(PART, f"{run.name}: {module}: {error}")
        for pair, (first, second) in enumerate(pairs):
            if first not in found or second not in found:
                continue
            if runs[first].shape(module) != runs[second].shape(module):
                notes.add(PART, f"{runs[first].name} and {runs[second].name}: {module} has another shape in each")
                continue
            (this, one), (other, two) = found[first], found[second]
            cosine[pair, place] = cosine_of(this, other)
            for side in SIDES:
                a, b = one.basis(side), two.basis(side)
                count = min(a.shape[1], b.shape[1])
                if count:
                    tables[f"overlap.{side}"][pair, place, :count] = overlap(a[:, :count], b[:, :count]).diagonal()
                    tables[f"angle.{side}"][pair, place, :count] = principal_angles(a[:, :count], b[:, :count])
    return {"between.cosine": exact(cosine)} | {f"between.{name}": drawn(table) for name, table in tables.items()}
