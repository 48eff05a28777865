"""Dual LoRA's claims.

In its experiments r₁ = r₂ = r, and LoRA and the others have rank 2r, which is as many parameters. So they are compared
here: Dual LoRA at r with another method at 2r, where both were run.
"""

from collections.abc import Callable, Iterator
from functools import partial

import pandas as pd

from deltaw.analysis.claims.claim import Claim
from deltaw.analysis.claims.evidence import Evidence, method_name, require_methods, trained
from deltaw.analysis.claims.interval import Measured, Undecidable
from deltaw.analysis.claims.rules import POSITIVE, Check, Parts, Rule, below, mean_over
from deltaw.analysis.claims.scores import ANY, SCORE_NAMES, clear_of, ratios_by_rank, score_difference
from deltaw.analysis.tables.tidy import display_name

PAPER = "Dual LoRA"
METHOD = "dual-lora"

NO_HIGHER = Rule("ratio ≤ 1 in every layer", lambda low, high: high <= 1, lambda low, high: low > 1)
HIGHER = Rule("ratio > 1 in every layer", lambda low, high: low > 1, lambda low, high: high <= 1)
LOWER = Rule("ratio < 1 in every layer", lambda low, high: high < 1, lambda low, high: low >= 1)
MUCH_HIGHER = Rule("ratio ≥ 1.5 in every layer", lambda low, high: low >= 1.5, lambda low, high: high < 1.5)
ALMOST_FULL = Rule("ratio ≥ 0.95 in every layer", lambda low, high: low >= 0.95, lambda low, high: high < 0.95)
EQUAL = Rule("ratio 1 at every r₁ : r₂", lambda low, high: low == high == 1, lambda low, high: low > 1 or high < 1)

Ranks = "pd.Series[float]"


def checks(evidence: Evidence) -> Iterator[Check]:
    """Yield Dual LoRA's claims with their rules, in the paper's order."""
    yield from _ranks(evidence.spectra)
    runs, scores = evidence.runs, evidence.scores
    yield Check(
        Claim(PAPER, "§4.3", "With r₁ + r₂ = 2r it trains as many parameters as LoRA of rank 2r", 1.0),
        "trainable parameters, Dual LoRA / LoRA",
        EQUAL,
        partial(_parameters, runs),
    )
    yield from _scores(scores)
    for other in ("lora", "dora", "hira"):
        name = display_name(other)
        source = "§4.3, Figure 2" if other != "hira" else "§4.3, of Figure 2, which draws no HiRA"
        yield Check(
            Claim(PAPER, source, f"Dual LoRA scores higher than {name} of rank 2r at every r₁ : r₂", 1.0),
            f"share of the ratios with a higher score, Dual LoRA − {name} at every r₁ : r₂",
            POSITIVE,
            partial(_sweep, scores, other),
        )
    for column, word in (("seconds_per_epoch", "seconds per epoch"), ("peak_megabytes", "peak memory")):
        yield Check(
            Claim(
                PAPER,
                "§7",
                f"Dual LoRA's {word} are less than 5 % above LoRA's"
                if "per" in word
                else "Dual LoRA's peak memory is less than 5 % above LoRA's",
            ),
            f"{word}, Dual LoRA / LoRA of twice its rank",
            below(1.05),
            partial(ratios_by_rank, _middle(runs), column, METHOD, "lora", 2.0),
        )


