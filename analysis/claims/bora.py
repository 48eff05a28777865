"""BoRA's claims."""

from collections.abc import Iterator
from functools import partial

import pandas as pd

from deltaw.adapters.errors import OptionError
from deltaw.analysis.claims.claim import Claim, Outcome
from deltaw.analysis.claims.curves import SYMBOLS, Quantity, asymmetry_of, change_ratio, last_pairs
from deltaw.analysis.claims.evidence import CHANGES, Evidence
from deltaw.analysis.claims.rules import (
    AS_HIGH,
    ASYMMETRIC,
    COMPARABLE,
    LONGER,
    MARKEDLY,
    MORE,
    POSITIVE,
    SYMMETRIC,
    Check,
    Rule,
    decide,
)
from deltaw.analysis.claims.scores import ANY, guessing, ratio_of, score_difference, score_differences
from deltaw.analysis.measures.change import Axis
from deltaw.analysis.tables.tidy import (
    display_name,
    of_kind,
    require_columns,
    require_one_start,
    require_several_starts,
)

RESULTS = ("method", "best_mcc", "n_dev", "seconds_per_epoch", "trainable")
PAPER = "BoRA"


def bora_claims(
    consecutive: pd.DataFrame, initial: pd.DataFrame, results: pd.DataFrame, kind: str = "query"
) -> list[Outcome]:
    """Hold BoRA's claims against runs on CoLA; the rules stand at the top of ``deltaw.analysis.claims.rules``.

    Arguments:
        consecutive: ``Trajectory.changes("consecutive")`` of the runs, concatenated.
        initial: ``Trajectory.changes("initial")`` of the runs, concatenated.
        results: One row a run: method, best_mcc (in [−1, 1], on the development set), n_dev (sentences in that set),
            seconds_per_epoch, trainable (parameters), and rank where methods were run with several.
        kind: The kind of matrix; the paper looks at "query".

    Returns:
        One outcome a claim, always all of them and in the same order; those that want a method or a column that is
        missing are "unclear", with a note that names it.

    Raises:
        OptionError: A table is of another form or has no rows, there is no matrix of this kind, or a score is not a
            correlation.

    Source:
        BoRA, §3.3 with Figures 2 and 3, §4.2 and §4.4 with Tables 1, 4 and 5, Tables 2, 10 and 11.

    Example:
        >>> columns = ["run", "method", "module", "layer", "kind", "axis", "step_from", "step_to", "delta_m", "delta_d"]
        >>> rows = [
        ...     ("a", "bora", f"{layer}.query", layer, "query", axis, 0, 1, 0.1 + 0.01 * layer, 0.1)
        ...     for layer in range(4)
        ...     for axis in ("row", "column")
        ... ]
        >>> table = pd.DataFrame(rows, columns=columns)
        >>> results = pd.DataFrame([("bora", 0.6, 1043, 9.0, 500)], columns=list(RESULTS))
        >>> agree = [outcome for outcome in bora_claims(table, table, results) if outcome.verdict == "agrees"]
        >>> [outcome.claim.sentence for outcome in agree][:2]
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
    steps, ends = of_kind(consecutive, kind), of_kind(initial, kind)
    runs = results.reset_index(drop=True).assign(run=range(len(results)), direction_rank=None)
    runs = runs if "rank" in runs.columns else runs.assign(rank=None)
    named = runs.assign(score="mcc", value=runs["best_mcc"], n=runs["n_dev"])
    weak = guessing(named)
    reasons = {
        str(method): weak[rows["run"].astype(str).iloc[0]]
        for method, rows in named.groupby("method")
        if set(rows["run"].astype(str)) <= set(weak)
    }
    steps, ends = (frame.assign(guessing=frame["method"].map(reasons)) for frame in (steps, ends))
    return [decide(check) for check in checks(Evidence(runs, named, steps, ends, kind=kind))]


def checks(evidence: Evidence) -> Iterator[Check]:
    """Yield BoRA's claims with their rules: its figures', its tables', then what its text adds to both."""
    yield from _symmetry(evidence)
    yield from _updates(evidence)
    yield from _results(evidence)
    yield from _symmetry_at_the_end(evidence)
    yield from _step_sizes(evidence)
    yield from _baselines(evidence)


