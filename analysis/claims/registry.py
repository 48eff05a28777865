"""The measures by name: what a pack's claims may be about. Those of one paper alone stand in that paper's file."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from deltaw.analysis.claims.arguments import flag, number, one_of, some_of, table_of, text
from deltaw.analysis.claims.curves import asymmetry_of, change_ratio, correlation_of, last_pairs, slope_of
from deltaw.analysis.claims.dora import of_self_attention, score_widening
from deltaw.analysis.claims.dual_lora import even_ranks, parameters_by_split, rank_ratio, scores_by_split
from deltaw.analysis.claims.evidence import Evidence, require_methods
from deltaw.analysis.claims.geometry import (
    GEOMETRY_COLUMNS,
    beside_chance,
    distance_growth,
    geometry_ratio,
    intruder_count,
    intruder_gain,
)
from deltaw.analysis.claims.interval import Array, Measured
from deltaw.analysis.claims.measuring import Measure, Need, of_methods
from deltaw.analysis.claims.rules import Parts
from deltaw.analysis.claims.sbora import moved_vectors, untouched_share
from deltaw.analysis.claims.scores import ratio_of, ratios_by_rank, score_difference, score_differences, score_gain

COSTS = ("trainable", "seconds_per_epoch", "peak_megabytes")
QUANTITIES = ("delta_m", "delta_d")
AXES = ("row", "column", "matrix")
PAIRS = ("consecutive", "initial", "base")

_METHOD = text(takes="a method")
_OTHER = text(None, takes="a method")
_QUANTITY = one_of(*QUANTITIES)
_COST = one_of(*COSTS)
_SCORE = text("any", takes="a score: mcc, vqa, gqa, nlvr, caption, mean (of the last four), any (whatever it is)")
_PART = table_of(method=_METHOD, axes=some_of(*AXES, default=("row", "column")))
_GROUP = table_of(
    method=_METHOD,
    group=one_of("update", "magnitude", "direction", default="update"),
    column=one_of("rank", "full_rank", "adapter_rank", default="rank"),
)
_TIMES = number(1.0)
_KIND = text(None, takes="a kind of matrix, as query")


def _asymmetry(evidence: Evidence, pairs: str, quantity: Any, method: str, minus: str | None) -> Measured:
    frame = evidence.consecutive if pairs == "consecutive" else last_pairs(evidence.initial)
    return asymmetry_of(frame, quantity, method, minus)


def _change_ratio(evidence: Evidence, pairs: str, quantity: Any, over: Any, under: Any, kind: str | None) -> Measured:
    parts = [(part["method"], part["axes"]) for part in (over, under)]
    if pairs == "base":
        return change_ratio(_of_kind(evidence, kind, [method for method, _ in parts]), quantity, *parts)
    frame = evidence.consecutive if pairs == "consecutive" else evidence.initial
    return change_ratio(frame, quantity, *parts, every=pairs == "consecutive")


def _changes_needed(pairs: str, over: Mapping[str, Any], under: Mapping[str, Any], kind: str | None, **_: Any) -> Any:
    methods = tuple(dict.fromkeys(part["method"] for part in (over, under)))
    axes = tuple(axis for axis in AXES if axis in (*over["axes"], *under["axes"]))
    return (Need(pairs, methods, () if kind is None or pairs != "base" else (kind,), axes),)


def _of_kind(evidence: Evidence, kind: str | None, methods: list[str]) -> pd.DataFrame:
    """The changes from the base in matrices of one kind, without a decoder's attention to its encoder."""
    whole = of_self_attention(evidence.base)
    wanted = kind or evidence.kind
    rows = whole[whole["kind"] == wanted]
    require_methods(whole, methods)
    require_methods(rows, methods, f"{wanted} matrix")
    return rows


def _correlation(evidence: Evidence, kind: str | None, axis: Any, method: str, minus: str | None) -> Measured:
    methods = [method] if minus is None else [method, minus]
    combine = _alone if minus is None else _apart
    return correlation_of(of_self_attention(evidence.base), kind or evidence.kind, axis, methods, combine)


