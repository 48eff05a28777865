"""BoRA's claims, each with a rule that was fixed before anything was measured, and the verdict on recorded runs.

The numbers:

    asymmetry   A = Σ_t |row_t − column_t| / Σ_t ½ (row_t + column_t)

over the changes from step to step, of ΔM or ΔD averaged over the layers; 0 where the row and the column curve coincide,
2 where one of them is zero. "Symmetric" means A ≤ 0.25.

    ratio       of ΔM or ΔD from the start to the last step that both methods have, averaged over the layers

"Markedly larger" means a ratio of at least 1.5, "comparable" a ratio from 1/2 to 2.

    score       the difference of two methods' best Matthews correlations

with the standard error √(s₁² + s₂²), s = (1 − mcc²)/√n. Both methods are scored on the same n sentences, so this errs on
the large side: "unclear" comes too often, not too rarely. Several runs of a method are averaged, s stays that of one.

    parameters  the ratio of their numbers, which has no error; more is above 1
    time        the ratio of seconds per epoch; above 1.03 is longer, below 0.97 shorter, between them is noise

The intervals of asymmetries, their differences, and ratios are bootstrapped over the layers: 2,000 resamples, seed 0, the
2.5th and 97.5th percentile; where two methods are compared, both with the same layers. An interval says how far the
finding holds over the layers of this model, not over other seeds or tasks. Of scores it is ±1.96 standard errors.

The verdict is "agrees" where the whole interval is on the claimed side, "disagrees" where the whole interval is on the
other, and "unclear" where it is neither, or where a method is missing.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tabulate import tabulate

from deltaw.adapters import OptionError
from deltaw.analysis.change import Axis
from deltaw.analysis.tidy import display_name, of_kind, require_columns

Verdict = Literal["agrees", "disagrees", "unclear"]
Quantity = Literal["delta_m", "delta_d"]
Array = NDArray[np.float64]

RESAMPLES = 2000
SEED = 0

CHANGES = ("run", "method", "module", "layer", "kind", "axis", "step_from", "step_to", "delta_m", "delta_d")
RESULTS = ("method", "best_mcc", "n_dev", "seconds_per_epoch", "trainable")

_SYMBOLS = {"delta_m": "ΔM", "delta_d": "ΔD"}


@dataclass(frozen=True)
class Claim:
    """Something a paper says, in our words.

    Arguments:
        paper: Its short name.
        source: Where it says so.
        sentence: What it says.
        paper_number: The number that the paper gives for what we measure; ``None`` where it only shows a picture.
    """

    paper: str
    source: str
    sentence: str
    paper_number: float | None = None


@dataclass(frozen=True)
class Outcome:
    """A claim held against recorded runs.

    Arguments:
        claim: The claim.
        verdict: "agrees", "disagrees" or "unclear".
        statistic: What was measured; ``None`` where it could not be.
        ci_low, ci_high: Its 95 % interval; ``None`` where there is none.
        rule: What "agrees" takes.
        note: What else a reader must know, such as what is missing.
    """

    claim: Claim
    verdict: Verdict
    statistic: float | None
    ci_low: float | None
    ci_high: float | None
    rule: str
    note: str = ""


@dataclass(frozen=True)
class _Rule:
    """What an interval [low, high] has to be for either verdict."""

    text: str
    agrees: Callable[[float, float], bool]
    disagrees: Callable[[float, float], bool]


_SYMMETRIC = _Rule("A ≤ 0.25", lambda low, high: high <= 0.25, lambda low, high: low > 0.25)
_ASYMMETRIC = _Rule("A > 0.25", lambda low, high: low > 0.25, lambda low, high: high <= 0.25)
_POSITIVE = _Rule("difference > 0", lambda low, high: low > 0, lambda low, high: high < 0)
_MARKEDLY = _Rule("ratio ≥ 1.5", lambda low, high: low >= 1.5, lambda low, high: high < 1.5)
_COMPARABLE = _Rule(
    "ratio from 1/2 to 2", lambda low, high: low >= 0.5 and high <= 2, lambda low, high: high < 0.5 or low > 2
)
_MORE = _Rule("ratio > 1", lambda low, high: low > 1, lambda low, high: high <= 1)
_LONGER = _Rule(
    "ratio > 1.03 (below 0.97 disagrees)", lambda low, high: low > 1.03, lambda low, high: high < 0.97
)


@dataclass(frozen=True)
class _Measured:
    statistic: float
    low: float | None
    high: float | None
    note: str = ""


@dataclass(frozen=True)
class _Check:
    """A claim, the name of the number that it is about, and the rule that the number is held against."""

    claim: Claim
    measured: str
    rule: _Rule
    measure: Callable[[], _Measured]


class _Undecidable(Exception):  # noqa: N818 - no error: it becomes the note of an unclear outcome
    pass


def bora_claims(
    consecutive: pd.DataFrame, initial: pd.DataFrame, results: pd.DataFrame, kind: str = "query"
) -> list[Outcome]:
    """Hold BoRA's claims against recorded runs; the rules stand at the top of this module.

    Arguments:
        consecutive: ``Trajectory.changes("consecutive")`` of the runs, concatenated.
        initial: ``Trajectory.changes("initial")`` of the runs, concatenated.
        results: One row a run: method, best_mcc (in [−1, 1], on the development set), n_dev (sentences in that set),
            seconds_per_epoch, trainable (parameters).
        kind: The kind of matrix; the paper looks at "query".

    Returns:
        One outcome a claim, always all of them and in the same order; those that want a method or a column that is
        missing are "unclear", with a note that names it.

    Raises:
        OptionError: A table is of another form or has no rows, there is no matrix of this kind, or a score is not a
            correlation.

    Source:
        BoRA, §3.3 with Figures 2 and 3, Tables 2, 10 and 11.

    Example:
        >>> columns = ["run", "method", "module", "layer", "kind", "axis", "step_from", "step_to", "delta_m", "delta_d"]
        >>> rows = [
        ...     ("a", "bora", f"{layer}.query", layer, "query", axis, 0, 1, 0.1 + 0.01 * layer, 0.1)
        ...     for layer in range(4)
        ...     for axis in ("row", "column")
        ... ]
        >>> table = pd.DataFrame(rows, columns=columns)
        >>> results = pd.DataFrame([("bora", 0.6, 1043, 9.0, 500)], columns=list(RESULTS))
        >>> [outcome.claim.sentence for outcome in bora_claims(table, table, results) if outcome.verdict == "agrees"]
        ["BoRA's ΔM is symmetric in rows and columns", "BoRA's ΔD is symmetric in rows and columns"]
    """
    require_columns(consecutive, CHANGES, 'Trajectory.changes("consecutive")')
    require_columns(initial, CHANGES, 'Trajectory.changes("initial")')
    require_columns(results, RESULTS, "train_cola, one row a run")
    scores = pd.to_numeric(results["best_mcc"])
    if (scores.abs() > 1).any():
        raise OptionError(f"best_mcc is {scores[scores.abs() > 1].iloc[0]:g}, not in [−1, 1]; if in percent, divide by 100")
    steps, ends = _Curves(of_kind(consecutive, kind)), _Curves(of_kind(initial, kind))
    checks = [*_symmetry_checks(steps), *_update_checks(ends), *_result_checks(results)]
    return [_decide(check) for check in checks]


def _decide(check: _Check) -> Outcome:
    rule = f"{check.measured}: {check.rule.text}"
    try:
        found = check.measure()
    except _Undecidable as reason:
        return Outcome(check.claim, "unclear", None, None, None, rule, str(reason))
    ends = (found.low, found.high)
    if found.low is None or found.high is None or not all(map(math.isfinite, (found.statistic, *ends))):  # type: ignore[arg-type]
        value = found.statistic if math.isfinite(found.statistic) else None
        return Outcome(check.claim, "unclear", value, None, None, rule, found.note)
    if check.rule.agrees(found.low, found.high):
        verdict: Verdict = "agrees"
    else:
        verdict = "disagrees" if check.rule.disagrees(found.low, found.high) else "unclear"
    return Outcome(check.claim, verdict, found.statistic, found.low, found.high, rule, found.note)
