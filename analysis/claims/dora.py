"""DoRA's claims.

The paper measures along the columns, its equations 2 to 4 read literally, and that is what is checked for DoRA
(column). Its authors' code normalises rows, so the same claims are also held against DoRA (row) along the rows.

Two of its pictures disagree with each other: by the axes of Figure 2 DoRA moves further from W₀ than LoRA, in ΔM and in
ΔD; by Figures 3 and 8 (another model, other tasks) it moves less. Both are claims here.
"""

from collections.abc import Iterator
from functools import partial

import pandas as pd

from deltaw.analysis.claims.claim import Claim
from deltaw.analysis.claims.curves import SYMBOLS, Quantity, change_ratio, correlation_of
from deltaw.analysis.claims.evidence import Evidence, method_name, require_methods
from deltaw.analysis.claims.interval import Array, Measured, Undecidable
from deltaw.analysis.claims.rules import (
    A_LITTLE_MORE,
    ABOVE_ZERO,
    AS_HIGH,
    BELOW_ZERO,
    LESS,
    LESS_THAN_HALF,
    MORE,
    NOT_LOWER,
    POSITIVE,
    Check,
    below,
)
from deltaw.analysis.claims.scores import (
    ANY,
    MEAN,
    SCORE_NAMES,
    VL_TASKS,
    ratio_of,
    score_difference,
    score_differences,
)
from deltaw.analysis.measures.change import Axis
from deltaw.analysis.names import stack_of
from deltaw.analysis.tables.tidy import display_name

PAPER = "DoRA"
PAPERS_R = {"ft": -0.62, "lora": 0.83, "dora": -0.31, "dora-row": -0.31}
FIGURES = {"query": "§4.1, Figure 2", "value": "Appendix A.1, Figure 7"}
AXES: dict[str, Axis] = {"dora": "column", "dora-row": "row"}
UNDETACHED = {"dora": "dora, detach_norm False", "dora-row": "dora-row, detach_norm False"}
GRANULAR = "dora+magnitude"  # magnitudes in all modules, directions in some


def checks(evidence: Evidence) -> Iterator[Check]:
    """Yield DoRA's claims with their rules, in the paper's order."""
    base = of_self_attention(evidence.base)
    for dora, axis in AXES.items():
        for kind in FIGURES:
            yield from _correlations(base, kind, dora, axis)
    for dora, axis in AXES.items():
        yield from _distances(base, dora, axis)
    yield from _scores(evidence.scores)
    yield from _costs(evidence)


def of_self_attention(frame: pd.DataFrame) -> pd.DataFrame:
    """Leave out the attention of a decoder to an encoder, as the paper's figures do.

    Example:
        >>> frame = pd.DataFrame({"module": ["decoder.0.self_attn.q_proj", "decoder.0.encoder_attn.q_proj"]})
        >>> of_self_attention(frame)["module"].tolist()
        ['decoder.0.self_attn.q_proj']
    """
    return frame[frame["module"].map(stack_of) != "cross"]


def _correlations(base: pd.DataFrame, kind: str, dora: str, axis: Axis) -> Iterator[Check]:
    """Figures 2 and 7: ΔD against ΔM, from the base, over layers and steps."""
    source = FIGURES[kind] if axis == "column" else f"{FIGURES[kind]}, by row as the authors' code"
    names = {method: display_name(method) for method in ("ft", "lora", dora)}
    for method, rule in (("ft", BELOW_ZERO), ("lora", ABOVE_ZERO), (dora, BELOW_ZERO)):
        opposed = rule is BELOW_ZERO
        yield Check(
            Claim(
                PAPER,
                source,
                f"In {names[method]}'s {kind} matrices the {axis}s' ΔM "
                + ("falls where ΔD rises" if opposed else "rises with ΔD"),
                PAPERS_R[method] if kind == "query" else None,
            ),
            f"correlation r of ΔD with ΔM of the {axis}s, {kind}",
            rule,
            partial(correlation_of, base, kind, axis, [method], _alone),
        )
    for higher, lower in (("lora", "ft"), ("lora", dora), (dora, "ft")):
        paper = round(PAPERS_R[higher] - PAPERS_R[lower], 2) if kind == "query" else None
        yield Check(
            Claim(PAPER, source, f"In {kind} matrices {names[higher]}'s r by {axis}s is above {names[lower]}'s", paper),
            f"r of the {axis}s, {kind}, {names[higher]} − {names[lower]}",
            POSITIVE,
            partial(correlation_of, base, kind, axis, [higher, lower], _apart),
        )
    yield Check(
        Claim(
            PAPER,
            source,
            f"In {kind} matrices {names[dora]}'s r by {axis}s is nearer to {names['ft']}'s than LoRA's is",
            1.14 if kind == "query" else None,
        ),
        f"|r(LoRA) − r({names['ft']})| − |r({names[dora]}) − r({names['ft']})| of the {axis}s, {kind}",
        POSITIVE,
        partial(correlation_of, base, kind, axis, ["ft", "lora", dora], _nearer),
    )


