"""What the claims are held against: the tables of recorded runs, and the numbers that are made from them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pandas as pd

from deltaw.analysis.claims.interval import FISHER, LINEAR, LOG, Array, Measured, Undecidable, Weights, Z, bootstrap
from deltaw.analysis.claims.rules import Parts, asymmetry, count_of, pearson
from deltaw.analysis.measures.change import Axis
from deltaw.analysis.tables.tidy import display_name

Quantity = Literal["delta_m", "delta_d"]
SYMBOLS: dict[Quantity, str] = {"delta_m": "ΔM", "delta_d": "ΔD"}

CHANGES = ("run", "method", "module", "layer", "kind", "axis", "step_from", "step_to", "delta_m", "delta_d")
SPECTRA = ("run", "method", "module", "layer", "group", "rank", "full_rank")
REGIONS = ("run", "method", "module", "out", "in", "moved_rows", "moved_columns", "untouched_weights")
RUNS = (
    "run",
    "method",
    "rank",
    "direction_rank",
    "trainable",
    "share",
    "seconds_per_epoch",
    "peak_megabytes",
    "on_gpu",
)
SCORES = ("run", "method", "rank", "direction_rank", "score", "value", "n")

ANY, MEAN = "any", "mean"  # names of scores: the run's own, whatever it is; the mean of its tasks
SCORE_NAMES = {
    "mcc": "best Matthews correlation",
    "vqa": "VQA accuracy",
    "gqa": "GQA accuracy",
    "nlvr": "NLVR² accuracy",
    "caption": "CIDEr of the captions",
    MEAN: "mean of the four scores",
    ANY: "score",
}
VL_TASKS = ("vqa", "gqa", "nlvr", "caption")


def _empty(columns: Sequence[str]) -> Callable[[], pd.DataFrame]:
    return lambda: pd.DataFrame(columns=list(columns))


@dataclass(frozen=True)
class Evidence:
    """Tables of recorded runs; what there is none of stays empty.

    Arguments:
        runs: One row a run: run, method, rank, direction_rank (missing where there is none), trainable (parameters),
            share (of all parameters), seconds_per_epoch, peak_megabytes, on_gpu (where memory was measured).
        scores: One row a run and score: run, method, rank, direction_rank, score (its name: mcc, vqa, …), value, n
            (examples).
        consecutive, initial, base: ``Trajectory.changes`` of such pairs; a column ``adapter_rank`` tells apart runs
            of several ranks.
        spectra: ``Trajectory.spectra`` at each run's last step, with groups, and adapter_rank and direction_rank.
        regions: One row a matrix, with adapter_rank: how many rows and columns of ΔW are not zero.
        kind: The kind of matrix that BoRA's claims are about.
    """

    runs: pd.DataFrame = field(default_factory=_empty(RUNS))
    scores: pd.DataFrame = field(default_factory=_empty(SCORES))
    consecutive: pd.DataFrame = field(default_factory=_empty(CHANGES))
    initial: pd.DataFrame = field(default_factory=_empty(CHANGES))
    base: pd.DataFrame = field(default_factory=_empty(CHANGES))
    spectra: pd.DataFrame = field(default_factory=_empty(SPECTRA))
    regions: pd.DataFrame = field(default_factory=_empty(REGIONS))
    kind: str = "query"


def require_methods(frame: pd.DataFrame, methods: Sequence[str], what: str = "run") -> None:
    """Raise where the table lacks one of the methods.

    Raises:
        Undecidable: Names those that are missing.
    """
    missing = [method for method in dict.fromkeys(methods) if not (frame["method"] == method).any()]
    if missing:
        raise Undecidable(f"missing: a {what} of {' and of '.join(missing)}")


def of_equal_rank(frame: pd.DataFrame, methods: Sequence[str], what: str = "run") -> pd.DataFrame:
    """Return the rows of these methods at the lowest rank that all of them have; methods without a rank count anyway.

    Arguments:
        frame: A table with method and, where there are several ranks, adapter_rank or rank.

    Raises:
        Undecidable: A method is missing, or they have no rank in common.
    """
    require_methods(frame, methods, what)
    rows = frame[frame["method"].isin(list(methods))]
    column = rank_column(frame)
    if column is None:
        return rows
    ranks = [set(rows.loc[rows["method"] == method, column].dropna()) for method in methods]
    ranks = [found for found in ranks if found]
    if not ranks:
        return rows
    common = set.intersection(*ranks)
    if not common:
        raise Undecidable(f"missing: {what}s of {count_of(methods)} of the same rank")
    kept: pd.DataFrame = rows[rows[column].isna() | (rows[column] == min(common))]
    return kept


def rank_column(frame: pd.DataFrame) -> str | None:
    """The column with the rank of the adapters; in spectra "rank" is that of ΔW."""
    if "adapter_rank" in frame.columns:
        return "adapter_rank"
    return "rank" if "rank" in frame.columns and "full_rank" not in frame.columns else None


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


def change_ratio(frame: pd.DataFrame, quantity: Quantity, *parts: tuple[str, Sequence[Axis]]) -> Measured:
    """Return the change at the end of one method, averaged over some axes, over that of another.

    Arguments:
        frame: Changes of initial or base pairs.
        parts: A method and its axes, over another.
    """
    rows = of_equal_rank(frame, [method for method, _ in parts])
    found = [curves(rows, method, quantity, axes) for method, axes in parts]
    ends = [{end for end, _ in part.pairs} for part in found]
    common = set.intersection(*ends)
    if not common:
        raise Undecidable(f"{' and '.join(method for method, _ in parts)} have no step in common")
    last = max(common)
    matrices = common_matrices(found)
    over, under = (
        np.mean([_flat(values)[:, 0] for values in part.at(matrices, [_position(part, last)]).values()], axis=0)
        for part in found
    )

    def measure(weights: Weights) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray((weights.both(parts[0][0]) @ over) / (weights.both(parts[1][0]) @ under))

    runs = {method: part.runs for (method, _), part in zip(parts, found, strict=True)}
    measured = bootstrap(measure, len(matrices), runs, LOG)
    if any(last < max(those) for those in ends):
        return Measured(
            measured.statistic, measured.interval, f"{measured.note}; at step {last}, the last that both have"
        )
    return measured


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
        return np.asarray(combine(*(pearson(weights, method, *clouds[method]) for method in methods)))

    runs = {method: both[0].runs for method, both in parts.items()}
    found = bootstrap(measure, len(matrices), runs, FISHER if len(methods) == 1 else LINEAR)
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


def ratio_of(runs: pd.DataFrame, column: str, over: str, under: str) -> Measured:
    """Return the ratio of two methods' medians of a number of their runs."""
    rows = of_equal_rank(runs, [over, under], "result")
    top, bottom = (number_of(rows[rows["method"] == method], column, method) for method in (over, under))
    form = ",.0f" if column == "trainable" else ",.4g"
    return Measured(top / bottom, None, f"{top:{form}} / {bottom:{form}}")


