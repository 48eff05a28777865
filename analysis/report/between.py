"""The runs against each other: how far two runs' updates of a matrix point the same way, at their last steps."""

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from deltaw.adapters.errors import DeltawError
from deltaw.analysis.measures.inner import Operand, cosine_of
from deltaw.analysis.measures.masks import mask_agreement
from deltaw.analysis.measures.signs import signs
from deltaw.analysis.measures.subspace import SIDES, Directions, overlap, principal_angles
from deltaw.analysis.measures.visible import visible_changes
from deltaw.analysis.progress import progress as shown
from deltaw.analysis.report.matrices import work_of
from deltaw.analysis.report.pack import Column, drawn, exact
from deltaw.analysis.report.parts import Notes
from deltaw.analysis.tables.updates import update_in
from deltaw.analysis.trajectory import Trajectory

PART = "between"
RANKS = 8  # leading directions
WORK = 4e11  # operations that the leading directions of one run may take
ENTRIES = 1e10  # that are compared one by one, of all pairs: a minute or two
SINGLE = ("sign_agreement", "sign_expected", "jaccard", "jaccard_expected")  # one number a pair and module


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
        first, see `principal_angles`;
        between.sign_agreement, between.jaccard (pairs, modules): see `sign_agreement` and, of the weights that change
        in bfloat16, `mask_agreement`; and what chance gives in their place, _expected. Without the weights of W₀ no
        Jaccard index; neither where the matrices are so large that it would take minutes.
    """
    pairs = list(combinations(range(len(runs)), 2))
    cosine = np.full((len(pairs), len(modules)), np.nan)
    tables = {
        f"{name}.{side}": np.full((len(pairs), len(modules), RANKS), np.nan)
        for name in ("overlap", "angle")
        for side in SIDES
    }
    work = sum(2 * work_of(run, [name for name in modules if name in run.source.shapes]) for run in runs)
    if work > WORK * len(runs):
        notes.add(PART, "not measured: the directions of matrices this large would take minutes; ask for some modules")
        return {}
    single = {name: np.full(cosine.shape, np.nan) for name in SINGLE}
    entries = sum(max((math.prod(run.source.shapes.get(name, (0,))) for run in runs), default=0) for name in modules)
    dense = entries * len(pairs) <= ENTRIES
    if not dense:
        notes.add(PART, "signs and visible changes would take minutes and are left out; deltaw compare has them")
    for place, module in enumerate(shown(modules, "runs against each other", "module", progress)):
        found: dict[int, tuple[Operand, Directions]] = {}
        masks: dict[int, Tensor] = {}
        for number, run in enumerate(runs):
            if module in run.source.shapes and run.steps:
                try:
                    update = update_in(run, module, run.steps[-1])
                    found[number] = update.operand(), update.leading(RANKS)
                    if dense and run.base_from is not None:
                        weight = run.weight(module, run.steps[-1], torch.float64)
                        masks[number] = visible_changes(run.base(module), weight, dtype=torch.bfloat16)
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
            if dense:
                same = signs(this, other)
                single["sign_agreement"][pair, place] = same.agreement
                single["sign_expected"][pair, place] = same.expected
            if first in masks and second in masks:
                both = mask_agreement(masks[first], masks[second])
                single["jaccard"][pair, place], single["jaccard_expected"][pair, place] = both.jaccard, both.expected
            for side in SIDES:
                a, b = one.basis(side), two.basis(side)
                count = min(a.shape[1], b.shape[1])
                if count:
                    tables[f"overlap.{side}"][pair, place, :count] = overlap(a[:, :count], b[:, :count]).diagonal()
                    tables[f"angle.{side}"][pair, place, :count] = principal_angles(a[:, :count], b[:, :count])
    measured = {name: values for name, values in single.items() if np.isfinite(values).any()}
    return {f"between.{name}": exact(values) for name, values in ({"cosine": cosine} | measured).items()} | {
        f"between.{name}": drawn(table) for name, table in tables.items()
    }