def _alone(r: Array) -> Array:
    return r


def _apart(higher: Array, lower: Array) -> Array:
    return higher - lower


def _nearer(ft: Array, lora: Array, dora: Array) -> Array:
    return abs(lora - ft) - abs(dora - ft)


def _distances(base: pd.DataFrame, dora: str, axis: Axis) -> Iterator[Check]:
    """Figures 3 and 8, and the axes of Figure 2: how far from the base the last step is."""
    quantities: tuple[Quantity, ...] = ("delta_m", "delta_d")
    by_code = "" if axis == "column" else ", by row as the authors' code"

    def check(source: str, kind: str, quantity: Quantity, over: str, under: str, less: bool) -> Check:
        names = display_name(over), display_name(under)
        word = "magnitudes" if quantity == "delta_m" else "directions"
        sentence = (
            f"{names[0]} leaves the {axis}s' {word} of {kind} matrices nearer to the base than {names[1]}"
            if less
            else f"{names[0]} moves the {axis}s' {word} of {kind} matrices further from the base than {names[1]}"
        )
        return Check(
            Claim(PAPER, source + by_code, sentence),
            f"{SYMBOLS[quantity]} from the base to the end, {axis}s of {kind}, {names[0]} / {names[1]}",
            LESS if less else MORE,
            partial(_distance, base, kind, quantity, over, under, axis),
        )

    for kind, source in (
        ("query", "§5.1, Figure 3"),
        ("key", "Appendix A.4, Figure 8"),
        ("value", "Appendix A.4, Figure 8"),
    ):
        for quantity in quantities:
            yield check(source, kind, quantity, dora, "lora", less=True)
    axes = {
        "query": ("ΔM 0.7–1.4 against 0.25–0.45, ΔD 0.16–0.32 against 0.10–0.16", "Figure 2"),
        "value": ("ΔM 0.4–1.0 against 0.2–0.8, ΔD 0.20–0.50 against 0.15–0.33", "Figure 7"),
    }
    for kind, (ranges, figure) in axes.items():
        for quantity in quantities:
            yield check(f"the axes of {figure}, not its text ({ranges})", kind, quantity, dora, "lora", less=False)
    axes = {
        "query": ("ΔM 0.05–0.09 against 0.25–0.45, ΔD 0.014–0.022 against 0.10–0.16", "Figure 2"),
        "value": ("ΔM 0.02–0.055 against 0.2–0.8, ΔD 0.02–0.08 against 0.15–0.33", "Figure 7"),
    }
    for kind, (ranges, figure) in axes.items():
        for quantity in quantities:
            yield check(f"the axes of {figure}, not its text ({ranges})", kind, quantity, "ft", "lora", less=True)


def _distance(base: pd.DataFrame, kind: str, quantity: Quantity, over: str, under: str, axis: Axis) -> Measured:
    rows = base[base["kind"] == kind]
    require_methods(base, [over, under])
    require_methods(rows, [over, under], f"{kind} matrix")
    return change_ratio(rows, quantity, (over, [axis]), (under, [axis]))


