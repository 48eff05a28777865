"""SBoRA's claims."""

from collections.abc import Iterator
from functools import partial

import pandas as pd

from deltaw.analysis.claims.claim import Claim
from deltaw.analysis.claims.evidence import Evidence, method_name, require_methods
from deltaw.analysis.claims.interval import Measured
from deltaw.analysis.claims.rules import AS_HIGH, NOT_LOWER, POSITIVE, Check, Parts, Rule, below
from deltaw.analysis.claims.scores import ANY, ratios_by_rank, score_difference, score_differences, score_gain
from deltaw.analysis.tables.tidy import display_name

PAPER = "SBoRA"
VARIANTS = {"sbora-fa": "column", "sbora-fb": "row"}  # and what moves with it

ALL = Rule("all of them", lambda low, high: low == 1, lambda low, high: high < 1)
HALF = Rule(
    "ratio from 0.45 to 0.55 at every rank",
    lambda low, high: low >= 0.45 and high <= 0.55,
    lambda low, high: high < 0.45 or low > 0.55,
)
NEAR_ZERO = "within 0.001 at every rank"


def checks(evidence: Evidence) -> Iterator[Check]:
    """Yield SBoRA's claims with their rules, in the paper's order."""
    for method, axis in VARIANTS.items():
        yield from _region(evidence.regions, method, axis)
    for method in VARIANTS:
        name = display_name(method)
        yield Check(
            Claim(PAPER, "§4, Table 1", f"{name} trains half as many parameters as LoRA of the same rank", 0.5),
            f"trainable parameters, {name} / LoRA",
            HALF,
            partial(ratios_by_rank, evidence.runs, "trainable", method, "lora"),
        )
    for method in VARIANTS:
        yield from _costs(evidence.runs, method)
    yield from _scores(evidence.scores)


def _region(regions: pd.DataFrame, method: str, axis: str) -> Iterator[Check]:
    """Figure 2: what of ΔW is not zero."""
    name = display_name(method)
    equation, side = ("9", "in") if axis == "column" else ("11", "out")
    yield Check(
        Claim(PAPER, f"§3.2, Figure 2 and equation {equation}", f"{name} moves exactly r {axis}s of a matrix"),
        f"share of the matrices with r {axis}s of ΔW that are not zero",
        ALL,
        partial(_moved, regions, method, axis),
    )
    yield Check(
        Claim(PAPER, "§3.2", f"{name} leaves most weights as they were, 1 − r/{side} of them"),
        "share of the entries of ΔW that are zero",
        Rule(
            f"1 − r/{side} {NEAR_ZERO}",
            lambda low, high: abs(low) < 1e-3 and abs(high) < 1e-3,
            lambda low, high: low >= 1e-3 or high <= -1e-3,
        ),
        partial(_untouched, regions, method, side),
    )


def _by_rank(regions: pd.DataFrame, method: str) -> list[tuple[int, pd.DataFrame]]:
    require_methods(regions, [method])
    rows = regions[regions["method"] == method]
    return [(int(str(rank)), found) for rank, found in rows.groupby("adapter_rank")]


def _moved(regions: pd.DataFrame, method: str, axis: str) -> Parts:
    return Parts(
        {
            f"rank {rank}": Measured(float((found[f"moved_{axis}s"] == rank).mean()), None)
            for rank, found in _by_rank(regions, method)
        }
    )


def _untouched(regions: pd.DataFrame, method: str, side: str) -> Parts:
    """Held against the rule is how far the share is from 1 − r/side; what is shown is the share."""
    by_rank = _by_rank(regions, method)
    shares = {rank: float(found["untouched_weights"].mean()) for rank, found in by_rank}
    expected = {rank: float((1 - rank / found[side]).mean()) for rank, found in by_rank}
    note = "; ".join(f"rank {rank}: {shares[rank]:.4g}, 1 − r/{side}: {expected[rank]:.4g}" for rank in shares)
    apart = {f"rank {rank}, off by": Measured(shares[rank] - expected[rank], None) for rank in shares}
    return Parts(apart, note=note, statistic=sum(shares.values()) / len(shares))


