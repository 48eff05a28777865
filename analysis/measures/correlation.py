"""How magnitude and direction change go together: the correlation that DoRA and BoRA read off their figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deltaw.adapters.checks import public
from deltaw.adapters.errors import OptionError

if TYPE_CHECKING:  # a measure is imported without pandas: only this one needs it, and only when it is called
    import pandas as pd

_BY = ("run", "kind", "axis")


@public
def correlation(
    frame: pd.DataFrame,
    by: str | Sequence[str] = _BY,
    x: str = "delta_d",
    y: str = "delta_m",
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Return one row per group with the correlation of ``y`` with ``x`` and the line through the points.

        pearson = Σ dx dy / √(Σ dx² Σ dy²),    slope = Σ dx dy / Σ dx²,    intercept = ȳ − slope·x̄
        interval = tanh(artanh(pearson) ± z/√(n − 3))

    with dx = x − x̄, dy = y − ȳ and z the normal quantile of ``confidence``. Spearman's is Pearson's of the ranks,
    ties sharing their average rank.

    Arguments:
        frame: One row per point, as ``Trajectory.changes`` gives.
        by: The column or columns that make a group; none of them for one group of all rows.
        x, y: The columns of numbers.
        confidence: The level of the interval, in (0, 1).

    Returns:
        A table with the columns of ``by``, then pearson, spearman, slope, intercept, n, dropped, ci_low, ci_high;
        groups in order of appearance. ``n`` rows counted, ``dropped`` rows had NaN or infinity in x or y.
        NaN stands where a number is not defined: all of them for fewer than two points or a constant x; pearson,
        spearman and the interval for a constant y; the interval for n < 4.

    Raises:
        OptionError: A column that is not in ``frame`` or, of x and y, not of numbers; a confidence outside (0, 1).

    Source:
        DoRA, section 3.2 (the correlation of ΔD and ΔM in its figure 2); Fisher 1915 (the interval).

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"axis": "row", "delta_d": [1.0, 2.0, 3.0, 4.0], "delta_m": [1.0, 3.0, 2.0, 5.0]})
        >>> correlation(frame, by="axis")[["pearson", "spearman", "slope", "n"]].round(3).values.tolist()
        [[0.832, 0.8, 1.1, 4.0]]
    """
    import pandas as pd

    keys = [by] if isinstance(by, str) else list(by)
    for name in (*keys, x, y):
        if name not in frame.columns:
            raise OptionError(f"column {name!r} is not in the table; it has {', '.join(map(str, frame.columns))}")
    for name in (x, y):
        if not pd.api.types.is_numeric_dtype(frame[name]):
            raise OptionError(f"column {name!r} holds {frame[name].dtype}, not numbers; choose another x or y")
    if not 0 < confidence < 1:
        raise OptionError(f"confidence is {confidence!r}; choose a level between 0 and 1, as 0.95")
    groups = frame.groupby(keys, sort=False, dropna=False) if keys else [((), frame)]
    rows = [
        dict(zip(keys, key, strict=True)) | _row(_numbers(group[x]), _numbers(group[y]), confidence)
        for key, group in groups
    ]
    return pd.DataFrame(rows, columns=[*keys, *_row(np.empty(0), np.empty(0), confidence)])


def _numbers(column: pd.Series[float]) -> NDArray[np.float64]:
    return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan), dtype=np.float64)


def _row(x: NDArray[np.float64], y: NDArray[np.float64], confidence: float) -> dict[str, float | int]:
    """Return the numbers of one group."""
    kept = np.isfinite(x) & np.isfinite(y)
    x, y = x[kept], y[kept]
    n = len(x)
    pearson = spearman = slope = intercept = math.nan
    if n > 1 and np.ptp(x) > 0:
        dx, x_mean, x_scale = _centred(x)
        dy, y_mean, y_scale = _centred(y)
        slope = float(dx @ dy / (dx @ dx)) * (y_scale / x_scale)
        intercept = y_mean - slope * x_mean
        if np.ptp(y) > 0:
            pearson = _pearson(dx, dy)
            spearman = _pearson(*(_centred(_ranks(t))[0] for t in (x, y)))
    low, high = _interval(pearson, n, confidence)
    return {
        "pearson": pearson,
        "spearman": spearman,
        "slope": slope,
        "intercept": intercept,
        "n": n,
        "dropped": int((~kept).sum()),
        "ci_low": low,
        "ci_high": high,
    }


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the ranks; equal values share their average."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[place], dtype=np.float64)


def _centred(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], float, float]:
    """Return (values − mean)/scale, the mean and the scale, so that values of 1e-10 or 1e-200 lose no digit."""
    shifted = values - values[0]
    scale = float(np.abs(shifted).max()) or 1.0
    shifted = shifted / scale
    offset = float(shifted.mean())
    return shifted - offset, float(values[0]) + offset * scale, scale


def _pearson(dx: NDArray[np.float64], dy: NDArray[np.float64]) -> float:
    return float(np.clip(dx @ dy / math.sqrt((dx @ dx) * (dy @ dy)), -1, 1))


def _interval(pearson: float, n: int, confidence: float) -> tuple[float, float]:
    """Return Fisher's interval; a correlation of ±1 leaves nothing to doubt."""
    if n < 4 or math.isnan(pearson):
        return math.nan, math.nan
    if abs(pearson) == 1:
        return pearson, pearson
    half = NormalDist().inv_cdf((1 + confidence) / 2) / math.sqrt(n - 3)
    centre = math.atanh(pearson)
    return math.tanh(centre - half), math.tanh(centre + half)