def _symmetry(evidence: Evidence) -> Iterator[Check]:
    """Figure 2: from step to step."""
    steps = evidence.consecutive
    panels = {"ft": "a, e", "lora": "b, f", "dora": "c, g", "bora": "d, h"}
    quantities: tuple[Quantity, ...] = ("delta_m", "delta_d")
    for method, letters in panels.items():
        for quantity in quantities:
            symmetric = method != "dora"
            subject = f"{display_name(method)}'s {SYMBOLS[quantity]}"
            sentence = f"{subject} is {'' if symmetric else 'not '}symmetric in rows and columns"
            yield Check(
                Claim(PAPER, f"§3.3, Figure 2 ({letters})", sentence),
                f"asymmetry A of {SYMBOLS[quantity]} from step to step",
                SYMMETRIC if symmetric else ASYMMETRIC,
                partial(asymmetry_of, steps, quantity, method),
            )
    for other in ("bora", "lora", "ft"):
        yield Check(
            Claim(
                PAPER,
                f"§3.3, Figure 2 (c, g; {panels[other]})",
                f"DoRA (column)'s ΔM is less symmetric than {display_name(other)}'s",
            ),
            f"A of ΔM from step to step, DoRA (column) − {display_name(other)}",
            POSITIVE,
            partial(asymmetry_of, steps, "delta_m", "dora", other),
        )


def _updates(evidence: Evidence) -> Iterator[Check]:
    """Figure 3: from the start to the end."""
    both: tuple[Axis, ...] = ("row", "column")

    def check(
        source: str, sentence: str, rule: Rule, quantity: Quantity, *parts: tuple[str, tuple[Axis, ...]]
    ) -> Check:
        over = " / ".join(f"{' and '.join(f'{a}s' for a in axes)} of {display_name(method)}" for method, axes in parts)
        measured = f"{SYMBOLS[quantity]} from start to end, {over}"
        return Check(
            Claim(PAPER, source, sentence), measured, rule, partial(change_ratio, evidence.initial, quantity, *parts)
        )

    yield check(
        "§3.3, Figure 3 (b, f; d, h)",
        "LoRA changes magnitudes markedly less than BoRA",
        MARKEDLY,
        "delta_m",
        ("bora", both),
        ("lora", both),
    )
    yield check(
        "§3.3, Figure 3 (b; c)",
        "LoRA changes the columns' magnitudes markedly less than DoRA (column)",
        MARKEDLY,
        "delta_m",
        ("dora", ("column",)),
        ("lora", ("column",)),
    )
    yield check(
        "§3.3, Figure 3 (c, g)",
        "DoRA (column) changes the columns' magnitudes markedly more than the rows'",
        MARKEDLY,
        "delta_m",
        ("dora", ("column",)),
        ("dora", ("row",)),
    )
    yield check(
        "§3.3, Figure 3 (f, g)",
        "DoRA (column) changes the rows' magnitudes about as little as LoRA",
        COMPARABLE,
        "delta_m",
        ("dora", ("row",)),
        ("lora", ("row",)),
    )
    for other, letters in (("bora", "d, h"), ("dora", "c, g")):
        yield check(
            f"§3.3, Figure 3 (b, f; {letters})",
            f"LoRA changes directions about as much as {display_name(other)}",
            COMPARABLE,
            "delta_d",
            ("lora", both),
            (other, both),
        )
    yield check(
        "Table 4 and eq. 1 by symmetry; not drawn in the paper",
        "DoRA (row) is DoRA (column) mirrored: it changes the rows' magnitudes markedly more than the columns'",
        MARKEDLY,
        "delta_m",
        ("dora-row", ("row",)),
        ("dora-row", ("column",)),
    )


def _results(evidence: Evidence) -> Iterator[Check]:
    """Tables 10, 2, 11, 1, 4 and 5: scores, parameters, time."""
    runs, scores = evidence.runs, evidence.scores
    for better, worse, paper in (("dora", "lora", 0.0101), ("bora", "dora", 0.0010), ("bora", "lora", 0.0111)):
        better_name, worse_name = display_name(better), display_name(worse)
        yield Check(
            Claim(PAPER, "Appendix A.2, Table 10", f"{better_name} scores higher on CoLA than {worse_name}", paper),
            f"best Matthews correlation, {better_name} − {worse_name}",
            POSITIVE,
            partial(score_difference, scores, "mcc", better, worse, paper=paper),
        )
    for more, less in (("dora", "lora"), ("bora", "dora")):
        more_name, less_name = display_name(more), display_name(less)
        yield Check(
            Claim(PAPER, "Table 2 (Llama-2-7b)", f"{more_name} trains more parameters than {less_name}", 1.01),
            f"trainable parameters, {more_name} / {less_name}",
            MORE,
            partial(ratio_of, runs, "trainable", more, less),
        )
    for longer, paper in (("dora", 1.27), ("bora", 1.29)):
        name = display_name(longer)
        yield Check(
            Claim(PAPER, "Appendix A.2, Table 11 (Llama-2-7b)", f"{name} takes longer to train than LoRA", paper),
            f"seconds per epoch, {name} / LoRA",
            LONGER,
            partial(ratio_of, runs, "seconds_per_epoch", longer, "lora"),
        )
    for other in ("rslora", "asylora", "pissa", "mora"):
        name = display_name(other)
        yield Check(
            Claim(PAPER, "§4.2, Table 1 (MT-Bench)", f"BoRA scores higher than {name}"),
            f"score, BoRA − {name}",
            POSITIVE,
            partial(score_difference, scores, ANY, "bora", other),
        )
    yield Check(
        Claim(PAPER, "§4.4.2, Table 4 (MT-Bench)", "DoRA (row) scores about as high as DoRA (column)"),
        "score, DoRA (row) − DoRA (column)",
        AS_HIGH,
        partial(score_difference, scores, ANY, "dora-row", "dora"),
    )
    yield Check(
        Claim(PAPER, "§4.4.3, Table 5 (MT-Bench)", "BoRA scores higher than LoRA at every rank"),
        "score, BoRA − LoRA, at every rank",
        POSITIVE,
        partial(score_differences, scores, ANY, "bora", "lora"),
    )