def number_of(rows: pd.DataFrame, column: str, method: str) -> float:
    """Return the median of a positive number over runs.

    Raises:
        Undecidable: A run lacks it.
    """
    numbers = pd.to_numeric(rows[column]).astype("float64")
    if not np.isfinite(numbers).all() or (numbers <= 0).any():
        raise Undecidable(f"missing: {column} of {method}")
    if column == "peak_megabytes" and not rows["on_gpu"].fillna(False).astype(bool).all():
        raise Undecidable("memory was not measured on a GPU, or the runs do not say so")
    return float(numbers.median())


def ratios_by_rank(runs: pd.DataFrame, column: str, over: str, under: str, times: float = 1.0) -> Parts:
    """Return the ratio of two methods' medians by the rank of the first, of all ranks that can be compared.

    Arguments:
        times: The rank of the second over that of the first.
    """
    require_methods(runs, [over, under])
    parts: dict[str, Measured] = {}
    for rank in pairs_of_ranks(runs, over, under, times):
        top = number_of(_at_rank(runs, over, rank), column, over)
        bottom = number_of(_at_rank(runs, under, rank * times), column, under)
        parts[f"rank {rank:g}"] = Measured(top / bottom, None)
    if not parts:
        raise Undecidable(f"missing: runs of {over} and {under} {_relation(times)}")
    return Parts(parts)


def pairs_of_ranks(frame: pd.DataFrame, first: str, second: str, times: float = 1.0) -> list[float]:
    """Return the ranks of the first method for which the second was run at ``times`` that rank, in order."""
    one, other = (set(frame.loc[frame["method"] == method, "rank"].dropna()) for method in (first, second))
    return sorted(float(rank) for rank in one if any(math.isclose(rank * times, o) for o in other))


def score_difference(
    scores: pd.DataFrame, name: str, better: str, worse: str, times: float | None = 1.0, paper: float | None = None
) -> Measured:
    """Return how much higher one method scores than another, with its interval.

    Arguments:
        scores: See ``Evidence``.
        name: The score's name, ``MEAN`` or ``ANY``.
        better, worse: The methods.
        times: The rank of the second over that of the first; the lowest such rank counts. ``None`` for whatever rank.
        paper: The paper's difference, for a note where it would be too small to tell.
    """
    (ranks, *_) = _rank_pairs(scores, better, worse, times)
    over, under = (_at_rank(scores, method, rank) for method, rank in zip((better, worse), ranks, strict=True))
    return _difference(over, under, name, better, worse, paper)


def score_differences(scores: pd.DataFrame, name: str, better: str, worse: str, times: float = 1.0) -> Parts:
    """Return the differences at every rank at which the two methods can be compared."""
    parts = {}
    for one, other in _rank_pairs(scores, better, worse, times):
        over, under = _at_rank(scores, better, one), _at_rank(scores, worse, other)
        label = "no rank" if one is None else f"rank {one:g}"
        parts[label] = _difference(over, under, name, better, worse, None)
    return clear_of(parts)


