"""Numbers made of ΔM and ΔD over training: asymmetries, ratios at the end, correlations."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import Concatenate, Literal, ParamSpec

import numpy as np
import pandas as pd

from deltaw.analysis.claims.evidence import of_equal_rank, require_methods
from deltaw.analysis.claims.interval import (
    FISHER,
    LINEAR,
    LOG,
    Array,
    Measured,
    Scale,
    Undecidable,
    Unlearned,
    Weights,
    bootstrap,
)
from deltaw.analysis.claims.rules import asymmetry, pearson, slope
from deltaw.analysis.measures.change import Axis

P = ParamSpec("P")
Quantity = Literal["delta_m", "delta_d"]
SYMBOLS: dict[Quantity, str] = {"delta_m": "ΔM", "delta_d": "ΔD"}


@dataclass(frozen=True)
class Curves:
    """ΔM or ΔD of one method.

    Arguments:
        matrices: Their names; every run and axis has them.
        pairs: (end, start) of the pairs of steps that all runs, matrices and axes have a number for, in order.
        values: (runs, matrices, pairs) by axis.
    """

    matrices: list[str]
    pairs: list[tuple[int, float]]
    values: dict[Axis, Array]

    @property
    def runs(self) -> int:
        """How many runs there are."""
        return len(next(iter(self.values.values())))

    def at(self, matrices: Sequence[str], pairs: Sequence[int] | None = None) -> dict[Axis, Array]:
        """The values of some matrices and pairs (by position), (runs, matrices, pairs) by axis."""
        rows = [self.matrices.index(name) for name in matrices]
        chosen = range(len(self.pairs)) if pairs is None else pairs
        return {axis: values[:, rows][:, :, list(chosen)] for axis, values in self.values.items()}


def curves(frame: pd.DataFrame, method: str, quantity: Quantity, axes: Sequence[Axis] = ("row", "column")) -> Curves:
    """Return the curves of one method, of the pairs at which every run, matrix and axis has a number.

    Raises:
        Undecidable: An axis is missing, or there is no such pair.
    """
    rows = frame[(frame["method"] == method) & frame["axis"].isin(list(axes))]
    for axis in axes:
        if not (rows["axis"] == axis).any():
            raise Undecidable(f"missing: the {axis}s of {method}")
    starts = pd.to_numeric(rows["step_from"]).astype("Float64").fillna(-1.0).astype("float64")  # missing: the base
    pairs = pd.MultiIndex.from_arrays([rows["step_to"].astype("int64"), starts])
    place, there = zip(
        *(pd.factorize(keys, sort=True) for keys in (rows["axis"], rows["run"], rows["module"].astype(str), pairs)),
        strict=True,
    )
    totals, counts = (np.zeros([len(names) for names in there]) for _ in range(2))  # (axes, runs, matrices, pairs)
    value = rows[quantity].astype("float64").replace([math.inf, -math.inf], math.nan).to_numpy()
    np.add.at(totals, place, value)
    np.add.at(counts, place, 1.0)
    whole = (counts.sum(axis=3) > 0).all(axis=(0, 1))  # matrices that every run and axis has
    if not whole.any():
        raise Undecidable(f"the runs of {method} have no matrix in common")
    with np.errstate(invalid="ignore"):
        means = (totals / counts)[:, :, whole]
    defined = np.isfinite(means).all(axis=(0, 1, 2))
    if not defined.any():
        raise Undecidable(f"{method} has no pair of steps at which {SYMBOLS[quantity]} is defined in every layer")
    _, _, modules, steps = there
    values: dict[Axis, Array] = {axis: means[list(there[0]).index(axis)][:, :, defined] for axis in axes}
    return Curves(
        [str(name) for name in modules[whole]],
        [(int(end), float(start)) for end, start in steps[defined]],
        values,
    )


def common_matrices(parts: Sequence[Curves]) -> list[str]:
    """The matrices that all have, in order.

    Raises:
        Undecidable: There is none.
    """
    names = [name for name in parts[0].matrices if all(name in part.matrices for part in parts[1:])]
    if not names:
        raise Undecidable("the methods' runs have no layer in common")
    return names


def last_pairs(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the changes up to the last step of every run."""
    return frame[frame["step_to"] == frame.groupby("run")["step_to"].transform("max")] if len(frame) else frame


def _of_trained(
    measure: Callable[Concatenate[pd.DataFrame, P], Measured], /
) -> Callable[Concatenate[pd.DataFrame, P], Measured]:
    """Measure runs that learned nothing, too, and say so in place of a verdict."""

    @wraps(measure)
    def measured(frame: pd.DataFrame, /, *args: P.args, **options: P.kwargs) -> Measured:
        try:
            return measure(frame, *args, **options)
        except Unlearned as reason:
            found = measure(frame.drop(columns="guessing"), *args, **options)
            raise Undecidable(str(reason), found.statistic) from None

    return measured


@_of_trained
def asymmetry_of(frame: pd.DataFrame, quantity: Quantity, method: str, minus: str | None = None) -> Measured:
    """Return A of a method, or how much larger it is than another's."""
    methods = [method] if minus is None else [method, minus]
    rows = of_equal_rank(frame, methods)
    parts = {name: curves(rows, name, quantity) for name in methods}
    matrices = common_matrices(list(parts.values()))
    tables = {name: part.at(matrices) for name, part in parts.items()}

    def measure(weights: Weights) -> Array:
        found = [
            asymmetry(weights.both(name), *(_flat(table[axis]) for axis in ("row", "column")))
            for name, table in tables.items()
        ]
        return found[0] if minus is None else found[0] - found[1]

    found = bootstrap(measure, len(matrices), {name: part.runs for name, part in parts.items()})
    if minus is not None or found.interval is None:
        return found
    low, high = found.interval
    return replace(found, interval=(max(low, 0.0), min(high, 2.0)))  # A cannot lie outside


