"""BoRA's claims, each with a rule that was fixed before anything was measured, and the verdict on recorded runs.

The numbers:

    asymmetry   A = Σ_t |row_t − column_t| / Σ_t ½ (row_t + column_t)

over the changes from step to step, of ΔM or ΔD averaged over the layers; 0 where the row and the column curve coincide,
2 where one of them is zero. "Symmetric" means A ≤ 0.25. The matrices should be square, as RoBERTa's queries are: else
rows and columns differ in length, and by √(out/in) in norm, whatever the method.

    ratio       of ΔM or ΔD from the start to the last step that both methods have, averaged over the layers

"Markedly larger" means a ratio of at least 1.5, "comparable" a ratio from 1/2 to 2.

    score       the difference of two methods' best Matthews correlations

with the standard error √(s₁² + s₂²), s = (1 − mcc²)/√n. Both methods are scored on the same n sentences, so this errs
on the large side: "unclear" comes too often, not too rarely. Several runs of a method are averaged; s stays one run's.

    parameters  the ratio of their numbers, which has no error; more is above 1
    time        the ratio of seconds per epoch; above 1.03 is longer, below 0.97 shorter, between them is noise

The intervals of asymmetries, their differences, and ratios are bootstrapped over the layers: 2,000 resamples, seed 0,
the 2.5th and 97.5th percentile; where two methods are compared, both with the same layers. Resampling adds noise,
which |·| in A turns into asymmetry, so both percentiles can lie above a small A: the interval is widened to hold the
number itself, and errs against "symmetric". It says how far a finding holds over the layers of this model, not over
other seeds or tasks. Of scores the interval is ±1.96 standard errors.

The verdict is "agrees" where the whole interval is on the claimed side, "disagrees" where the whole interval is on the
other, and "unclear" where it is neither, or where a method is missing.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tabulate import tabulate

from deltaw.adapters import OptionError
from deltaw.analysis.change import Axis
from deltaw.analysis.tidy import display_name, of_kind, require_columns, require_one_start, require_several_starts

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
_LONGER = _Rule("ratio > 1.03 (below 0.97 disagrees)", lambda low, high: low > 1.03, lambda low, high: high < 0.97)


@dataclass(frozen=True)
class _Measured:
    statistic: float
    interval: tuple[float, float] | None  # None: the number has no error
    note: str = ""


@dataclass(frozen=True)
class _Check:
    """A claim, the name of the number that it is about, and the rule that the number is held against."""

    claim: Claim
    measured: str
    rule: _Rule
    measure: Callable[[], _Measured]


class _Undecidable(Exception):  # noqa: N818 - no error: it becomes the note of an unclear outcome
    def __init__(self, note: str, statistic: float | None = None) -> None:
        super().__init__(note)
        self.statistic = statistic


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
    require_several_starts(consecutive, 'Trajectory.changes("consecutive")')
    require_one_start(initial, 'Trajectory.changes("initial")')
    require_columns(results, RESULTS, "train_cola, one row a run")
    scores = pd.to_numeric(results["best_mcc"])
    if (scores.abs() > 1).any():
        wrong = scores[scores.abs() > 1].iloc[0]
        raise OptionError(f"best_mcc is {wrong:g}, not in [−1, 1]; divide by 100 if it is in percent")
    steps, ends = _Curves(of_kind(consecutive, kind)), _Curves(of_kind(initial, kind))
    checks = [*_symmetry_checks(steps), *_update_checks(ends), *_result_checks(results)]
    return [_decide(check) for check in checks]


def score_outcome(claim: Claim, results: pd.DataFrame, better: str, worse: str) -> Outcome:
    """Hold the claim that one method scores higher than another against results; the rule is that of the module's head.

    Arguments:
        claim: The claim.
        results: One row a run: method, or any label that tells apart what is compared; best_mcc; n_dev.
        better, worse: Two of these labels.

    Example:
        >>> results = pd.DataFrame([("a", 0.6, 400), ("b", 0.3, 400)], columns=["method", "best_mcc", "n_dev"])
        >>> score_outcome(Claim("SBoRA", "Table 4", "a scores higher than b"), results, "a", "b").verdict
        'agrees'
    """
    paper = math.inf if claim.paper_number is None else claim.paper_number
    measure = partial(_score, results, better, worse, paper)
    return _decide(_Check(claim, f"best Matthews correlation, {better} − {worse}", _POSITIVE, measure))


def _decide(check: _Check) -> Outcome:
    rule = f"{check.measured}: {check.rule.text}"
    try:
        found = check.measure()
    except _Undecidable as reason:
        return Outcome(check.claim, "unclear", reason.statistic, None, None, rule, str(reason))
    low, high = found.interval or (found.statistic, found.statistic)
    verdict: Verdict = "unclear"
    if check.rule.agrees(low, high):
        verdict = "agrees"
    elif check.rule.disagrees(low, high):
        verdict = "disagrees"
    outcome = Outcome(check.claim, verdict, found.statistic, None, None, rule, found.note)
    return outcome if found.interval is None else replace(outcome, ci_low=low, ci_high=high)


def _symmetry_checks(steps: "_Curves") -> Iterator[_Check]:
    """Figure 2: from step to step."""
    panels = {"ft": "a, e", "lora": "b, f", "dora": "c, g", "bora": "d, h"}
    quantities: tuple[Quantity, ...] = ("delta_m", "delta_d")
    for method, letters in panels.items():
        for quantity in quantities:
            symmetric = method != "dora"
            subject = f"{display_name(method)}'s {_SYMBOLS[quantity]}"
            sentence = f"{subject} is {'' if symmetric else 'not '}symmetric in rows and columns"
            yield _Check(
                Claim("BoRA", f"§3.3, Figure 2 ({letters})", sentence),
                f"asymmetry A of {_SYMBOLS[quantity]} from step to step",
                _SYMMETRIC if symmetric else _ASYMMETRIC,
                partial(steps.asymmetry, quantity, method),
            )
    for other in ("bora", "lora", "ft"):
        yield _Check(
            Claim(
                "BoRA",
                f"§3.3, Figure 2 (c, g; {panels[other]})",
                f"DoRA (column)'s ΔM is less symmetric than {display_name(other)}'s",
            ),
            f"A of ΔM from step to step, DoRA (column) − {display_name(other)}",
            _POSITIVE,
            partial(steps.asymmetry, "delta_m", "dora", other),
        )


def _update_checks(ends: "_Curves") -> Iterator[_Check]:
    """Figure 3: from the start to the end."""
    both: tuple[Axis, ...] = ("row", "column")

    def check(
        source: str, sentence: str, rule: _Rule, quantity: Quantity, *parts: tuple[str, tuple[Axis, ...]]
    ) -> _Check:
        over = " / ".join(f"{' and '.join(f'{a}s' for a in axes)} of {display_name(method)}" for method, axes in parts)
        measured = f"{_SYMBOLS[quantity]} from start to end, {over}"
        return _Check(Claim("BoRA", source, sentence), measured, rule, partial(ends.ratio, quantity, *parts))

    yield check(
        "§3.3, Figure 3 (b, f; d, h)",
        "LoRA changes magnitudes markedly less than BoRA",
        _MARKEDLY,
        "delta_m",
        ("bora", both),
        ("lora", both),
    )
    yield check(
        "§3.3, Figure 3 (b; c)",
        "LoRA changes the columns' magnitudes markedly less than DoRA (column)",
        _MARKEDLY,
        "delta_m",
        ("dora", ("column",)),
        ("lora", ("column",)),
    )
    yield check(
        "§3.3, Figure 3 (c, g)",
        "DoRA (column) changes the columns' magnitudes markedly more than the rows'",
        _MARKEDLY,
        "delta_m",
        ("dora", ("column",)),
        ("dora", ("row",)),
    )
    yield check(
        "§3.3, Figure 3 (f, g)",
        "DoRA (column) changes the rows' magnitudes about as little as LoRA",
        _COMPARABLE,
        "delta_m",
        ("dora", ("row",)),
        ("lora", ("row",)),
    )
    for other, letters in (("bora", "d, h"), ("dora", "c, g")):
        yield check(
            f"§3.3, Figure 3 (b, f; {letters})",
            f"LoRA changes directions about as much as {display_name(other)}",
            _COMPARABLE,
            "delta_d",
            ("lora", both),
            (other, both),
        )
    yield check(
        "Table 4 and eq. 1 by symmetry; not drawn in the paper",
        "DoRA (row) is DoRA (column) mirrored: it changes the rows' magnitudes markedly more than the columns'",
        _MARKEDLY,
        "delta_m",
        ("dora-row", ("row",)),
        ("dora-row", ("column",)),
    )


def _result_checks(results: pd.DataFrame) -> Iterator[_Check]:
    """Tables 10, 2 and 11: scores, parameters, time."""
    for better, worse, paper in (("dora", "lora", 0.0101), ("bora", "dora", 0.0010), ("bora", "lora", 0.0111)):
        better_name, worse_name = display_name(better), display_name(worse)
        yield _Check(
            Claim("BoRA", "Appendix A.2, Table 10", f"{better_name} scores higher on CoLA than {worse_name}", paper),
            f"best Matthews correlation, {better_name} − {worse_name}",
            _POSITIVE,
            partial(_score, results, better, worse, paper),
        )
    for more, less in (("dora", "lora"), ("bora", "dora")):
        more_name, less_name = display_name(more), display_name(less)
        yield _Check(
            Claim("BoRA", "Table 2 (Llama-2-7b)", f"{more_name} trains more parameters than {less_name}", 1.01),
            f"trainable parameters, {more_name} / {less_name}",
            _MORE,
            partial(_ratio_of, results, "trainable", more, less),
        )
    for longer, paper in (("dora", 1.27), ("bora", 1.29)):
        name = display_name(longer)
        yield _Check(
            Claim("BoRA", "Appendix A.2, Table 11 (Llama-2-7b)", f"{name} takes longer to train than LoRA", paper),
            f"seconds per epoch, {name} / LoRA",
            _LONGER,
            partial(_ratio_of, results, "seconds_per_epoch", longer, "lora"),
        )


class _Curves:
    """ΔM and ΔD of every layer at every pair of steps, and the numbers made from them with their intervals."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame
        self._known: dict[tuple[str, str], dict[Axis, pd.DataFrame]] = {}

    def of(self, method: str, quantity: Quantity) -> dict[Axis, pd.DataFrame]:
        """Return for both axes a table with a row a layer and a column a pair of steps, averaged over runs.

        Only the pairs that every run, layer and axis has a number for.
        """
        if (method, quantity) in self._known:
            return self._known[method, quantity]
        rows = self.frame[self.frame["method"] == method]
        layer = rows["layer"].astype("string").fillna(rows["module"].astype("string"))
        start = pd.to_numeric(rows["step_from"]).astype("Float64").fillna(-1.0)  # missing: the base
        value = rows[quantity].astype("float64").replace([math.inf, -math.inf], math.nan)
        keys = {"run": rows["run"], "layer": layer, "axis": rows["axis"], "start": start, "end": rows["step_to"]}
        means = value.groupby([series.rename(name) for name, series in keys.items()]).mean()
        wide = means.unstack(["end", "start"]).dropna(axis="columns").sort_index(axis="columns")
        found: dict[Axis, pd.DataFrame] = {}
        for axis in ("row", "column"):
            if axis not in wide.index.get_level_values("axis"):
                raise _Undecidable(f"missing: the {axis}s of {method}")
            found[axis] = pd.DataFrame(wide.xs(axis, level="axis")).groupby("layer").mean()
        if wide.shape[1] == 0:
            raise _Undecidable(f"{method} has no pair of steps at which {_SYMBOLS[quantity]} is defined in every layer")
        self._known[method, quantity] = found
        return found

    def tables(self, methods: Sequence[str], quantity: Quantity) -> list[dict[Axis, pd.DataFrame]]:
        """Return the tables of several methods, or say which of them are missing."""
        _require(self.frame, methods, "run")
        return [self.of(method, quantity) for method in methods]

    def asymmetry(self, quantity: Quantity, method: str, minus: str | None = None) -> _Measured:
        """Return A of a method, or how much larger it is than another's."""
        methods = [method] if minus is None else [method, minus]
        tables = self.tables(methods, quantity)
        layers = _common([part.index for table in tables for part in table.values()])

        def measure(weights: Array) -> Array:
            found = [
                _asymmetry(weights, *(_rows(table[axis], layers) for axis in ("row", "column"))) for table in tables
            ]
            return found[0] if minus is None else found[0] - found[1]

        return _bootstrap(measure, len(layers))

    def ratio(self, quantity: Quantity, *parts: tuple[str, tuple[Axis, ...]]) -> _Measured:
        """Return the change at the end of one method, averaged over some axes, over that of another."""
        tables = self.tables([method for method, _ in parts], quantity)
        steps = [set(table["row"].columns.get_level_values("end")) for table in tables]
        common = set.intersection(*steps)
        if not common:
            raise _Undecidable(f"{' and '.join(method for method, _ in parts)} have no step in common")
        last = max(common)
        layers = _common([part.index for table in tables for part in table.values()])
        over, under = (
            np.mean(
                [_rows(pd.DataFrame(table[axis].xs(last, axis="columns", level="end")), layers)[:, 0] for axis in axes],
                axis=0,
            )
            for table, (_, axes) in zip(tables, parts, strict=True)
        )

        def measure(weights: Array) -> Array:
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.asarray((weights @ over) / (weights @ under))

        found = _bootstrap(measure, len(layers))
        if any(last < max(those) for those in steps):
            return replace(found, note=f"{found.note}; at step {last}, the last that both have")
        return found


