"""How many singular values of an update are enough: rules for one matrix, and a budget of parameters for many.

All of them see the signal alone, the singular values σ₁ ≥ σ₂ ≥ … above a floor: what is at or below it is rounding.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deltaw.adapters.checks import whole_number
from deltaw.adapters.errors import OptionError

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rule:
    """A rule for the rank of one matrix.

    Arguments:
        count: From the signal, descending and not empty, and ``at``, how many singular values are enough.
        formula: What it counts, for tables and messages.
        at: The usual number; ``None`` where the rule takes none.
        least, most: Between which ``at`` lies; at ``least`` itself only where ``from_least``.
        from_least: Whether ``at`` may be ``least``.
    """

    count: Callable[[Values, float], int]
    formula: str
    at: float | None = None
    least: float = 0.0
    most: float = 1.0
    from_least: bool = False

    def checked(self, name: str, at: float | None) -> float:
        """Return the number that is used.

        Raises:
            OptionError: It is out of its range, or the rule takes none.
        """
        if self.at is None:
            if at is not None:
                raise OptionError(f"at is {at!r}, and the rule {name!r} takes no number; leave it out")
            return math.nan
        if at is None:
            return self.at
        number = isinstance(at, float | int | np.number) and not isinstance(at, bool)
        if not number or not (self.least < at <= self.most or (self.from_least and at == self.least)):
            ends = f"{'from' if self.from_least else 'above'} {self.least:g} to {self.most:g}"
            raise OptionError(f"at is {at!r}; for the rule {name!r} ({self.formula}) choose a number {ends}")
        return float(at)


def _share(weights: Values, share: float) -> int:
    """The smallest k with Σ_{i≤k} w_i ≥ share·Σw."""
    held = np.cumsum(weights)
    return int(np.count_nonzero(held < share * held[-1])) + 1


def _entropy_rank(values: Values) -> float:
    p = values / values.sum()
    return math.exp(-float(np.sum(p * np.log(p))))


def _whole(rank: float) -> int:
    """⌈rank⌉, where what is above a whole number by rounding alone is that number."""
    return math.ceil(rank - 1e-9 * rank)


RULES: dict[str, Rule] = {
    "energy": Rule(lambda v, at: _share(_relative(v) ** 2, at), "the smallest k with Σ_{i≤k} σ_i² ≥ at·Σσ²", 0.99),
    "noise": Rule(lambda v, at: len(v), "all σ above the rounding of what was stored"),
    "stable": Rule(lambda v, at: _whole(float(np.sum(_relative(v) ** 2))), "⌈‖ΔW‖_F² / σ₁²⌉"),
    "effective": Rule(lambda v, at: _whole(_entropy_rank(v)), "⌈exp of the entropy of σ/Σσ⌉"),
    "sv_fro": Rule(lambda v, at: _share(_relative(v) ** 2, at**2), "the smallest k with √Σ_{i≤k} σ_i² ≥ at·√Σσ²", 0.9),
    "sv_cumulative": Rule(_share, "the smallest k with Σ_{i≤k} σ_i ≥ at·Σσ", 0.9),
    "sv_ratio": Rule(
        lambda v, at: max(1, int(np.count_nonzero(v > v[0] / at))), "the number of σ > σ₁/at", 10.0, 1.0, math.inf, True
    ),
}  # fmt: skip


def _relative(values: Values) -> Values:
    """σ/σ₁, whose squares neither over- nor underflow."""
    relative: Values = values / values[0]
    return relative


def rank_by(values: Values, rule: str, at: float | None = None) -> int:
    """Return how many singular values a rule asks for; 0 where there are none.

        energy           the smallest k with Σ_{i≤k} σ_i² ≥ at·Σσ²          (at = 0.99: relative error √(1 − at) = 0.1)
        sv_fro           the same with √Σ_{i≤k} σ_i² ≥ at·‖ΔW‖_F, that is, energy with at²
        sv_cumulative    the smallest k with Σ_{i≤k} σ_i ≥ at·Σσ
        sv_ratio         the number of σ_i > σ₁/at, at least 1
        stable           ⌈‖ΔW‖_F² / σ₁²⌉
        effective        ⌈exp(−Σ p log p)⌉ with p = σ/Σσ
        noise            all there are: what stands above the rounding of what was stored

    Arguments:
        values: The signal: singular values above the noise floor, descending.
        rule: One of ``RULES``.
        at: The rule's number; ``None`` for its usual one.

    Raises:
        OptionError: There is no such rule, or ``at`` is out of its range.

    Source:
        Rudelson, Vershynin 2007 (stable rank); Roy, Vetterli 2007 (effective rank); kohya-ss/sd-scripts,
        networks/resize_lora.py (the three that begin with sv, under its names).

    Example:
        >>> values = np.array([4.0, 2.0, 1.0, 1.0])
        >>> {rule: rank_by(values, rule) for rule in RULES}
        {'energy': 4, 'noise': 4, 'stable': 2, 'effective': 4, 'sv_fro': 2, 'sv_cumulative': 4, 'sv_ratio': 4}
        >>> rank_by(values, "energy", 0.9), rank_by(values, "sv_ratio", 3)
        (2, 2)
    """
    used = rule_named(rule).checked(rule, at)
    return RULES[rule].count(values, used) if len(values) else 0


def rule_named(rule: str) -> Rule:
    """Return a rule.

    Raises:
        OptionError: There is none of this name.
    """
    if not isinstance(rule, str) or rule not in RULES:
        raise OptionError(f"rule is {rule!r}; choose one of {', '.join(RULES)}")
    return RULES[rule]


def fewest(values: Sequence[Values], costs: Sequence[int], share: float) -> list[int]:
    """Return a rank for every matrix so that few parameters hold a share of the energy of all.

        Σ_m Σ_{i≤k_m} σ_{m,i}² ≥ share·Σ_m Σ_i σ_{m,i}²

    Singular values are taken by σ²/cost, largest first. That is the fewest parameters where all costs are equal; where
    they differ, no choice with the same number of parameters holds more.

    Arguments:
        values: The signal of each matrix.
        costs: Parameters of one more rank of each: out + in.
        share: Of the energy, in (0, 1].

    Raises:
        OptionError: ``share`` is none.
    """
    share = RULES["energy"].checked("energy", share)
    ranks = [0] * len(values)
    order = _by_worth(values, costs)
    count = _share(np.array([energy for _, energy, _ in order]), share) if order else 0
    for _, _, which in order[:count]:
        ranks[which] += 1
    return ranks


def within(values: Sequence[Values], costs: Sequence[int], budget: int, least: int = 1) -> list[int]:
    """Return a rank for every matrix so that a budget of parameters holds much of the energy of all.

    Singular values are taken by σ²/cost, largest first, as long as they fit: where all costs are equal, no choice
    within the budget holds more.

    Arguments:
        values: The signal of each matrix; no rank goes beyond it, but for ``least``.
        costs: Parameters of one more rank of each: out + in.
        budget: Parameters.
        least: The rank that every matrix has at least.

    Raises:
        OptionError: The budget does not pay for ``least``.
    """
    left = _after_least(costs, budget, least)
    ranks, full = [least] * len(values), set()
    seen = [0] * len(values)
    for _, _, which in _by_worth(values, costs):
        seen[which] += 1
        if seen[which] <= least or which in full:  # paid for already; or a stronger one of the matrix did not fit
            continue
        if costs[which] > left:
            full.add(which)
            continue
        ranks[which] += 1
        left -= costs[which]
    return ranks


def in_proportion(
    needs: Sequence[float], costs: Sequence[int], budget: int, limits: Sequence[int], least: int = 1
) -> list[int]:
    """Return ranks in proportion to what each matrix needs, within a budget of parameters.

    Ranks beyond those that were trained are possible here, which no spectrum of low-rank factors can speak for. One
    rank after the other goes to the matrix with the largest need/(k + ½) (Webster's method of apportionment).

    Arguments:
        needs: Of each matrix, as its effective rank.
        costs: Parameters of one more rank of each: out + in.
        budget: Parameters.
        limits: The largest rank of each: min(out, in).
        least: The rank that every matrix has at least.

    Raises:
        OptionError: The budget does not pay for ``least``.

    Example:
        >>> in_proportion([4.0, 2.0, 1.0], [10, 10, 10], 140, [64, 64, 64])
        [8, 4, 2]
    """
    left = _after_least(costs, budget, least)
    ranks = [min(least, limit) for limit in limits]
    waiting = [(-need / (rank + 0.5), which) for which, (need, rank) in enumerate(zip(needs, ranks, strict=True))]
    heapq.heapify(waiting)
    while waiting:
        worth, which = heapq.heappop(waiting)
        if worth == 0 or ranks[which] >= limits[which] or costs[which] > left:
            continue
        ranks[which] += 1
        left -= costs[which]
        heapq.heappush(waiting, (-needs[which] / (ranks[which] + 0.5), which))
    return ranks


def _after_least(costs: Sequence[int], budget: int, least: int) -> int:
    budget, least = whole_number("parameters", budget, 1), whole_number("least", least, 0)
    left = budget - least * sum(costs)
    if left < 0:
        raise OptionError(
            f"parameters is {budget}, and rank {least} for all {len(costs)} modules takes {least * sum(costs)}; give "
            "more, or a smaller least rank"
        )
    return left


def _by_worth(values: Sequence[Values], costs: Sequence[int]) -> list[tuple[float, float, int]]:
    """(−σ²/cost, σ², which matrix) of all singular values, the worthiest first, a matrix's own in order."""
    largest = max((float(v[0]) for v in values if len(v)), default=1.0)
    order = [
        (-energy / cost, energy, which)
        for which, (of, cost) in enumerate(zip(values, costs, strict=True))
        for energy in ((of / largest) ** 2).tolist()
    ]
    return sorted(order, key=lambda one: (one[0], one[2]))