def _ranks(spectra: pd.DataFrame) -> Iterator[Check]:
    """§5 and Figure 3: ranks by layer, means over a layer's matrices and the runs."""

    def check(
        source: str,
        sentence: str,
        measured: str,
        rule: Rule,
        over: tuple[str, str, str],
        under: tuple[str, str, str],
    ) -> Check:
        # A rank that an equation bounds is bounded whether the run has learned or not.
        rows = spectra.drop(columns="guessing", errors="ignore") if source.startswith("equation") else spectra
        return Check(Claim(PAPER, f"§5, {source}", sentence), measured, rule, partial(_ratio, rows, over, under))

    lora, overall = ("lora", "update", "rank"), (METHOD, "update", "rank")
    magnitude, direction = (METHOD, "magnitude", "rank"), (METHOD, "direction", "rank")
    full, limit = (METHOD, "update", "full_rank"), ("lora", "update", "adapter_rank")
    yield check(
        "equation 15",
        "LoRA's update has no higher rank than its r",
        "rank of ΔW / r, LoRA",
        NO_HIGHER,
        lora,
        limit,
    )
    yield check(
        "Figure 3",
        "The overall update has a higher rank than that of LoRA of rank 2r",
        "rank of ΔW, Dual LoRA / LoRA",
        HIGHER,
        overall,
        lora,
    )
    yield check(
        "Figure 3",
        "The overall update is almost of full rank",
        "rank of ΔW / full rank",
        ALMOST_FULL,
        overall,
        full,
    )
    yield check(
        "Figure 3",
        "The direction group is almost of full rank",
        "rank of the direction group / full rank",
        ALMOST_FULL,
        direction,
        full,
    )
    yield check(
        "Figure 3",
        "The magnitude group has a lower rank than the whole",
        "rank, magnitude group / overall",
        LOWER,
        magnitude,
        overall,
    )
    yield check(
        "Figure 3",
        "The magnitude group has a lower rank than the direction group",
        "rank, magnitude group / direction group",
        LOWER,
        magnitude,
        direction,
    )
    yield check(
        "Figure 3",
        "The magnitude group has a much higher rank than the update of LoRA of rank 2r",
        "rank, magnitude group / LoRA",
        MUCH_HIGHER,
        magnitude,
        lora,
    )


def _ratio(spectra: pd.DataFrame, over: tuple[str, str, str], under: tuple[str, str, str]) -> Parts:
    """The ratio of two ranks in every layer, at the lowest r whose runs there are."""
    methods = {over[0], under[0]}
    require_methods(spectra, sorted(methods))
    middle = _middle(trained(spectra), "adapter_rank")
    ranks = {method: _ranks_of(middle, method) for method in methods}
    if methods == {"lora", METHOD}:
        fitting = [r for r in ranks[METHOD] if 2 * r in ranks["lora"]]
        if not fitting:
            raise Undecidable(f"missing: {_wanted(ranks[METHOD])}")
        chosen = {METHOD: fitting[0], "lora": 2 * fitting[0]}
    else:
        chosen = {method: found[0] for method, found in ranks.items() if found}
    if not chosen:
        raise Undecidable(f"missing: a run of {METHOD} with r₁ = r₂")

    def by_layer(part: tuple[str, str, str]) -> "pd.Series[float]":
        method, group, column = part
        rows = middle[(middle["method"] == method) & (middle["group"] == group)]
        rows = rows[rows["adapter_rank"] == chosen[method]]
        layer = rows["layer"].astype("string").fillna(rows["module"].astype("string"))
        found: pd.Series[float] = rows[column].astype("float64").groupby(layer.rename("part"), sort=False).mean()
        return found

    ratio = (by_layer(over) / by_layer(under)).dropna()
    note = ", ".join(f"{method} of rank {rank}" for method, rank in sorted(chosen.items()))
    return mean_over({f"layer {part}": float(value) for part, value in ratio.items()}, note)


def _wanted(ranks: list[int]) -> str:
    if not ranks:
        return f"a run of {METHOD} with r₁ = r₂"
    return f"a run of lora of rank {' or '.join(str(2 * rank) for rank in ranks)}"


def _ranks_of(frame: pd.DataFrame, method: str) -> list[int]:
    return sorted({int(rank) for rank in frame.loc[frame["method"] == method, "adapter_rank"].dropna()})


def _middle(frame: pd.DataFrame, column: str = "rank") -> pd.DataFrame:
    """All but Dual LoRA with r₁ ≠ r₂."""
    uneven = frame["direction_rank"].notna() & (frame["direction_rank"] != frame[column])
    return frame[~(uneven.astype(bool) & (frame["method"] == METHOD))]


