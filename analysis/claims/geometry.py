"""Numbers made of the geometry of ΔW against W₀: rotation, drift, off-principal share, intruders, distance.

Of all but the growth of a distance they are those of the last step that the compared runs have, averaged over matrices
and runs.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from deltaw.analysis.claims.evidence import of_equal_rank, require_methods, trained
from deltaw.analysis.claims.interval import LINEAR, LOG, Array, Measured, Undecidable, Weights, bootstrap

EXPECTED = {
    "rotation_left": "rotation_random",
    "rotation_right": "rotation_random",
    "off_principal": "off_principal_expected",
}


def geometry_ratio(geometry: pd.DataFrame, column: str, over: str, under: str) -> Measured:
    """Return the mean of a column over matrices and runs of one method, over that of another.

    Arguments:
        geometry: See ``Evidence``.
        column: Of the table.
        over, under: The methods.
    """
    values, note = _at_last(geometry, [over, under], [column])

    def measure(weights: Weights) -> Array:
        return _ratio(weights.both(over) @ values[over][column], weights.both(under) @ values[under][column])

    return _bootstrapped(measure, values, column, note)


def beside_chance(geometry: pd.DataFrame, column: str, method: str) -> Measured:
    """Return the mean of a column over the mean of what a random update of the same size has."""
    values, note = _at_last(geometry, [method], [column, EXPECTED[column]])

    def measure(weights: Weights) -> Array:
        both = weights.both(method)
        return _ratio(both @ values[method][column], both @ values[method][EXPECTED[column]])

    return _bootstrapped(measure, values, column, note)


def intruder_count(intruders: pd.DataFrame, method: str, minus: str | None = None) -> Measured:
    """Return how many intruder dimensions a matrix has in the mean, or how many more than another method's.

    Arguments:
        intruders: See ``Evidence``: one row a singular vector.
        method, minus: The methods.
    """
    methods = [method] if minus is None else [method, minus]
    values, note = _at_last(_counted(intruders), methods, ["intruder"])
    return _difference(values, "intruder", methods, note)


def intruder_gain(intruders: pd.DataFrame, method: str) -> Measured:
    """Return how many more intruder dimensions a matrix has at a method's highest rank than at its lowest."""
    require_methods(intruders, [method])
    rows = trained(_counted(intruders))
    rows = rows[rows["method"] == method]
    ranks = sorted({int(rank) for rank in rows["adapter_rank"].dropna()})
    if len(ranks) < 2:
        raise Undecidable(f"missing: runs of {method} at two ranks")
    labels = [f"{method} of rank {rank}" for rank in (ranks[-1], ranks[0])]
    ends = rows[rows["adapter_rank"].isin([ranks[0], ranks[-1]])].drop(columns="adapter_rank")
    named = ends.assign(method=[f"{method} of rank {int(rank)}" for rank in rows.loc[ends.index, "adapter_rank"]])
    values, note = _at_last(named, labels, ["intruder"])
    return _difference(values, "intruder", labels, note)


def distance_growth(distances: pd.DataFrame, method: str, under: str | None = None) -> Measured:
    """Return how ‖ΔW‖ grew from the middle of training to its end, or that over the same of another method.

        growth = mean of ‖ΔW‖ at the last step / mean at the recorded step nearest to half of it

    Arguments:
        distances: See ``Evidence``: two steps of every run.
        method, under: The methods.
    """
    methods = [method] if under is None else [method, under]
    rows = of_equal_rank(distances, methods)
    steps = rows.groupby("run")["step"]
    if (steps.transform("min") == steps.transform("max")).any():
        raise Undecidable("a run has one recorded step alone after its start")
    place = np.where(rows["step"] == steps.transform("max"), "end", "half")
    wide = rows.assign(place=place).pivot_table(
        index=["method", "run", "module"], columns="place", values="frobenius", aggfunc="last"
    )
    values = _by_method(wide.reset_index(), methods, ["end", "half"])

    def growth(weights: Weights, name: str) -> Array:
        both = weights.both(name)
        return _ratio(both @ values[name]["end"], both @ values[name]["half"])

    def measure(weights: Weights) -> Array:
        found = [growth(weights, name) for name in methods]
        return found[0] if under is None else _ratio(found[0], found[1])

    return _bootstrapped(measure, values, "end", "")


def _at_last(
    frame: pd.DataFrame, methods: Sequence[str], columns: Sequence[str]
) -> tuple[dict[str, dict[str, Array]], str]:
    """The columns, (runs · matrices,) by method, at the last step that all the runs have, and what to say of it."""
    rows = of_equal_rank(frame, methods)
    steps = [set(found["step"]) for _, found in rows.groupby("run")]
    common = set.intersection(*steps)
    if not common:
        raise Undecidable("the runs have no step in common")
    last = max(common)
    note = "" if all(last == max(own) for own in steps) else f"at step {last}, the last that all have"
    return _by_method(rows[rows["step"] == last], methods, columns), note


def _by_method(rows: pd.DataFrame, methods: Sequence[str], columns: Sequence[str]) -> dict[str, dict[str, Array]]:
    """The columns of the matrices that every run has a number for, (runs · matrices,), the runs one after the other."""
    rows = rows.assign(module=rows["module"].astype(str))
    tables = {
        method: {
            column: rows[rows["method"] == method].pivot_table(
                index="run", columns="module", values=column, aggfunc="last", observed=True
            )
            for column in columns
        }
        for method in methods
    }
    whole = [table.dropna(axis=1) for of_method in tables.values() for table in of_method.values()]
    names = sorted(set.intersection(*(set(table.columns) for table in whole)))
    if not names or any(table.empty for table in whole):
        raise Undecidable("the runs have no matrix in common in which this is defined")
    return {
        method: {column: table[names].to_numpy(dtype=np.float64).reshape(-1) for column, table in of_method.items()}
        | {"": np.array([len(names)])}
        for method, of_method in tables.items()
    }


def _difference(values: Mapping[str, Mapping[str, Array]], column: str, methods: Sequence[str], note: str) -> Measured:
    def measure(weights: Weights) -> Array:
        found = [weights.both(name) @ values[name][column] for name in methods]
        return np.asarray(found[0] if len(found) == 1 else found[0] - found[1])

    return _bootstrapped(measure, values, column, note, ratio=False)


def _bootstrapped(
    measure: Callable[[Weights], Array],
    values: Mapping[str, Mapping[str, Array]],
    column: str,
    note: str,
    *,
    ratio: bool = True,
) -> Measured:
    matrices = int(next(iter(values.values()))[""][0])
    runs = {method: len(found[column]) // matrices for method, found in values.items()}
    found = bootstrap(measure, matrices, runs, LOG if ratio else LINEAR)
    return Measured(found.statistic, found.interval, "; ".join(filter(None, [found.note, note])))


def _ratio(over: Array, under: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(over / under)


def _counted(intruders: pd.DataFrame) -> pd.DataFrame:
    """The number of intruders of every matrix and step, in place of a row a vector."""
    if intruders.empty:
        return intruders
    keys = [name for name in ("run", "method", "module", "step", "adapter_rank", "guessing") if name in intruders]
    counted = intruders.assign(intruder=intruders["intruder"].astype("float64"), module=intruders["module"].astype(str))
    return counted.groupby(keys, sort=False, dropna=False)["intruder"].sum().reset_index()