def _symmetry_at_the_end(evidence: Evidence) -> Iterator[Check]:
    """Figure 3: the same symmetry from the start to the end."""
    ends = last_pairs(evidence.initial)
    panels = {"ft": "a, e", "lora": "b, f", "dora": "c, g", "bora": "d, h"}
    for method, letters in panels.items():
        quantities: tuple[Quantity, ...] = ("delta_m",) if method == "dora" else ("delta_m", "delta_d")
        for quantity in quantities:
            symmetric = method != "dora"
            subject = f"{display_name(method)}'s {SYMBOLS[quantity]}"
            sentence = f"From start to end {subject} is {'' if symmetric else 'not '}symmetric in rows and columns"
            yield Check(
                Claim(PAPER, f"§3.3, Figure 3 ({letters})", sentence),
                f"asymmetry A of {SYMBOLS[quantity]} from start to end",
                SYMMETRIC if symmetric else ASYMMETRIC,
                partial(asymmetry_of, ends, quantity, method),
            )


def _step_sizes(evidence: Evidence) -> Iterator[Check]:
    """Figure 2: how much the magnitudes change from one step to the next."""
    axes: tuple[Axis, ...] = ("row", "column")
    for method, axis, rule, sentence in (
        (
            "dora",
            "column",
            MARKEDLY,
            "From step to step DoRA (column) changes the columns' magnitudes markedly more than LoRA",
        ),
        *(
            ("bora", axis, MORE, f"From step to step BoRA changes the {axis}s' magnitudes more than LoRA")
            for axis in axes
        ),
    ):
        yield Check(
            Claim(PAPER, f"§3.3, Figure 2 (b, f; {'c, g' if method == 'dora' else 'd, h'})", sentence),
            f"mean ΔM from step to step, {axis}s, {display_name(method)} / LoRA",
            rule,
            partial(change_ratio, evidence.consecutive, "delta_m", (method, (axis,)), ("lora", (axis,)), every=True),
        )


def _baselines(evidence: Evidence) -> Iterator[Check]:
    """Tables 1 and 3: MT-Bench scores from 1 to 10, Llama-2-7b."""
    scores = evidence.scores
    table = "§4.2, Table 1 (MT-Bench of 10, Llama-2-7b)"
    for better, others in (
        ("bora", {"lora": 0.60, "dora": 0.38}),
        ("dora", {"lora": 0.22, "rslora": 0.14, "pissa": 0.80, "mora": 0.40}),
    ):
        for worse, paper in others.items():
            names = display_name(better), display_name(worse)
            yield Check(
                Claim(PAPER, table, f"{names[0]} scores higher than {names[1]}", paper),
                f"score, {names[0]} − {names[1]}",
                POSITIVE,
                partial(score_difference, scores, ANY, better, worse),
            )
    for better, paper in (("bora", 0.56), ("dora", 0.18)):
        name = display_name(better)
        yield Check(
            Claim(
                PAPER,
                table,
                f"{name} scores higher than AsyLoRA of twice its rank, which has as many parameters",
                paper,
            ),
            f"score, {name} − AsyLoRA of twice the rank",
            POSITIVE,
            partial(score_difference, scores, ANY, better, "asylora", 2.0),
        )
    for worse, more, paper in (("lora", 2, 0.42), ("dora", 1, 0.47)):
        name = display_name(worse)
        yield Check(
            Claim(
                PAPER,
                f"§4.4.1, Table 3 (MT-Bench of 10, ranks 64 and {64 + more})",
                f"BoRA scores higher than {name} whose rank is {more} higher, which has more parameters",
                paper,
            ),
            f"score, BoRA − {name} of a rank {more} higher",
            POSITIVE,
            partial(score_difference, scores, ANY, "bora", worse, more=more),
        )