def clear_of(parts: Mapping[str, Measured]) -> Parts:
    """Return differences as parts of one claim, with how many of them are clear."""
    intervals = [found.interval for found in parts.values() if found.interval is not None]
    above, under = sum(low > 0 for low, _ in intervals), sum(high < 0 for _, high in intervals)
    higher = sum(found.statistic > 0 for found in parts.values())
    note = f"above at {higher} of {len(parts)}, beyond the standard error above at {above}, below at {under}"
    return Parts(parts, one_breaks=True, note=note)


def _rank_pairs(
    scores: pd.DataFrame, better: str, worse: str, times: float | None
) -> list[tuple[float | None, float | None]]:
    """The ranks at which two methods can be compared, in order; ``None`` stands for a method without a rank."""
    require_methods(scores, [better, worse], "result")
    first, second = (
        sorted(float(rank) for rank in set(scores.loc[scores["method"] == method, "rank"].dropna()))
        for method in (better, worse)
    )
    if not first or not second or times is None:
        return [(first[0] if first else None, second[0] if second else None)]
    ranks = pairs_of_ranks(scores, better, worse, times)
    if not ranks:
        raise Undecidable(f"missing: results of {better} and {worse} {_relation(times)}")
    return [(rank, rank * times) for rank in ranks]


def _relation(times: float) -> str:
    if times == 1:
        return "of the same rank"
    return f"of {times:g} times that rank" if times > 1 else f"of 1/{1 / times:g} of that rank"


def _at_rank(frame: pd.DataFrame, method: str, rank: float | None) -> pd.DataFrame:
    rows = frame[frame["method"] == method]
    if rank is None or rows["rank"].isna().all():
        return rows
    return rows[np.isclose(rows["rank"].astype("float64"), rank)]


def _difference(
    over: pd.DataFrame, under: pd.DataFrame, name: str, better: str, worse: str, paper: float | None
) -> Measured:
    (high, one), (low, other) = (_score(rows, name, method) for rows, method in ((over, better), (under, worse)))
    if name == ANY and set(over["score"]) != set(under["score"]):
        raise Undecidable(f"the runs of {better} and {worse} were scored on different things")
    reach = Z * math.hypot(one, other)
    note = ""
    if paper is not None and abs(paper) < reach:
        note = f"the paper's own difference would be unclear with so few examples (±{reach:.3f})"
    return Measured(high - low, (high - low - reach, high - low + reach), note)


def _score(rows: pd.DataFrame, name: str, method: str) -> tuple[float, float]:
    """The mean of a score over runs, and its standard error; see the rules."""
    names = list(dict.fromkeys(rows["score"]))
    if name == ANY:
        wanted = names
    elif name == MEAN:
        wanted = list(VL_TASKS)
    else:
        wanted = [name]
    missing = [one for one in wanted if one not in names]
    if missing or not wanted:
        named = [SCORE_NAMES.get(one, one) for one in missing] or ["a score"]
        raise Undecidable(f"missing: {count_of(named)} of {method}")
    values, errors = [], []
    for one in wanted:
        found = rows[rows["score"] == one]
        numbers = pd.to_numeric(found["value"]).to_numpy(dtype=np.float64)
        examples = pd.to_numeric(found["n"]).to_numpy(dtype=np.float64)
        if not (np.isfinite(numbers).all() and np.isfinite(examples).all() and (examples > 0).all()):
            raise Undecidable(f"missing: {SCORE_NAMES.get(one, one)} of {method}, or its number of examples")
        values.append(numbers)
        errors.append(standard_error(one, float(numbers.mean()), float(examples.min())))
    if len({len(numbers) for numbers in values}) > 1:
        raise Undecidable(f"not every run of {method} has every score")
    means = np.mean(values, axis=0)  # (runs,)
    between = float(means.var(ddof=1)) / len(means) if len(means) > 1 else 0.0
    return float(means.mean()), math.sqrt(math.fsum(e**2 for e in errors) / len(errors) ** 2 + between)


def standard_error(name: str, value: float, n: float) -> float:
    """Return the standard error of a score on n examples; see the rules.

    Example:
        >>> [round(standard_error(name, 0.5, 100), 4) for name in ("mcc", "vqa", "caption")]
        [0.075, 0.05, 0.2179]
    """
    if name == "mcc":
        return (1 - value**2) / math.sqrt(n)
    if name == "caption":
        return math.sqrt(max(value * (10 - value), 0.0) / n)
    p = (value * n + 2) / (n + 4)
    return math.sqrt(max(p * (1 - p), 0.0) / n)


def method_name(method: str) -> str:
    """Return the display name of a method, or of one of its variants: "qdora", "dual-lora, activation abs".

    Example:
        >>> method_name("qdora"), method_name("dora, detach_norm False")
        ('QDoRA (column)', 'DoRA (column) (detach_norm False)')
    """
    name, _, variant = method.partition(", ")
    shown = display_name(name)
    if shown == name and name.startswith("q") and display_name(name[1:]) != name[1:]:
        shown = "Q" + display_name(name[1:])
    return f"{shown} ({variant})" if variant else shown


def _flat(values: Array) -> Array:
    return values.reshape(-1, values.shape[-1])


def _position(part: Curves, end: int) -> int:
    return next(index for index, pair in enumerate(part.pairs) if pair[0] == end)
