"""ΔM and ΔD of single rows and columns: how they are spread over a module."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Unpack

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from deltaw.adapters.errors import OptionError
from deltaw.analysis.measures.blocks import Axis, checked_axes
from deltaw.analysis.measures.change import AXES
from deltaw.analysis.tables.blocks import Counts, Heads, counts_of
from deltaw.analysis.tables.changes import from_to
from deltaw.analysis.tables.run import LABELS, Pairs, Run
from deltaw.analysis.tables.stop import Stop
from deltaw.analysis.tables.walk import Walk, at_pairs
from deltaw.analysis.tables.work import How, work_from

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def vector_changes(
    runs: Sequence[Run],
    pairs: Pairs = "initial",
    axes: Sequence[Axis] = AXES,
    *,
    quantiles: Sequence[float] | None = QUANTILES,
    heads: Heads = None,
    modules: Sequence[str] | None = None,
    progress: bool = False,
    **work: Unpack[How],
) -> pd.DataFrame:
    """Return how ΔM and ΔD are spread over the rows and columns of every module: quantiles, or every single vector.

    The quantiles of the magnitude and of the direction are taken each for itself, by linear interpolation. The means
    are in ``Trajectory.changes``.

    Arguments:
        runs: Opened runs.
        pairs: "consecutive" (t−1, t), "initial" (first recorded step, t), "base" (W₀, t), or a list of pairs, with
            ``None`` for the base.
        axes, heads: As in `changes_table`.
        quantiles: Each in [0, 1]; ``None`` for one row a vector.
        modules, progress, device, …: As in `singular_values`.

    Returns:
        One row each: run, method, module, layer, kind, axis, step_from (missing for the base), step_to, quantile,
        delta_m, delta_d, undefined (how many vectors have no direction and are left out of delta_d's quantiles). With
        ``quantiles=None`` index (from 0, the row or column of W) stands in the place of quantile, and delta_d is NaN
        for a vector without direction.

    Raises:
        OptionError: No run; unknown pairs, axis or step; a quantile outside [0, 1].
        NonFiniteError: A weight holds NaN or infinity; names module and steps.
    """
    at = _checked_quantiles(quantiles)
    place = "index" if at is None else "quantile"
    counts, chosen = counts_of(heads), checked_axes(axes)
    walk = Walk(runs, "vectors", at_pairs(pairs), modules, unit="pair", progress=progress, work=work_from(work))
    blocks = walk.rows(partial(_of_pair, axes=chosen, heads=counts, at=at))
    columns = [*LABELS, "axis", "step_from", "step_to", place, "delta_m", "delta_d", "undefined"]
    return walk.frame(blocks, columns, axes=chosen, heads=counts)


def _of_pair(stop: Stop, axes: Sequence[Axis], heads: Counts, at: NDArray[np.float64] | None) -> list[dict[str, Any]]:
    stop.where = from_to(stop.step_from, stop.step)
    blocks = []
    for axis, change in stop.changes(axes, heads=heads).items():
        vectors = {"delta_m": change.magnitude.numpy(), "delta_d": change.direction.numpy()}
        places = {"index": np.arange(len(vectors["delta_m"]))} if at is None else {"quantile": at}
        spread = vectors if at is None else {name: _quantiles(each, at) for name, each in vectors.items()}
        blocks.append(
            stop.labels
            | {"axis": axis, "step_from": stop.step_from, "step_to": stop.step}
            | places
            | spread
            | {"undefined": change.undefined}
        )
    return blocks


def _checked_quantiles(quantiles: Sequence[float] | None) -> NDArray[np.float64] | None:
    if quantiles is None:
        return None
    try:
        at = np.asarray(list(quantiles), dtype=np.float64)
    except (TypeError, ValueError):
        at = np.empty(0)
    if not (at.ndim == 1 and at.size and bool(((at >= 0) & (at <= 1)).all())):
        raise OptionError(f"quantiles are {quantiles!r}; choose numbers from 0 to 1, or None for every vector")
    return at


def _quantiles(values: NDArray[np.float64], at: NDArray[np.float64]) -> Any:
    """Return the quantiles of those that are numbers; NaN where none is."""
    values = values[~np.isnan(values)]
    return np.quantile(values, at) if values.size else np.full(at.shape, np.nan)