def _costs(runs: pd.DataFrame, method: str) -> Iterator[Check]:
    """Figures 3 and 4: time and memory at equal ranks."""
    name = display_name(method)
    time, memory = ("seconds_per_epoch", "seconds per epoch"), ("peak_megabytes", "peak memory")
    for sentence, (column, word), other, limit in (
        (f"{name} trains faster than LoRA", time, "lora", 1.0),
        (f"{name} trains in less than half of DoRA's time", time, "dora", 0.5),
        (f"{name} takes less memory than LoRA", memory, "lora", 1.0),
        (f"{name} takes less memory than DoRA", memory, "dora", 1.0),
    ):
        yield Check(
            Claim(PAPER, "§5.2, Figures 3 and 4", sentence),
            f"{word}, {name} / {display_name(other)}, at every rank",
            below(limit),
            partial(ratios_by_rank, runs, column, method, other),
        )


def _scores(scores: pd.DataFrame) -> Iterator[Check]:
    """Tables 3 to 5."""
    fa = display_name("sbora-fa")
    yield Check(
        Claim(
            PAPER,
            "§5.2, Table 4 (LLaMA-7B, rank 32; .050 at 64)",
            f"{fa} scores higher than SBoRA-FB of the same rank",
            0.028,
        ),
        f"score, {fa} − SBoRA-FB, at every rank",
        POSITIVE,
        partial(score_differences, scores, ANY, "sbora-fa", "sbora-fb"),
    )
    for other, source, paper in (
        ("lora", "§5.1, Table 3 (LLaMA-7B)", 0.029),
        ("dora", "§5.2, Table 4 (LLaMA-7B)", 0.028),
    ):
        name = display_name(other)
        yield Check(
            Claim(
                PAPER, source, f"{fa} scores higher than {name} of half its rank, which has as many parameters", paper
            ),
            f"score, {fa} − {name} of half the rank, at every rank",
            POSITIVE,
            partial(score_differences, scores, ANY, "sbora-fa", other, 0.5),
        )
    for better, worse, source, paper in (
        ("sbora-fa", "lora-fa", "§5.1, Table 3 (LLaMA-7B, rank 32)", 0.071),
        ("sbora-fa", "oa", "§5.1, Table 3 (LLaMA-7B, rank 32)", 0.012),
        ("qsbora-fa", "qlora", "§1 and §5.3, Table 5 (LLaMA-13B)", 0.043),
    ):
        names = method_name(better), method_name(worse)
        yield Check(
            Claim(PAPER, source, f"{names[0]} scores higher than {names[1]} of the same rank", paper),
            f"score, {names[0]} − {names[1]}",
            POSITIVE,
            partial(score_difference, scores, ANY, better, worse, paper=paper),
        )
    yield Check(
        Claim(
            PAPER,
            "§5.1 and §6, Table 3 (LLaMA-7B, rank 32; .030 at 64)",
            f"{fa} scores at least as high as DoRA of the same rank, which has twice the parameters",
            0.0,
        ),
        f"score, {fa} − DoRA (column), at every rank",
        NOT_LOWER,
        partial(score_differences, scores, ANY, "sbora-fa", "dora"),
    )
    yield from _quantised(scores)


def _quantised(scores: pd.DataFrame) -> Iterator[Check]:
    """Table 5: over a base in 4 bits, MMLU after Flan v2 (LLaMA-7B), ranks 64 and 128."""
    source = "§5.3, Table 5 (LLaMA-7B, Flan v2)"
    for method, same, doubled, gain in (("qsbora-fa", -0.013, 0.014, 0.027), ("qsbora-fb", -0.010, 0.013, 0.023)):
        name = method_name(method)
        yield Check(
            Claim(PAPER, source, f"{name} scores about as high as QLoRA of the same rank", same),
            f"score, {name} − QLoRA",
            AS_HIGH,
            partial(score_difference, scores, ANY, method, "qlora"),
        )
        yield Check(
            Claim(PAPER, source, f"{name} scores higher than QLoRA of half its rank", doubled),
            f"score, {name} − QLoRA of half the rank",
            POSITIVE,
            partial(score_difference, scores, ANY, method, "qlora", 0.5, doubled),
        )
        yield Check(
            Claim(PAPER, source, f"{name} scores higher at a higher rank", gain),
            f"score of {name}, highest rank − lowest",
            POSITIVE,
            partial(score_gain, scores, method),
        )