def _asymmetry(weights: Array, row: Array, column: Array) -> Array:
    """Return A for every resample.

    Arguments:
        weights: (resamples, layers), each row sums to 1.
        row, column: The curves, (layers, steps).
    """
    apart, half = np.zeros(len(weights)), np.zeros(len(weights))
    for start in range(0, row.shape[1], 1000):  # bounds the memory: 2,000 resamples of 1,000 steps are 16 MB
        rows, columns = weights @ row[:, start : start + 1000], weights @ column[:, start : start + 1000]
        apart += np.abs(rows - columns).sum(axis=1)
        half += (rows + columns).sum(axis=1) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(apart / half)


def _bootstrap(measure: Callable[[Array], Array], layers: int) -> _Measured:
    """Return a number and its percentile interval over resampled layers.

    Arguments:
        measure: From weights (resamples, layers), each row of which sums to 1, to (resamples,).
        layers: Their number.
    """
    value = float(measure(np.full((1, layers), 1 / layers))[0])
    if not math.isfinite(value):
        raise _Undecidable("nothing changed in the recorded steps, so there is no ratio")
    if layers < 2:
        raise _Undecidable("one layer only: no interval", value)
    counts = np.random.default_rng(SEED).multinomial(layers, np.full(layers, 1 / layers), size=RESAMPLES)
    found = measure(counts / layers)
    if not np.isfinite(found).all():
        raise _Undecidable("in some layers nothing changed: no interval", value)
    low, high = np.quantile(found, [0.025, 0.975])
    return _Measured(value, (min(value, float(low)), max(value, float(high))), f"{layers} layers")