def _slope(evidence: Evidence, kind: str | None, axis: Any, method: str, minus: str | None) -> Measured:
    methods = [method] if minus is None else [method, minus]
    combine = _alone if minus is None else _apart
    return slope_of(of_self_attention(evidence.base), kind or evidence.kind, axis, methods, combine)


def _nearer(evidence: Evidence, kind: str | None, axis: Any, method: str, to: str, than: str) -> Measured:
    def combine(goal: Array, other: Array, own: Array) -> Array:
        return abs(other - goal) - abs(own - goal)

    return correlation_of(of_self_attention(evidence.base), kind or evidence.kind, axis, [to, than, method], combine)


def _alone(r: Array) -> Array:
    return r


def _apart(higher: Array, lower: Array) -> Array:
    return higher - lower


def _cloud_needed(*names: str) -> Any:
    def needs(kind: str | None, axis: str, **given: Any) -> tuple[Need, ...]:
        methods = tuple(dict.fromkeys(given[name] for name in names if given[name] is not None))
        return (Need("base", methods, () if kind is None else (kind,), (axis,)),)

    return needs


def _score(
    evidence: Evidence, score: str, better: str, worse: str, times: Any, more: int, any_rank: bool, paper: float | None
) -> Measured:
    scores = even_ranks(evidence.scores)
    return score_difference(scores, score, better, worse, None if any_rank else times, paper, more)


def _by_rank(evidence: Evidence, score: str, better: str, worse: str, times: float) -> Parts:
    return score_differences(evidence.scores, score, better, worse, times)


def _ratios(evidence: Evidence, cost: str, over: str, under: str, times: float) -> Parts:
    return ratios_by_rank(even_ranks(evidence.runs), cost, over, under, times)


_CLOUD = {"kind": _KIND, "axis": one_of(*AXES), "method": _METHOD}
_GEOMETRY = one_of(*GEOMETRY_COLUMNS)
_PARAMETERS = {"cost": _COST, "over": _METHOD, "under": _METHOD}

