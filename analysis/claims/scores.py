"""Numbers made of results: differences of scores with their errors, ratios of times, memories and parameters."""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from deltaw.analysis.claims.evidence import of_equal_rank, require_methods
from deltaw.analysis.claims.interval import Array, Measured, Undecidable, Z
from deltaw.analysis.claims.rules import Parts, count_of
from deltaw.analysis.measures.matthews import influence, widest_variance

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
LABELS = 0.7  # the share of one label that is reckoned with where it is not known; CoLA has .69, the built-in data .60
VL_TASKS = ("vqa", "gqa", "nlvr", "caption")


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


def pairs_of_ranks(frame: pd.DataFrame, first: str, second: str, times: float = 1.0, more: int = 0) -> list[float]:
    """Return the ranks of the first method for which the second was run at ``times`` that and ``more``, in order."""
    one, other = (set(frame.loc[frame["method"] == method, "rank"].dropna()) for method in (first, second))
    return sorted(float(rank) for rank in one if any(math.isclose(rank * times + more, o) for o in other))


def score_difference(
    scores: pd.DataFrame,
    name: str,
    better: str,
    worse: str,
    times: float | None = 1.0,
    paper: float | None = None,
    more: int = 0,
) -> Measured:
    """Return how much higher one method scores than another, with its interval.

    Arguments:
        scores: See ``Evidence``.
        name: The score's name, ``MEAN`` or ``ANY``.
        better, worse: The methods.
        times: The rank of the second over that of the first; the lowest such rank counts. ``None`` for whatever rank.
        paper: The paper's difference, for a note where it would be too small to tell.
        more: How much the rank of the second is above that.
    """
    (ranks, *_) = _rank_pairs(scores, better, worse, times, more)
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


def score_gain(scores: pd.DataFrame, method: str) -> Measured:
    """Return how much higher a method scores at its highest rank than at its lowest."""
    require_methods(scores, [method], "result")
    ranks = sorted(float(rank) for rank in set(scores.loc[scores["method"] == method, "rank"].dropna()))
    if len(ranks) < 2:
        raise Undecidable(f"missing: results of {method} at two ranks")
    low, high = (_at_rank(scores, method, rank) for rank in (ranks[0], ranks[-1]))
    names = [f"{method} of rank {rank:g}" for rank in (ranks[-1], ranks[0])]
    found = _difference(high, low, ANY, names[0], names[1], None)
    return replace(found, note="; ".join([f"ranks {ranks[-1]:g} and {ranks[0]:g}", *filter(None, [found.note])]))


def clear_of(parts: Mapping[str, Measured]) -> Parts:
    """Return differences as parts of one claim, with how many of them are clear."""
    intervals = [found.interval for found in parts.values() if found.interval is not None]
    above, under = sum(low > 0 for low, _ in intervals), sum(high < 0 for _, high in intervals)
    higher = sum(found.statistic > 0 for found in parts.values())
    note = f"above at {higher} of {len(parts)}, beyond the standard error above at {above}, below at {under}"
    return Parts(parts, one_breaks=True, note=note)


def _rank_pairs(
    scores: pd.DataFrame, better: str, worse: str, times: float | None, more: int = 0
) -> list[tuple[float | None, float | None]]:
    """The ranks at which two methods can be compared, in order; ``None`` stands for a method without a rank."""
    require_methods(scores, [better, worse], "result")
    first, second = (
        sorted(float(rank) for rank in set(scores.loc[scores["method"] == method, "rank"].dropna()))
        for method in (better, worse)
    )
    if not first and not second and (more or times not in (None, 1.0)):
        raise Undecidable(f"missing: the ranks of {better} and {worse}")
    if not first or not second or times is None:
        return [(first[0] if first else None, second[0] if second else None)]
    ranks = pairs_of_ranks(scores, better, worse, times, more)
    if not ranks:
        raise Undecidable(f"missing: results of {better} and {worse} {_relation(times, more)}")
    return [(rank, rank * times + more) for rank in ranks]


def _relation(times: float, more: int = 0) -> str:
    if more:
        return f"of that rank and {more} more"
    if times == 1:
        return "of the same rank"
    return f"of {times:g} times that rank" if times > 1 else f"of 1/{1 / times:g} of that rank"


def _at_rank(frame: pd.DataFrame, method: str, rank: float | None) -> pd.DataFrame:
    rows = frame[frame["method"] == method]
    if rank is None or rows["rank"].isna().all():
        return rows
    return rows[np.isclose(rows["rank"].astype("float64"), rank)]


@dataclass(frozen=True)
class _Scored:
    """A method's score.

    Arguments:
        mean: Over its runs.
        examples, runs: Its variance over the examples, and over the runs.
        name: What was scored, where it is one thing.
        labels, influence: Of a Matthews correlation whose predictions were kept: the labels, and how much each sentence
            moves the mean, (n,).
    """

    mean: float
    examples: float
    runs: float
    name: str
    labels: str = ""
    influence: Array | None = None