def _rows(table: pd.DataFrame, layers: list[Any]) -> Array:
    return table.loc[layers].to_numpy(dtype=np.float64)


def _common(indices: Sequence["pd.Index[Any]"]) -> list[Any]:
    layers = [layer for layer in indices[0] if all(layer in index for index in indices[1:])]
    if not layers:
        raise _Undecidable("the methods' runs have no layer in common")
    return layers


def _require(frame: pd.DataFrame, methods: Sequence[str], what: str) -> None:
    missing = [method for method in methods if not (frame["method"] == method).any()]
    if missing:
        raise _Undecidable(f"missing: a {what} of {' and of '.join(missing)}")


def _results_of(results: pd.DataFrame, methods: Sequence[str], columns: Sequence[str]) -> list[pd.DataFrame]:
    """Return every method's rows with numbers in these columns, or say what is missing."""
    _require(results, methods, "result")
    found = []
    for method in methods:
        numbers = results.loc[results["method"] == method, list(columns)].apply(pd.to_numeric).astype("float64")
        for column in columns:
            if not np.isfinite(numbers[column]).all() or (column != "best_mcc" and (numbers[column] <= 0).any()):
                raise _Undecidable(f"missing: {column} of {method}")
        found.append(numbers)
    return found


def _score(results: pd.DataFrame, better: str, worse: str, paper: float) -> _Measured:
    both = _results_of(results, (better, worse), ["best_mcc", "n_dev"])
    high, low = (float(rows["best_mcc"].mean()) for rows in both)
    errors = [(1 - mcc**2) / math.sqrt(rows["n_dev"].min()) for mcc, rows in zip((high, low), both, strict=True)]
    reach = 1.96 * math.hypot(*errors)
    note = f"the paper's own difference would be unclear with so few sentences (±{reach:.3f})" if paper < reach else ""
    return _Measured(high - low, (high - low - reach, high - low + reach), note)


