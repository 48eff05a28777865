"""Two runs matrix by matrix: how far apart their weights and their updates are."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch

from deltaw.adapters.checks import whole_number
from deltaw.adapters.errors import OptionError, ShapeError
from deltaw.analysis.measures.alignment import aligned
from deltaw.analysis.measures.chance import expected_angles
from deltaw.analysis.measures.change import AXES, changes
from deltaw.analysis.measures.subspace import SIDES, Directions, overlap, principal_angles
from deltaw.analysis.records.foreign.base import BaseError
from deltaw.analysis.tables.device import placed
from deltaw.analysis.tables.run import Run, Steps
from deltaw.analysis.tables.stop import Stop, located
from deltaw.analysis.tables.updates import update_at
from deltaw.analysis.tables.walk import Walk, chosen_steps, common_modules
from deltaw.analysis.tables.work import How, work_from

_WEIGHTS = ["delta_m_row", "delta_d_row", "delta_m_column", "delta_d_column"]
_UPDATES = ["norm_first", "norm_second", "difference", "relative", "cosine", "cosine_chance"]
_RANKS = ["rank_first", "rank_second", "stable_rank_first", "stable_rank_second", "directions"]
_SIDES = [f"{name}_{side}" for side in SIDES for name in ("overlap", "overlap_chance", "angle", "angle_chance")]
_LABELS = ["module", "layer", "kind", "step_first", "step_second"]


def comparison_table(
    first: Run,
    second: Run,
    *,
    step_first: int | None = None,
    step_second: int | None = None,
    modules: Sequence[str] | None = None,
    rank: int = 8,
    progress: bool = False,
    **work: Unpack[How],
) -> pd.DataFrame:
    """Return how far two runs are apart, one row a matrix that both have.

    Arguments:
        first, second: Opened runs; the same one for two of its steps.
        step_first, step_second: The steps; ``None`` for the last of each.
        modules: Glob patterns over the modules of both; ``None`` for all.
        rank: How many leading directions of the updates are compared, at most; 0 for none, and then no rank either,
            which is fast where whole matrices were recorded.
        progress: Show a progress bar.
        device, jobs, engine, address, cache: As in `Work`, the last ``False`` by default; or ``work``, one of those.

    Returns:
        One row each: module, layer, kind, step_first, step_second; of the weights delta_m_row, delta_d_row,
        delta_m_column, delta_d_column (ΔM and ΔD from W' of the first to W' of the second); of the updates norm_first,
        norm_second (‖ΔW‖), difference, relative, cosine, cosine_chance, see `Alignment`; rank_first, rank_second,
        stable_rank_first, stable_rank_second; directions (how many are compared), and of the left and the right side
        overlap_left (φ), overlap_chance_left, angle_left (the smallest principal angle, in degrees),
        angle_chance_left, …. NaN where W₀ is needed and not known, or an update has no direction.

    Raises:
        OptionError: The runs have no module in common; no such step.
        ShapeError: A module has another shape in the other run.
        NonFiniteError: A weight holds NaN or infinity; names module and step.
    """
    whole_number("rank", rank, 0)
    chosen = common_modules(first, second, modules)
    for module in chosen:
        if first.shape(module) != second.shape(module):
            one, two = (f"{run.shape(module)} in {run.source.where}" for run in (first, second))
            raise ShapeError(f"{module} is {one} and {two}; pass runs of one model")
    at = _step(second, step_second), _step(first, step_first)
    what = f"comparison with {second.name}"
    walk = Walk([first], what, lambda _: [at], lambda _: chosen, progress=progress, work=work_from(work))
    rows = walk.rows(partial(_of_module, other=second, rank=rank, device=walk.work.device))
    return walk.frame(rows, [*_LABELS, *_WEIGHTS, *_UPDATES, *(_RANKS + _SIDES if rank else [])])


def _step(run: Run, step: int | None) -> int:
    wanted: Steps = "last" if step is None else [step]
    return chosen_steps(run, wanted)[0]


def _of_module(stop: Stop, other: Run, rank: int, device: str) -> list[dict[str, Any]]:
    module, places = stop.module, ((stop.run, stop.step), (placed(other, device), _known(stop.step_from)))
    row = {name: value for name, value in stop.labels.items() if name not in ("run", "method")}
    row |= {"step_first": stop.step, "step_second": stop.step_from} | dict.fromkeys([*_WEIGHTS, *_UPDATES], np.nan)
    row |= dict.fromkeys(_RANKS + _SIDES, np.nan) if rank else {}
    try:
        # float64 where W' is rebuilt, so that its rounding does not stand in for a change.
        before, after = (
            run.weight(module, step, torch.float64 if run.source.rebuilt(module) else None) for run, step in places
        )
        for axis, change in changes(before, after, blocks=stop.blocks(AXES)).items():
            row |= {f"delta_m_{axis}": change.delta_m, f"delta_d_{axis}": change.delta_d}
    except BaseError:  # an adapter without its base has an update, and no weights
        pass
    updates = []
    for run, step in places:
        try:
            with located(run, module, f"at step {step}"):
                updates.append(update_at(stop, run, step))
        except BaseError:
            return [row]
    found = aligned(*(update.operand() for update in updates))
    row |= {"norm_first": found.first, "norm_second": found.second, "difference": found.difference}
    row |= {"relative": found.relative, "cosine": found.cosine, "cosine_chance": found.chance}
    if rank:
        one, two = (update.leading(rank) for update in updates)
        row |= _directions(one, two, rank)
    return [row]


def _known(step: int | None) -> int:
    if step is None:
        raise OptionError("the base has no update; name a step")
    return step


def _directions(one: Directions, two: Directions, rank: int) -> dict[str, float]:
    """What the leading directions of two updates share, beside what unrelated ones do."""
    count = min(rank, one.count, two.count)
    row: dict[str, float] = {"directions": count}
    for name, found in (("first", one), ("second", two)):
        row |= {f"rank_{name}": found.spectrum.rank, f"stable_rank_{name}": found.spectrum.stable_rank}
    for side in SIDES if count else ():
        a, b = one.basis(side, count), two.basis(side, count)
        row |= {f"overlap_{side}": float(overlap(a, b)[-1, -1]), f"overlap_chance_{side}": count / len(a)}
        row |= {
            f"angle_{side}": math.degrees(principal_angles(a, b)[0]),
            f"angle_chance_{side}": math.degrees(expected_angles(count, count, len(a))[0]),
        }
    return row
