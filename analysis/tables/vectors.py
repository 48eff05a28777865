"""ΔM and ΔD of single rows and columns: how they are spread over a module."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from deltaw.adapters.errors import OptionError
from deltaw.analysis.measures.change import AXES, Axis, changes
from deltaw.analysis.tables.changes import from_to
from deltaw.analysis.tables.run import LABELS, Pairs, Run
from deltaw.analysis.tables.walk import Walk, at_pairs

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def vector_changes(
    runs: Sequence[Run],
    pairs: Pairs = "initial",
    axes: Sequence[Axis] = AXES,
    *,
    quantiles: Sequence[float] | None = QUANTILES,
    modules: Sequence[str] | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Return how ΔM and ΔD are spread over the rows and columns of every module: quantiles, or every single vector.

    The quantiles of the magnitude and of the direction are taken each for itself, by linear interpolation. The means
    are in ``Trajectory.changes``.

    Arguments:
        runs: Opened runs.
        pairs: "consecutive" (t−1, t), "initial" (first recorded step, t), "base" (W₀, t), or a list of pairs, with
            ``None`` for the base.
        axes: "row", "column" or both.
        quantiles: Each in [0, 1]; ``None`` for one row a vector.
        modules, progress: As in `singular_values`.

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
    blocks = []
    walk = Walk(runs, "vectors", at_pairs(pairs), modules, unit="pair", progress=progress)
    for stop in walk:
        stop.where = from_to(stop.step_from, stop.step)
        with stop:
            found = changes(stop.weight(stop.step_from), stop.weight(stop.step), axes)
            for axis, change in found.items():
                vectors = {"delta_m": change.magnitude.numpy(), "delta_d": change.direction.numpy()}
                spread = vectors if at is None else {name: _quantiles(each, at) for name, each in vectors.items()}
                blocks.append(
                    stop.labels
                    | {"axis": axis, "step_from": stop.step_from, "step_to": stop.step}
                    | {place: np.arange(len(vectors["delta_m"])) if at is None else at}
                    | spread
                    | {"undefined": change.undefined}
                )
    return walk.frame(blocks, [*LABELS, "axis", "step_from", "step_to", place, "delta_m", "delta_d", "undefined"])


def _checked_quantiles(quantiles: Sequence[float] | None) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    if quantiles is None:
        return None
    try:
        at = np.asarray(list(quantiles), dtype=np.float64)
    except (TypeError, ValueError):
        at = np.empty(0)
    if not (at.ndim == 1 and at.size and bool(((at >= 0) & (at <= 1)).all())):
        raise OptionError(f"quantiles are {quantiles!r}; choose numbers from 0 to 1, or None for every vector")
    return at


def _quantiles(values: np.ndarray[Any, np.dtype[np.float64]], at: np.ndarray[Any, np.dtype[np.float64]]) -> Any:
    """Return the quantiles of those that are numbers; NaN where none is."""
    values = values[~np.isnan(values)]
    return np.quantile(values, at) if values.size else np.full(at.shape, np.nan)