def _difference(
    over: pd.DataFrame, under: pd.DataFrame, name: str, better: str, worse: str, paper: float | None
) -> Measured:
    high, low = (_score(rows, name, method) for rows, method in ((over, better), (under, worse)))
    if name == ANY and set(over["score"]) != set(under["score"]):
        raise Undecidable(f"the runs of {better} and {worse} were scored on different things")
    value = high.mean - low.mean
    weak = [method for method, rows in ((better, over), (worse, under)) if _all_guess(rows)]
    if len(weak) == 2:
        raise Undecidable(f"neither {better} nor {worse} is better than guessing", value)
    notes = [f"{weak[0]} is no better than guessing"] if weak else []
    if high.influence is not None and low.influence is not None and high.labels == low.labels:
        examples = float(np.mean((high.influence - low.influence) ** 2)) / len(high.labels)
        notes.append(f"paired over {len(high.labels)} sentences")
    else:
        examples = high.examples + low.examples
        if "mcc" in (high.name, low.name):
            notes.append("not paired, as not all predictions were kept")
    reach = Z * math.sqrt(examples + high.runs + low.runs)
    if paper is not None and abs(paper) < reach:
        notes.append(f"the paper's own difference would be unclear with so few examples (±{reach:.3f})")
    return Measured(value, (value - reach, value + reach), "; ".join(notes))


def _score(rows: pd.DataFrame, name: str, method: str) -> _Scored:
    """The mean of a score over runs, and its variance; see the rules."""
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
    values, variances = [], []
    for one in wanted:
        found = rows[rows["score"] == one]
        numbers = pd.to_numeric(found["value"]).to_numpy(dtype=np.float64)
        examples = pd.to_numeric(found["n"]).to_numpy(dtype=np.float64)
        if not (np.isfinite(numbers).all() and np.isfinite(examples).all() and (examples > 0).all()):
            raise Undecidable(f"missing: {SCORE_NAMES.get(one, one)} of {method}, or its number of examples")
        values.append(numbers)
        variances.append(standard_error(one, float(numbers.mean()), float(examples.min())) ** 2)
    if len({len(numbers) for numbers in values}) > 1:
        raise Undecidable(f"not every run of {method} has every score")
    means = np.mean(values, axis=0)  # (runs,)
    between = float(means.var(ddof=1)) / len(means) if len(means) > 1 else 0.0
    over_examples = math.fsum(variances) / len(variances) ** 2
    scored = _Scored(float(means.mean()), over_examples, between, wanted[0] if len(wanted) == 1 else "")
    if wanted != ["mcc"]:
        return scored
    labels, moved = _influence(rows)
    return scored if moved is None else replace(scored, labels=labels, influence=moved, examples=_mean_square(moved))


def _mean_square(influence: Array) -> float:
    return float(np.mean(influence**2)) / len(influence)


def _influence(rows: pd.DataFrame) -> tuple[str, Array | None]:
    """The labels, and how much each sentence moves the mean of the runs' correlations; None where that is not known."""
    if not {"labels", "predictions"} <= set(rows.columns):
        return "", None
    if rows[["labels", "predictions"]].isna().to_numpy().any() or rows["labels"].nunique() > 1:
        return "", None
    labels = str(rows["labels"].iloc[0])
    found = np.mean([influence(_digits(labels), _digits(one)) for one in rows["predictions"]], axis=0)
    return labels, found if np.isfinite(found).all() else None  # constant predictions have no correlation


def _digits(text: str) -> Array:
    return np.array(list(text), dtype=np.float64)


def standard_error(name: str, value: float, n: float) -> float:
    """Return the standard error of a score on n examples, where nothing but the score is known; see the rules.

    Example:
        >>> [round(standard_error(name, 0.5, 100), 4) for name in ("mcc", "vqa", "caption")]
        [0.0976, 0.05, 0.2179]
    """
    if name == "mcc":
        return math.sqrt(widest_variance(value * n / (n + 4), LABELS) / n)
    if name == "caption":
        return math.sqrt(max(value * (10 - value), 0.0) / n)
    p = (value * n + 2) / (n + 4)
    return math.sqrt(max(p * (1 - p), 0.0) / n)


def guessing(scores: pd.DataFrame) -> dict[str, str]:
    """Return why a run is no better than guessing, by run; runs of which that is not known are left out.

    A run is better where one of its scores is more than 1.96 standard errors above what guessing scores: a Matthews
    correlation above 0, where its standard error is 1/√n; another score above ``prior``.

    Arguments:
        scores: See ``Evidence``.

    Example:
        >>> columns = ["run", "score", "value", "n"]
        >>> guessing(pd.DataFrame([("a", "mcc", 0.0, 400), ("b", "mcc", 0.4, 400)], columns=columns))
        {'a': 'best Matthews correlation 0, guessing has 0 ± 0.098'}
    """
    found: dict[str, str] = {}
    for run, rows in scores.groupby("run", sort=False):
        reasons = [_guess(row) for row in rows.to_dict("records")]
        if all(reasons):
            found[str(run)] = ", ".join(map(str, reasons))
    return found


def _all_guess(rows: pd.DataFrame) -> bool:
    return set(rows["run"].astype(str)) <= set(guessing(rows))


def _guess(row: Mapping[Hashable, Any]) -> str | None:
    """Why a score is not above what guessing has; None where it is, or that is not known."""
    name = str(row["score"])
    value, n, prior = (_number(row.get(column)) for column in ("value", "n", "prior"))
    prior = 0.0 if name == "mcc" else prior
    if not (math.isfinite(value) and math.isfinite(prior) and n > 0):
        return None
    reach = Z * (1 / math.sqrt(n) if name == "mcc" else standard_error(name, prior, n))
    if value > prior + reach:
        return None
    return f"{SCORE_NAMES.get(name, name)} {value:.3g}, guessing has {prior:.3g} ± {reach:.2g}"


def _number(value: Any) -> float:
    return math.nan if value is None or pd.isna(value) else float(value)