def _scores(scores: pd.DataFrame) -> Iterator[Check]:
    """Tables 1 to 6, Figures 5 and 6."""

    def higher(
        source: str,
        sentence: str,
        name: str,
        better: str,
        worse: str,
        paper: float | None,
        times: float = 1.0,
    ) -> Check:
        of = {1.0: "", 2.0: " of twice the rank"}[times]
        return Check(
            Claim(PAPER, source, sentence, paper),
            f"{SCORE_NAMES[name]}, {method_name(better)} − {method_name(worse)}{of}",
            POSITIVE,
            partial(score_difference, scores, name, better, worse, times, paper),
        )

    for dora in AXES:
        name = display_name(dora)
        code = "" if dora == "dora" else ", with rows as the authors' code"
        for task, paper in zip((*VL_TASKS, MEAN), (0.006, 0.011, 0.012, 0.006, 0.009), strict=True):
            yield higher(
                f"§5.2, Table 2{code}", f"{name} has a higher {SCORE_NAMES[task]} than LoRA", task, dora, "lora", paper
            )
        yield Check(
            Claim(PAPER, f"§5.2, Table 2{code}", f"{name} reaches the score of Full FT on image-text tasks", 0.001),
            f"{SCORE_NAMES[MEAN]}, {name} − Full FT",
            NOT_LOWER,
            partial(score_difference, scores, MEAN, dora, "ft"),
        )
        yield higher(f"§5.1, Table 1 (LLaMA-7B){code}", f"{name} scores higher than LoRA", ANY, dora, "lora", 0.037)
        yield higher(
            f"§5.1, Table 1 (DoRA†, LLaMA-7B){code}",
            f"{name} scores higher than LoRA of twice its rank",
            ANY,
            dora,
            "lora",
            0.028,
            2.0,
        )
        yield Check(
            Claim(PAPER, f"§5.5, Figure 5, Table 15{code}", f"{name} scores higher than LoRA at every rank"),
            f"score, {name} − LoRA, at every rank",
            POSITIVE,
            partial(score_differences, scores, ANY, dora, "lora"),
        )
        yield Check(
            Claim(
                PAPER,
                f"Appendix A.8, Table 15 (ranks 4 and 64){code}",
                f"{name} is further above LoRA at the lowest rank than at the highest",
                0.161,
            ),
            f"(score of {name} − of LoRA at the lowest rank) − (the same at the highest)",
            POSITIVE,
            partial(_widening, scores, dora),
        )
    yield higher("§5.2, Table 2", "Full FT scores higher than LoRA on image-text tasks", MEAN, "ft", "lora", 0.008)
    yield higher("§5.4, Table 5 (MT-Bench)", "DVoRA scores higher than VeRA", ANY, "dvora", "vera", None)
    yield Check(
        Claim(
            PAPER,
            "§5.4, Table 5 (MT-Bench of 10, LLaMA-7B; .3 LLaMA2-7B)",
            "DVoRA scores as high as LoRA or higher",
            -0.1,
        ),
        "score, DVoRA − LoRA, whatever their ranks",
        NOT_LOWER,
        partial(score_difference, scores, ANY, "dvora", "lora", None),
    )
    for dora in AXES:
        name = f"Q{display_name(dora)}"
        yield higher("§6.1, Figure 6 (LLaMA2-7B)", f"{name} scores higher than QLoRA", ANY, f"q{dora}", "qlora", 0.19)
        yield higher("§6.1, Figure 6 (LLaMA2-7B)", f"{name} scores higher than Full FT", ANY, f"q{dora}", "ft", 0.05)
    yield higher(
        "§5.6, Table 6 (LLaMA-7B)",
        "DoRA with magnitudes in all modules and directions in some scores higher than LoRA in all",
        ANY,
        GRANULAR,
        "lora",
        0.028,
    )


def _widening(scores: pd.DataFrame, dora: str) -> Measured:
    found = list(score_differences(scores, ANY, dora, "lora").each.items())
    if len(found) < 2:
        raise Undecidable(f"missing: results of {dora} and lora at two ranks")
    (low_name, low), (high_name, high) = found[0], found[-1]
    reaches = [one.interval[1] - one.statistic for one in (low, high) if one.interval is not None]
    reach = sum(part**2 for part in reaches) ** 0.5
    value = low.statistic - high.statistic
    return Measured(value, (value - reach, value + reach), f"{low_name} and {high_name}")


def _costs(evidence: Evidence) -> Iterator[Check]:
    """Tables 2, 6 and 7: parameters and memory."""
    runs, scores = evidence.runs, evidence.scores
    for dora in AXES:
        name = display_name(dora)
        yield Check(
            Claim(
                PAPER,
                "§5.2, Table 2 (5.96 %, 5.93 %)",
                f"{name} trains a little more parameters than LoRA",
                1.005,
            ),
            f"trainable parameters, {name} / LoRA",
            A_LITTLE_MORE,
            partial(ratio_of, runs, "trainable", dora, "lora"),
        )
    yield Check(
        Claim(
            PAPER,
            "§5.6, Table 6 (LLaMA-7B)",
            "DoRA with magnitudes in all modules and directions in some trains less than half of LoRA's parameters",
            0.47,
        ),
        "trainable parameters, such a DoRA / LoRA",
        LESS_THAN_HALF,
        partial(ratio_of, runs, "trainable", GRANULAR, "lora"),
    )
    for dora, other in UNDETACHED.items():
        name = display_name(dora)
        yield Check(
            Claim(PAPER, "§4.3, Table 7 (VL-BART)", f"Keeping the norm out of the gradient saves {name} memory", 0.876),
            f"peak memory of {name}, norm detached / not",
            below(1.0),
            partial(ratio_of, runs, "peak_megabytes", dora, other),
        )
        yield Check(
            Claim(PAPER, "§4.3, Table 7 (VL-BART)", f"{name} scores as high with the norm detached as without", 0.001),
            f"score of {name}, norm detached − not",
            AS_HIGH,
            partial(score_difference, scores, ANY, dora, other),
        )