MEASURES: dict[str, Measure] = {
    "asymmetry": Measure(
        "A of a method's ΔM or ΔD in rows and columns; with minus, how much larger it is than another's",
        _asymmetry,
        {"pairs": one_of("consecutive", "initial"), "quantity": _QUANTITY, "method": _METHOD, "minus": _OTHER},
        lambda pairs, **given: of_methods(pairs, "method", "minus")(**given),
    ),
    "change ratio": Measure(
        "ΔM or ΔD of one method over another's: the mean from step to step, or of the last step that both have",
        _change_ratio,
        {"pairs": one_of(*PAIRS), "quantity": _QUANTITY, "over": _PART, "under": _PART, "kind": _KIND},
        _changes_needed,
    ),
    "correlation": Measure(
        "r of ΔD with ΔM from the base, over matrices and four steps; with minus, less another method's",
        _correlation,
        {**_CLOUD, "minus": _OTHER},
        _cloud_needed("method", "minus"),
    ),
    "slope": Measure(
        "the slope of ΔM on ΔD of the same points as r; with minus, less another method's",
        _slope,
        {**_CLOUD, "minus": _OTHER},
        _cloud_needed("method", "minus"),
    ),
    "nearer correlation": Measure(
        "how much nearer a method's r is to that of another than a third's is",
        _nearer,
        {**_CLOUD, "to": _METHOD, "than": _METHOD},
        _cloud_needed("method", "to", "than"),
    ),
    "score": Measure(
        "the difference of two methods' scores, the second at `times` the rank of the first and `more`",
        _score,
        {
            "score": _SCORE,
            "better": _METHOD,
            "worse": _METHOD,
            "times": _TIMES,
            "more": number(0, whole=True),
            "any_rank": flag(False),
            "paper": number(None),
        },
    ),
    "score by rank": Measure(
        "the difference of two methods' scores at every rank at which they can be compared",
        _by_rank,
        {"score": _SCORE, "better": _METHOD, "worse": _METHOD, "times": _TIMES},
    ),
    "score gain": Measure(
        "how much higher a method scores at its highest rank than at its lowest",
        lambda evidence, method: score_gain(evidence.scores, method),
        {"method": _METHOD},
    ),
    "score widening": Measure(
        "how much further a method is above another at the lowest rank than at the highest",
        lambda evidence, better, worse: score_widening(evidence.scores, better, worse),
        {"better": _METHOD, "worse": _METHOD},
    ),
    "ratio": Measure(
        "parameters, seconds per epoch or peak memory of one method over another's at the same rank",
        lambda evidence, cost, over, under: ratio_of(evidence.runs, cost, over, under),
        _PARAMETERS,
    ),
    "ratio by rank": Measure(
        "the same at every rank at which they can be compared",
        _ratios,
        {**_PARAMETERS, "times": _TIMES},
    ),
    "moved vectors": Measure(
        "the share of matrices in which exactly r rows or columns of ΔW are not zero",
        lambda evidence, method, axis: moved_vectors(evidence.regions, method, axis),
        {"method": _METHOD, "axis": one_of("row", "column")},
        of_methods("regions", "method"),
    ),
    "untouched share": Measure(
        "how far the share of entries of ΔW that are zero is from 1 − r/in or 1 − r/out",
        lambda evidence, method, side: untouched_share(evidence.regions, method, side),
        {"method": _METHOD, "side": one_of("in", "out")},
        of_methods("regions", "method"),
    ),
    "update rank": Measure(
        "the ratio of two ranks in every layer: of ΔW or a group of it, the full rank, or the adapter's r",
        lambda evidence, over, under, trained: rank_ratio(evidence.spectra, over, under, trained),
        {"over": _GROUP, "under": _GROUP, "trained": flag(True)},
        of_methods("spectra", "over", "under"),
    ),
    "parameters by split": Measure(
        "Dual LoRA's trainable parameters over another method's at every r₁ : r₂ that sums to its rank",
        lambda evidence, other: parameters_by_split(evidence.runs, other),
        {"other": _METHOD},
    ),
    "scores by split": Measure(
        "Dual LoRA's score less another method's at every r₁ : r₂ that sums to its rank",
        lambda evidence, other: scores_by_split(evidence.scores, other),
        {"other": _METHOD},
    ),
    "geometry ratio": Measure(
        "a number of the geometry table, averaged over matrices at the last step, of one method over another's",
        lambda evidence, column, over, under: geometry_ratio(evidence.geometry, column, over, under),
        {"column": _GEOMETRY, "over": _METHOD, "under": _METHOD},
        of_methods("geometry", "over", "under"),
    ),
    "beside chance": Measure(
        "a number of the geometry table over what a random update of the same size has",
        lambda evidence, column, method: beside_chance(evidence.geometry, column, method),
        {"column": one_of("rotation_left", "rotation_right", "off_principal"), "method": _METHOD},
        of_methods("geometry", "method"),
    ),
    "intruders": Measure(
        "the intruder dimensions among the ten leading singular vectors, a matrix; with minus, less another method's",
        lambda evidence, method, minus: intruder_count(evidence.intruders, method, minus),
        {"method": _METHOD, "minus": _OTHER},
        of_methods("intruders", "method", "minus"),
    ),
    "intruder gain": Measure(
        "how many more intruder dimensions a method has at its highest rank than at its lowest",
        lambda evidence, method: intruder_gain(evidence.intruders, method),
        {"method": _METHOD},
        of_methods("intruders", "method"),
    ),
    "distance growth": Measure(
        "‖ΔW‖ at the end over that half way; with under, over the same of another method",
        lambda evidence, method, under: distance_growth(evidence.distances, method, under),
        {"method": _METHOD, "under": _OTHER},
        of_methods("distances", "method", "under"),
    ),
}