def _fitting(frame: pd.DataFrame, other: str) -> Iterator[tuple[str, pd.DataFrame, pd.DataFrame]]:
    """Dual LoRA's runs of every r₁ : r₂ whose sum another method was run with, as rank, and that method's.

    Where there are several sums, the lowest.
    """
    require_methods(frame, [METHOD, other])
    dual = frame[frame["method"] == METHOD]
    rows = frame[frame["method"] == other]
    second = dual["direction_rank"].fillna(dual["rank"])
    sums = dual["rank"] + second
    ranks = sorted({int(rank) for rank in rows["rank"].dropna()} & {int(one) for one in sums})
    if not ranks:
        wanted = " or ".join(str(one) for one in sorted({int(one) for one in sums}))
        raise Undecidable(f"missing: a run of {other} of rank {wanted}")
    chosen = dual[sums == ranks[0]]
    for first, found in chosen.groupby("rank"):
        number = int(str(first))
        yield f"{number} : {ranks[0] - number}", found, rows[rows["rank"] == ranks[0]]


def _parameters(runs: pd.DataFrame) -> Parts:
    return Parts(
        {
            name: Measured(float(found["trainable"].median() / rows["trainable"].median()), None)
            for name, found, rows in _fitting(runs, "lora")
        }
    )


def _sweep(scores: pd.DataFrame, other: str) -> Parts:
    """The difference at every r₁ : r₂; what is shown is the share of ratios where it is above 0."""
    differences = {
        name: score_difference(pd.concat([found, rows]), ANY, METHOD, other, None)
        for name, found, rows in _fitting(scores, other)
    }
    parts = clear_of(differences)
    above = sum(found.statistic > 0 for found in differences.values())
    return Parts(parts.each, parts.one_breaks, parts.note, statistic=above / len(differences))


def _scores(scores: pd.DataFrame) -> Iterator[Check]:
    """Tables 1, 2, 3, 5 and 6."""
    even = _middle(scores)

    def higher(source: str, sentence: str, name: str, worse: str, times: float | None, paper: float | None) -> Check:
        measure: Callable[[], Measured] = partial(score_difference, even, name, METHOD, worse, times, paper)
        return Check(
            Claim(PAPER, source, sentence, paper),
            f"{SCORE_NAMES[name]}, Dual LoRA − {method_name(worse)}",
            POSITIVE,
            measure,
        )

    table = "§4.2, Table 2 (RoBERTa-base)"
    for worse, paper in (("lora", 0.039), ("lora+", 0.019), ("dora", 0.030)):
        sentence = f"Dual LoRA scores higher on CoLA than {display_name(worse)} of twice its rank"
        yield higher(table, sentence, "mcc", worse, 2.0, paper)
    for worse, paper in (("delta-lora", 0.040), ("galore", 0.060)):
        sentence = f"Dual LoRA scores higher on CoLA than {display_name(worse)} of its rank"
        yield higher(table, sentence, "mcc", worse, 1.0, paper)
    for worse, paper in (("ft", 0.042), ("corda", 0.082), ("vera", 0.079), ("randlora", 0.084)):
        sentence = f"Dual LoRA scores higher on CoLA than {display_name(worse)}"
        yield higher(table, sentence, "mcc", worse, None, paper)
    yield higher(
        "§4.1, Table 1 (LLaMA2-7B)", "Dual LoRA scores higher than HiRA of twice its rank", ANY, "hira", 2.0, 0.009
    )
    for variant, source, sentence, paper in (
        ("sign xnor", "§4.3, Table 3", "The straight-through sign scores higher than XNOR-Net's", 0.013),
        ("sign dorefa", "§4.3, Table 3", "The straight-through sign scores higher than Dorefa-Net's", 0.009),
        ("activation none", "Appendix B.1, Table 5, setting 1", "Without the ReLU it scores lower", 0.007),
        ("sign none", "Appendix B.1, Table 5, setting 2", "Without the sign it scores lower", 0.017),
        ("sign fixed", "Appendix B.1, Table 5, setting 3", "With random, fixed signs it scores lower", 0.521),
        ("activation abs", "Appendix B.2, Table 6", "With Abs in place of ReLU it scores lower", 0.043),
        ("activation sigmoid", "Appendix B.2, Table 6", "With Sigmoid in place of ReLU it scores lower", 0.062),
    ):
        yield higher(source, sentence, ANY, f"{METHOD}, {variant}", 1.0, paper)
