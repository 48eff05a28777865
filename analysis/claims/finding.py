"""How the measures of packs find their number in the evidence; their names and arguments are in ``registry``."""

from typing import Any

import pandas as pd

from deltaw.analysis.claims.curves import asymmetry_of, change_ratio, correlation_of, last_pairs, slope_of
from deltaw.analysis.claims.dora import of_self_attention, score_widening
from deltaw.analysis.claims.dual_lora import even_ranks, parameters_by_split, rank_ratio, scores_by_split
from deltaw.analysis.claims.evidence import Evidence, require_methods
from deltaw.analysis.claims.geometry import (
    beside_chance,
    distance_growth,
    geometry_ratio,
    intruder_count,
    intruder_gain,
)
from deltaw.analysis.claims.interval import Array, Measured
from deltaw.analysis.claims.rules import Parts
from deltaw.analysis.claims.sbora import moved_vectors, untouched_share
from deltaw.analysis.claims.scores import ratio_of, ratios_by_rank, score_difference, score_differences, score_gain


def asymmetry(evidence: Evidence, pairs: str, quantity: Any, method: str, minus: str | None) -> Measured:
    """Return A of a method, or how much larger it is than another's."""
    frame = evidence.consecutive if pairs == "consecutive" else last_pairs(evidence.initial)
    return asymmetry_of(frame, quantity, method, minus)


def changes(evidence: Evidence, pairs: str, quantity: Any, over: Any, under: Any, kind: str | None) -> Measured:
    """Return ΔM or ΔD of one method over another's."""
    parts = [(part["method"], part["axes"]) for part in (over, under)]
    if pairs == "base":
        return change_ratio(_of_kind(evidence, kind, [method for method, _ in parts]), quantity, *parts)
    frame = evidence.consecutive if pairs == "consecutive" else evidence.initial
    return change_ratio(frame, quantity, *parts, every=pairs == "consecutive")


def _of_kind(evidence: Evidence, kind: str | None, methods: list[str]) -> pd.DataFrame:
    """The changes from the base in matrices of one kind, without a decoder's attention to its encoder."""
    whole = of_self_attention(evidence.base)
    wanted = kind or evidence.kind
    rows = whole[whole["kind"] == wanted]
    require_methods(whole, methods)
    require_methods(rows, methods, f"{wanted} matrix")
    return rows


def correlation(evidence: Evidence, kind: str | None, axis: Any, method: str, minus: str | None) -> Measured:
    """Return r of a method, or how much larger it is than another's."""
    methods = [method] if minus is None else [method, minus]
    combine = _alone if minus is None else _apart
    return correlation_of(of_self_attention(evidence.base), kind or evidence.kind, axis, methods, combine)


def slope(evidence: Evidence, kind: str | None, axis: Any, method: str, minus: str | None) -> Measured:
    """Return the slope of a method, or how much larger it is than another's."""
    methods = [method] if minus is None else [method, minus]
    combine = _alone if minus is None else _apart
    return slope_of(of_self_attention(evidence.base), kind or evidence.kind, axis, methods, combine)


def nearer_correlation(evidence: Evidence, kind: str | None, axis: Any, method: str, to: str, than: str) -> Measured:
    """Return how much nearer a method's r is to that of ``to`` than that of ``than`` is."""

    def combine(goal: Array, other: Array, own: Array) -> Array:
        return abs(other - goal) - abs(own - goal)

    return correlation_of(of_self_attention(evidence.base), kind or evidence.kind, axis, [to, than, method], combine)


def _alone(r: Array) -> Array:
    return r


def _apart(higher: Array, lower: Array) -> Array:
    return higher - lower


def score(
    evidence: Evidence, score: str, better: str, worse: str, times: Any, more: int, any_rank: bool, paper: float | None
) -> Measured:
    """Return how much higher one method scores than another."""
    scores = even_ranks(evidence.scores)
    return score_difference(scores, score, better, worse, None if any_rank else times, paper, more)


def score_by_rank(evidence: Evidence, score: str, better: str, worse: str, times: float) -> Parts:
    """Return that at every rank."""
    return score_differences(evidence.scores, score, better, worse, times)


def ratio_by_rank(evidence: Evidence, cost: str, over: str, under: str, times: float) -> Parts:
    """Return the ratio of a cost at every rank."""
    return ratios_by_rank(even_ranks(evidence.runs), cost, over, under, times)


def gain(evidence: Evidence, method: str) -> Measured:
    """See ``score_gain``."""
    return score_gain(evidence.scores, method)


def widening(evidence: Evidence, better: str, worse: str) -> Measured:
    """See ``score_widening``."""
    return score_widening(evidence.scores, better, worse)


def ratio(evidence: Evidence, cost: str, over: str, under: str) -> Measured:
    """See ``ratio_of``."""
    return ratio_of(evidence.runs, cost, over, under)


def moved(evidence: Evidence, method: str, axis: str) -> Parts:
    """See ``moved_vectors``."""
    return moved_vectors(evidence.regions, method, axis)


def untouched(evidence: Evidence, method: str, side: str) -> Parts:
    """See ``untouched_share``."""
    return untouched_share(evidence.regions, method, side)


def update_rank(evidence: Evidence, over: Any, under: Any, trained: bool) -> Parts:
    """See ``rank_ratio``."""
    return rank_ratio(evidence.spectra, over, under, trained)


def split_parameters(evidence: Evidence, other: str) -> Parts:
    """See ``parameters_by_split``."""
    return parameters_by_split(evidence.runs, other)


def split_scores(evidence: Evidence, other: str) -> Parts:
    """See ``scores_by_split``."""
    return scores_by_split(evidence.scores, other)


def geometry(evidence: Evidence, column: str, over: str, under: str) -> Measured:
    """See ``geometry_ratio``."""
    return geometry_ratio(evidence.geometry, column, over, under)


def chance(evidence: Evidence, column: str, method: str) -> Measured:
    """See ``beside_chance``."""
    return beside_chance(evidence.geometry, column, method)


def intruders(evidence: Evidence, method: str, minus: str | None) -> Measured:
    """See ``intruder_count``."""
    return intruder_count(evidence.intruders, method, minus)


def gain_of_intruders(evidence: Evidence, method: str) -> Measured:
    """See ``intruder_gain``."""
    return intruder_gain(evidence.intruders, method)


def growth(evidence: Evidence, method: str, under: str | None) -> Measured:
    """See ``distance_growth``."""
    return distance_growth(evidence.distances, method, under)
