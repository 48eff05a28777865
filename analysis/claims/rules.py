"""The rules that claims are decided by. They were fixed before anything was measured.

The numbers:

    asymmetry   A = Σ_t |row_t − column_t| / Σ_t ½ (row_t + column_t)

over the changes from step to step, of ΔM or ΔD averaged over matrices and runs; 0 where the row and the column curve
coincide, 2 where one of them is zero. "Symmetric" means A ≤ 0.25. The matrices should be square, as RoBERTa's queries
are: else rows and columns differ in length, and by √(out/in) in norm, whatever the method.

    ratio       of ΔM or ΔD at the last step that both methods have, averaged over matrices and runs

"Markedly larger" means a ratio of at least 1.5, "comparable" a ratio from 1/2 to 2, "less" one below 1.

    correlation r of ΔD with ΔM, both from W₀, over matrices and four steps of a run

the last recorded step and those nearest to a quarter, a half and three quarters of it, as DoRA has three intermediate
checkpoints and the last; where there are fewer, all. Step 0, where nothing has moved, is no point. The r of several
runs are averaged.

    slope       of ΔM on ΔD, of the same points and steps as r; it has the unit of ΔM

    geometry    the ratio of two methods' largest principal angles, drifts, off-principal or visible shares, each a mean
                over matrices and runs, at the last step that both have; or of one method's over that of a random update

    intruders   a matrix among the ten leading singular vectors, or the difference of two methods'

    growth      of ‖ΔW‖ from the recorded step nearest to half of the last, to the last

These four are of the packs beyond the four papers. Then

    score       the difference of two methods' scores: CoLA's best Matthews correlation; accuracies and CIDEr of the
                vision-language tasks, and their plain mean

with the standard error √(s₁² + s₂²). Of Matthews correlations whose predictions were kept it is that of the difference,
sentence by sentence, as both methods are scored on the same sentences: the large-sample variance of φ (Bishop, Fienberg
and Holland 1975) by its influences, see ``deltaw.analysis.measures.matthews``. Where they were not kept, as by earlier
versions, s²n is the largest variance of φ = mcc·n/(n + 4) that any share of predictions has, with 70 % of one label,
and there is no pairing: that errs on the large side. Else s is √(p(1 − p)/n) with p = (score·n + 2)/(n + 4) for a score
in [0, 1], which bounds that of a soft accuracy, and √(c(10 − c)/n) for CIDEr, which lies in [0, 10] and of which no
more is known; of a mean of tasks √(Σ s²)/tasks. Of these, too, both methods are scored on the same examples, so
"unclear" comes too often, not too rarely. Where a method has several runs their scores are averaged, s is that of one
run, as all are scored on the same n examples, and the variance between them, divided by their number, is added to s².
"As high" means a difference from −0.02 to 0.02, "at least as high" one above −0.02.

    parameters  the ratio of their numbers, which has no error; more is above 1
    time        the ratio of seconds per epoch; 3 % to either side of a limit are noise
    memory      the ratio of peak memories, measured on a GPU: elsewhere it is the whole process's, libraries and all

Intervals of asymmetries, correlations, ratios and their differences are bootstrapped over matrices and runs: 2,000
resamples, seed 0, whose standard error is taken times Student's t. A matrix is drawn with all its steps, and where two
methods are compared, both with the same matrices. The variance over the runs of a method that has several is added, and
the degrees of freedom are Satterthwaite's. A ratio is taken by its logarithm, a correlation by Fisher's artanh. In
simulations these intervals hold the true number 92 to 100 times of 100, with 3, 6, 12 and 24 matrices; the percentiles
of the resamples hold it 75, 87, 91 and 92 times. One run is not drawn, and the interval then says how far a finding
holds over the matrices of this model, not over other seeds; of two runs it is wide, as it has to be. Noise, which |·|
turns into asymmetry, makes A a little too large, and errs against "symmetric". Of scores the interval is ±1.96 standard
errors.

The verdict is "agrees" where the whole interval is on the claimed side, "disagrees" where the whole interval is on the
other, and "unclear" where it is neither, or where something is missing. A claim over several ranks, layers or ratios
"agrees" where it holds in all of them and "disagrees" where its contrary holds in all (of scores: in one).

A claim about trained models needs runs that learned something: a run none of whose scores is more than 1.96 standard
errors above what guessing has (a Matthews correlation of 0, of other tasks the ``prior`` in result.json) is left out of
asymmetries, ratios of changes, correlations and ranks, and of a method with no other run they are "unclear". Scores are
compared if one of the two is better than guessing. Parameters, time, memory, which entries of ΔW are zero, and the rank
that an equation bounds do not depend on it. A run without scores is taken as trained.

Methods are compared at the lowest rank that all of them have, unless the claim is about other ranks.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from deltaw.analysis.claims.claim import Claim, Outcome, Verdict
from deltaw.analysis.claims.interval import Array, Measured, Undecidable, Weights, bootstrap

NOISE = 0.03  # of times and memories
MARGIN = 0.02  # of scores that are as high


@dataclass(frozen=True)
class Rule:
    """The bounds of an interval [low, high] for either verdict."""

    text: str
    agrees: Callable[[float, float], bool]
    disagrees: Callable[[float, float], bool]


def within(text: str, bounds: Mapping[str, float], disagrees: Mapping[str, float] | None = None) -> Rule:
    """Return the rule that a number lies within bounds.

    Arguments:
        text: As it is printed; empty for one that is made of the bounds.
        bounds: One or two of above, at_least, below and at_most. "Agrees" takes the whole interval within all of them.
        disagrees: Where the whole interval has to be for "disagrees", on one of these sides; ``None`` for whatever the
            bounds leave out. What lies between the two is noise, and "unclear".

    Example:
        >>> rule = within("", {"above": 1.03}, {"below": 0.97})
        >>> rule.text
        '> 1.03 (< 0.97 disagrees)'
        >>> [(rule.agrees(ratio, ratio), rule.disagrees(ratio, ratio)) for ratio in (0.9, 1.0, 1.1)]
        [(False, True), (False, False), (True, False)]
    """
    contrary = {_CONTRARY[name]: value for name, value in bounds.items()} if disagrees is None else dict(disagrees)
    made = _in_words(bounds) + (f" ({_in_words(disagrees, ' or ')} disagrees)" if disagrees else "")
    return Rule(
        text or made,
        lambda low, high: all(_HOLDS[name](low, high, value) for name, value in bounds.items()),
        lambda low, high: any(_HOLDS[name](low, high, value) for name, value in contrary.items()),
    )


BOUNDS = ("above", "at_least", "below", "at_most")
_CONTRARY = {"above": "at_most", "at_least": "below", "below": "at_least", "at_most": "above"}
_SIGNS = {"above": ">", "at_least": "≥", "below": "<", "at_most": "≤"}
_HOLDS: dict[str, Callable[[float, float, float], bool]] = {
    "above": lambda low, high, limit: low > limit,
    "at_least": lambda low, high, limit: low >= limit,
    "below": lambda low, high, limit: high < limit,
    "at_most": lambda low, high, limit: high <= limit,
}


def _in_words(bounds: Mapping[str, float], between: str = " and ") -> str:
    return between.join(f"{_SIGNS[name]} {value:g}" for name, value in bounds.items())


MORE = within("ratio > 1", {"above": 1})
# The rules that a claim may name; whatever else it needs it says by its bounds.
RULES = {
    "symmetric": within("A ≤ 0.25", {"at_most": 0.25}),
    "asymmetric": within("A > 0.25", {"above": 0.25}),
    "higher": within("difference > 0", {"above": 0}, {"below": 0}),
    "rises": within("r > 0", {"above": 0}, {"below": 0}),
    "falls": within("r < 0", {"below": 0}, {"above": 0}),
    "markedly more": within("ratio ≥ 1.5", {"at_least": 1.5}),
    "comparable": within("ratio from 1/2 to 2", {"at_least": 0.5, "at_most": 2}),
    "less": within("ratio < 1", {"below": 1}),
    "more": MORE,
    "longer": within("ratio > 1.03 (below 0.97 disagrees)", {"above": 1 + NOISE}, {"below": 1 - NOISE}),
    "as high": within(f"difference from −{MARGIN} to {MARGIN}", {"at_least": -MARGIN, "at_most": MARGIN}),
    "not lower": within(f"difference > −{MARGIN}", {"above": -MARGIN}, {"below": -MARGIN}),
}


@dataclass(frozen=True)
class Parts:
    """A number for every rank, layer or ratio that a claim is about, by the part's name.

    Arguments:
        each: The numbers.
        one_breaks: One part that is clearly on the other side is enough for "disagrees".
        note: What else a reader must know.
        statistic: What stands for all of them; ``None`` for their mean.
        interval: Of the statistic, where it has one; no part of the rule.
    """

    each: Mapping[str, Measured]
    one_breaks: bool = False
    note: str = ""
    statistic: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Check:
    """A claim, the name of the number that it is about, and the rule that the number is held against."""

    claim: Claim
    measured: str
    rule: Rule
    measure: Callable[[], Measured | Parts]

    @property
    def text(self) -> str:
        """The measure and the rule."""
        return f"{self.measured}: {self.rule.text}"


def decide(check: Check) -> Outcome:
    """Measure, and hold the number against the rule."""
    try:
        found = check.measure()
    except Undecidable as reason:
        return Outcome(check.claim, "unclear", reason.statistic, None, None, check.text, str(reason))
    undefined = _undefined(found)
    if undefined:
        return Outcome(check.claim, "unclear", None, None, None, check.text, undefined)
    if isinstance(found, Parts):
        return _over_parts(check, found)
    low, high = found.interval or (found.statistic, found.statistic)
    outcome = Outcome(check.claim, _verdict(check.rule, found), found.statistic, None, None, check.text, found.note)
    return outcome if found.interval is None else replace(outcome, ci_low=low, ci_high=high)


def _undefined(found: Measured | Parts) -> str:
    """Say where a number is NaN or infinite, as a ratio over 0 is; empty where all are defined."""
    if isinstance(found, Measured):
        return "" if math.isfinite(found.statistic) else "the number is not defined in these runs"
    names = [name for name, part in found.each.items() if not math.isfinite(part.statistic)]
    return f"the number is not defined in these runs: {count_of(names)}" if names else ""


def _verdict(rule: Rule, found: Measured) -> Verdict:
    low, high = found.interval or (found.statistic, found.statistic)
    if rule.agrees(low, high):
        return "agrees"
    return "disagrees" if rule.disagrees(low, high) else "unclear"


def _over_parts(check: Check, parts: Parts) -> Outcome:
    if not parts.each:
        return Outcome(check.claim, "unclear", None, None, None, check.text, parts.note or "missing: any such run")
    verdicts = [_verdict(check.rule, found) for found in parts.each.values()]
    verdict: Verdict = "unclear"
    if all(one == "agrees" for one in verdicts):
        verdict = "agrees"
    elif "disagrees" in verdicts and (parts.one_breaks or set(verdicts) == {"disagrees"}):
        verdict = "disagrees"
    numbers = "; ".join(f"{name}: {found.statistic:.3g}" for name, found in parts.each.items())
    mean = math.fsum(found.statistic for found in parts.each.values()) / len(parts.each)
    low, high = parts.interval or (None, None)
    note = f"{parts.note}; {numbers}" if parts.note else numbers
    statistic = mean if parts.statistic is None else parts.statistic
    return Outcome(check.claim, verdict, statistic, low, high, check.text, note)


def mean_over(parts: Mapping[str, float], note: str = "") -> Parts:
    """Return numbers without error as parts, with the interval of their mean where there are several.

    Example:
        >>> found = mean_over({"layer 0": 1.0, "layer 1": 3.0, "layer 2": 2.0})
        >>> [round(end, 1) for end in found.interval]
        [-0.5, 4.5]
    """
    values = np.array(list(parts.values()), dtype=np.float64)
    interval = None
    if len(values) > 1 and np.isfinite(values).all():
        interval = bootstrap(lambda weights: weights.matrices @ values, len(values), {}).interval
    return Parts({name: Measured(float(value), None) for name, value in parts.items()}, note=note, interval=interval)


def asymmetry(weights: Array, row: Array, column: Array) -> Array:
    """Return A for every resample.

    Arguments:
        weights: (resamples, curves), each row sums to 1.
        row, column: The curves, (curves, steps).
    """
    apart, half = np.zeros(len(weights)), np.zeros(len(weights))
    for start in range(0, row.shape[1], 1000):  # bounds the memory: 2,000 resamples of 1,000 steps are 16 MB
        rows, columns = weights @ row[:, start : start + 1000], weights @ column[:, start : start + 1000]
        apart += np.abs(rows - columns).sum(axis=1)
        half += (rows + columns).sum(axis=1) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(apart / half)


def pearson(weights: Weights, method: str, x: Array, y: Array) -> Array:
    """Return the mean over a method's runs of the correlation of y with x, for every resample.

    Arguments:
        weights: A matrix counts with all its steps.
        x, y: (runs, matrices, steps).
    """
    found = np.zeros(len(weights.matrices))
    for run in range(x.shape[0]):
        dx, dy = (_scaled(values[run]) for values in (x, y))
        of_x, of_y, of_xx, of_yy, of_xy = (
            weights.matrices @ values.mean(axis=1) for values in (dx, dy, dx * dx, dy * dy, dx * dy)
        )
        spread = np.minimum(of_xx - of_x**2, of_yy - of_y**2)
        with np.errstate(divide="ignore", invalid="ignore"):
            r = (of_xy - of_x * of_y) / np.sqrt((of_xx - of_x**2) * (of_yy - of_y**2))
        r[spread < 1e-14] = np.nan  # one point alone, but for rounding
        share = weights.runs[method][:, run]
        found += np.where(share > 0, share * np.clip(r, -1, 1), 0.0)
    return found


def slope(weights: Weights, method: str, x: Array, y: Array) -> Array:
    """Return the mean over a method's runs of the slope Σ dx dy / Σ dx² of y on x, for every resample.

    Arguments:
        weights: A matrix counts with all its steps.
        x, y: (runs, matrices, steps).
    """
    found = np.zeros(len(weights.matrices))
    for run in range(x.shape[0]):
        dx, dy = (_scaled(values[run]) for values in (x, y))
        of_x, of_y, of_xx, of_xy = (weights.matrices @ values.mean(axis=1) for values in (dx, dy, dx * dx, dx * dy))
        spread = of_xx - of_x**2
        unit = _size(y[run]) / _size(x[run])
        with np.errstate(divide="ignore", invalid="ignore"):
            steep = unit * (of_xy - of_x * of_y) / spread
        steep[spread < 1e-14] = np.nan  # one point alone, but for rounding
        share = weights.runs[method][:, run]
        found += np.where(share > 0, share * steep, 0.0)
    return found


def _size(values: Array) -> float:
    return float(np.abs(values - values.mean()).max()) or 1.0


def _scaled(values: Array) -> Array:
    """Centred and of size 1, so that changes of 1e-9 lose no digit."""
    centred = values - values.mean()
    return np.asarray(centred / _size(values))


def count_of(names: Sequence[str]) -> str:
    """Join names: "a", "a and b", "a, b and c".

    Example:
        >>> count_of(["a", "b", "c"])
        'a, b and c'
    """
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
