"""Rank rules against plain loops, and budgets against every possible choice."""

import itertools
import math

import numpy as np
import pytest

from deltaw.adapters import OptionError
from deltaw.analysis.measures.ranks import RULES, fewest, in_proportion, rank_by, within

RANDOM = np.random.default_rng(0)
VALUES = [np.sort(RANDOM.exponential(size=n) ** 2)[::-1].copy() for n in (1, 2, 5, 9, 30)]


def slow(values, rule, at):
    """The definitions, one k after the other."""
    squares = [float(v) ** 2 for v in values]
    share = {
        "energy": lambda k: math.fsum(squares[:k]) >= at * math.fsum(squares),
        "sv_fro": lambda k: math.sqrt(math.fsum(squares[:k])) >= at * math.sqrt(math.fsum(squares)),
        "sv_cumulative": lambda k: math.fsum(values[:k]) >= at * math.fsum(values),
    }
    if rule in share:
        return next(k for k in range(1, len(values) + 1) if share[rule](k))
    if rule == "sv_ratio":
        return max(1, sum(v > values[0] / at for v in values))
    return {"noise": len(values), "stable": math.ceil(math.fsum(squares) / squares[0])}[rule]


@pytest.mark.parametrize("values", VALUES, ids=len)
@pytest.mark.parametrize(
    ("rule", "at"),
    [
        ("energy", 0.5),
        ("energy", 0.99),
        ("sv_fro", 0.9),
        ("sv_cumulative", 0.8),
        ("sv_ratio", 3.0),
        ("noise", None),
        ("stable", None),
    ],
)
def test_a_rule_is_its_definition(values, rule, at):
    assert rank_by(values, rule, at) == slow(values, rule, at)


def test_whole_ranks_stay_whole():
    """Four equal singular values have stable and effective rank 4, whatever rounding adds to the sums."""
    for count in (1, 3, 4, 7, 100):
        assert rank_by(np.full(count, 0.1), "stable") == rank_by(np.full(count, 0.1), "effective") == count


def test_sv_fro_is_energy_with_the_square():
    for values in VALUES:
        for at in (0.3, 0.7, 0.95):
            assert rank_by(values, "sv_fro", at) == rank_by(values, "energy", at**2)


def test_all_of_the_energy_and_none():
    assert rank_by(np.array([1.0, 1e-3]), "energy", 1.0) == 2
    assert all(rank_by(np.zeros(0), rule) == 0 for rule in RULES)
    assert rank_by(np.array([1e200, 1e199]), "energy", 0.999) == 2  # whose squares overflow


@pytest.mark.parametrize(
    ("rule", "at"),
    [("energy", 0.0), ("energy", 1.1), ("sv_ratio", 0.5), ("stable", 2.0), ("energy", True), ("mine", 1)],
)
def test_a_wrong_rule_says_so(rule, at):
    with pytest.raises(OptionError, match=r"rule is|at is"):
        rank_by(VALUES[2], rule, at)


def held(values, ranks):
    return math.fsum(float(v) ** 2 for of, k in zip(values, ranks, strict=True) for v in of[:k])


def choices(values):
    return itertools.product(*(range(len(of) + 1) for of in values))


def test_the_most_energy_within_a_budget():
    """Where all cost the same, no choice within the budget holds more."""
    values, costs = [v[:4] for v in VALUES[1:4]], [7, 7, 7]
    for budget in (21, 40, 55, 70):
        found = within(values, costs, budget)
        allowed = [ranks for ranks in choices(values) if min(ranks) >= 1 and 7 * sum(ranks) <= budget]
        assert 7 * sum(found) <= budget
        assert held(values, found) == pytest.approx(max(held(values, ranks) for ranks in allowed))


def test_the_fewest_parameters_for_a_share():
    """No choice of as many parameters holds more, whatever the costs; nor do fewer where these are equal."""
    values = [v[:4] for v in VALUES[1:4]]
    whole = held(values, [4, 4, 4])
    for costs in ([7, 7, 7], [3, 10, 5]):
        for share in (0.5, 0.9, 0.99, 1.0):
            found = fewest(values, costs, share)
            spent = sum(np.multiply(costs, found))
            assert held(values, found) >= share * whole * (1 - 1e-12)
            same = [ranks for ranks in choices(values) if sum(np.multiply(costs, ranks)) <= spent]
            assert held(values, found) >= max(held(values, ranks) for ranks in same) * (1 - 1e-12)
            if len(set(costs)) == 1:
                fewer = [ranks for ranks in choices(values) if sum(np.multiply(costs, ranks)) < spent]
                assert all(held(values, ranks) < share * whole for ranks in fewer)


def test_a_matrix_that_no_longer_fits_leaves_the_rest_to_others():
    values = [np.array([10.0, 9.0]), np.array([1.0, 0.5])]
    assert within(values, [100, 1], 103) == [1, 2]


def test_ranks_in_proportion():
    assert in_proportion([4.0, 2.0, 1.0], [10, 10, 10], 140, [64, 64, 64]) == [8, 4, 2]
    found = in_proportion([5.0, 5.0, 5.0], [10, 10, 10], 1000, [2, 64, 64])
    assert found[0] == 2  # its limit
    assert 970 <= 10 * sum(found) <= 1000
    assert in_proportion([0.0, 1.0], [1, 1], 10, [9, 9]) == [1, 9]  # what needs nothing gets the least alone


def test_a_budget_that_does_not_pay():
    with pytest.raises(OptionError, match="rank 1 for all 2 modules takes 20"):
        within(VALUES[1:3], [10, 10], 19)