def _ratio_of(results: pd.DataFrame, column: str, over: str, under: str) -> _Measured:
    top, bottom = (float(rows[column].median()) for rows in _results_of(results, (over, under), [column]))
    form = ",.0f" if column == "trainable" else ",.4g"
    return _Measured(top / bottom, None, f"{top:{form}} / {bottom:{form}}")


def claims_json(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return the outcomes as plain data, one flat object each.

    Returns:
        Objects with paper, source, sentence, paper_number, verdict, statistic, ci_low, ci_high, rule, note.

    Example:
        >>> outcome = Outcome(Claim("BoRA", "Figure 2", "it is so"), "agrees", 0.1, 0.05, 0.2, "A ≤ 0.25")
        >>> claims_json([outcome])[0]["verdict"]
        'agrees'
    """
    return [
        asdict(outcome.claim) | {name: value for name, value in asdict(outcome).items() if name != "claim"}
        for outcome in outcomes
    ]


def claims_markdown(outcomes: Sequence[Outcome]) -> str:
    """Return the outcomes as a Markdown table, under a line that counts the verdicts.

    Example:
        >>> outcome = Outcome(Claim("BoRA", "Figure 2", "it is so"), "agrees", 0.1, 0.05, 0.2, "A ≤ 0.25")
        >>> print(claims_markdown([outcome]).splitlines()[0])
        1 claim: 1 agree, 0 disagree, 0 unclear.
    """
    counts = {verdict: sum(o.verdict == verdict for o in outcomes) for verdict in ("agrees", "disagrees", "unclear")}
    head = ["claim", "source", "rule", "measured [95 % interval]", "verdict", "paper", "note"]
    rows = [
        [
            outcome.claim.sentence,
            f"{outcome.claim.paper}, {outcome.claim.source}",
            outcome.rule,
            format_number(outcome),
            f"**{outcome.verdict}**",
            "" if outcome.claim.paper_number is None else f"{outcome.claim.paper_number:g}",
            outcome.note,
        ]
        for outcome in outcomes
    ]
    rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    table = tabulate(rows, headers=head, tablefmt="pipe", disable_numparse=True)
    plural = "" if len(outcomes) == 1 else "s"
    return (
        f"{len(outcomes)} claim{plural}: {counts['agrees']} agree, {counts['disagrees']} disagree, "
        f"{counts['unclear']} unclear.\n\n{table}\n"
    )


def format_number(outcome: Outcome) -> str:
    """Return what was measured, with its interval where it has one; a dash where nothing could be.

    Example:
        >>> format_number(Outcome(Claim("BoRA", "Figure 2", "it is so"), "agrees", 0.1, 0.05, 0.2, "A ≤ 0.25"))
        '0.1 [0.05, 0.2]'
    """
    if outcome.statistic is None:
        return "–"
    text = f"{outcome.statistic:.3g}"
    if outcome.ci_low is not None and outcome.ci_high is not None:
        text += f" [{outcome.ci_low:.3g}, {outcome.ci_high:.3g}]"
    return text