@_of_trained
def change_ratio(
    frame: pd.DataFrame, quantity: Quantity, *parts: tuple[str, Sequence[Axis]], every: bool = False
) -> Measured:
    """Return the change at the end of one method, averaged over some axes, over that of another.

    Arguments:
        frame: Changes of initial or base pairs; of consecutive pairs with ``every``.
        parts: A method and its axes, over another.
        every: Take the mean over all the pairs that both have, in place of the last.
    """
    rows = of_equal_rank(frame, [method for method, _ in parts])
    found = [curves(rows, method, quantity, axes) for method, axes in parts]
    ends = [{end for end, _ in part.pairs} for part in found]
    common = set.intersection(*(set(part.pairs) for part in found)) if every else set.intersection(*ends)
    if not common:
        raise Undecidable(f"{' and '.join(method for method, _ in parts)} have no step in common")
    last = max(set.intersection(*ends))
    matrices = common_matrices(found)

    def mean(part: Curves) -> Array:
        chosen = [part.pairs.index(pair) for pair in part.pairs if pair in common] if every else [_position(part, last)]
        return np.asarray(
            np.mean([_flat(values).mean(axis=1) for values in part.at(matrices, chosen).values()], axis=0)
        )

    over, under = (mean(part) for part in found)

    def measure(weights: Weights) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray((weights.both(parts[0][0]) @ over) / (weights.both(parts[1][0]) @ under))

    runs = {method: part.runs for (method, _), part in zip(parts, found, strict=True)}
    measured = bootstrap(measure, len(matrices), runs, LOG)
    if every:
        return replace(measured, note=f"{measured.note}, {len(common)} pairs of steps")
    if any(last < max(those) for those in ends):
        return Measured(
            measured.statistic, measured.interval, f"{measured.note}; at step {last}, the last that both have"
        )
    return measured


@_of_trained
def correlation_of(
    frame: pd.DataFrame, kind: str, axis: Axis, methods: Sequence[str], combine: Callable[..., Array]
) -> Measured:
    """Return a number made of the correlations r of ΔD with ΔM of some methods; see the rules.

    Arguments:
        frame: Changes of base pairs.
        kind: The kind of matrix.
        axis: Along which both are measured.
        methods: One or several.
        combine: From the methods' r, each (resamples,), to the number.
    """
    return _of_clouds(frame, kind, axis, methods, combine, pearson, FISHER if len(methods) == 1 else LINEAR)


@_of_trained
def slope_of(
    frame: pd.DataFrame, kind: str, axis: Axis, methods: Sequence[str], combine: Callable[..., Array]
) -> Measured:
    """Return a number made of the slopes of ΔM on ΔD, of the same points and steps as ``correlation_of``."""
    return _of_clouds(frame, kind, axis, methods, combine, slope, LINEAR)


def _of_clouds(
    frame: pd.DataFrame,
    kind: str,
    axis: Axis,
    methods: Sequence[str],
    combine: Callable[..., Array],
    statistic: Callable[[Weights, str, Array, Array], Array],
    scale: Scale,
) -> Measured:
    rows = frame[frame["kind"] == kind]
    require_methods(frame, methods)
    require_methods(rows, methods, f"{kind} matrix")
    rows = of_equal_rank(rows, methods)
    clouds: dict[str, tuple[Array, Array]] = {}
    parts: dict[str, tuple[Curves, Curves]] = {}
    for method in methods:
        both = curves(rows, method, "delta_d", [axis]), curves(rows, method, "delta_m", [axis])
        parts[method] = both
    matrices = common_matrices([part for both in parts.values() for part in both])
    shown = []
    for method, (of_d, of_m) in parts.items():
        pairs = [pair for pair in of_d.pairs if pair in of_m.pairs and pair[0] > 0]
        if not pairs:
            raise Undecidable(f"{method} has no recorded step after the start")
        chosen = four_of([end for end, _ in pairs])
        positions = [[part.pairs.index(pair) for pair in pairs if pair[0] in chosen] for part in (of_d, of_m)]
        clouds[method] = (of_d.at(matrices, positions[0])[axis], of_m.at(matrices, positions[1])[axis])
        shown.append(", ".join(map(str, chosen)))

    def measure(weights: Weights) -> Array:
        return np.asarray(combine(*(statistic(weights, method, *clouds[method]) for method in methods)))

    runs = {method: both[0].runs for method, both in parts.items()}
    found = bootstrap(measure, len(matrices), runs, scale)
    steps = "; ".join(dict.fromkeys(shown))
    return Measured(found.statistic, found.interval, f"{found.note}; steps {steps}")


def four_of(steps: Sequence[int]) -> list[int]:
    """Return the last step and those nearest to a quarter, a half and three quarters of it.

    Example:
        >>> four_of([20, 40, 60, 80, 100])
        [20, 60, 80, 100]
        >>> four_of([5, 10])
        [5, 10]
    """
    ordered = sorted(set(steps))
    if len(ordered) <= 4:
        return ordered
    last = ordered[-1]
    return sorted({min(ordered, key=lambda step: (abs(step - last * part / 4), -step)) for part in (1, 2, 3, 4)})


def _flat(values: Array) -> Array:
    return values.reshape(-1, values.shape[-1])


def _position(part: Curves, end: int) -> int:
    return next(index for index, pair in enumerate(part.pairs) if pair[0] == end)
