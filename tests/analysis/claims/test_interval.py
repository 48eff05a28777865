"""The interval of a claim holds the true number about 95 times of 100, however few the matrices are."""

import math

import numpy as np
import pytest
from scipy import stats

from deltaw.analysis.claims import interval
from deltaw.analysis.claims.interval import FISHER, LINEAR, LOG, bootstrap, student
from deltaw.analysis.claims.rules import asymmetry, pearson

WORLDS = 300
TRUE = {"mean": 0.0, "ratio": 2.0, "asymmetry": 0.8 / 1.4, "correlation": 0.8, "difference": 0.6}


def world(name: str, matrices: int, draw: np.random.Generator):
    """A measure over matrices drawn from a population in which the number is ``TRUE``, and its scale."""
    if name == "mean":
        values = draw.normal(size=matrices)
        return lambda w: w.matrices @ values, LINEAR
    if name == "ratio":
        over, under = 2 * np.exp(0.3 * draw.normal(size=matrices)), np.exp(0.3 * draw.normal(size=matrices))
        return lambda w: w.matrices @ over / (w.matrices @ under), LOG
    if name == "asymmetry":
        row, column = (np.exp(0.1 * draw.normal(size=(matrices, 8))) for _ in range(2))
        column = 1.8 * column * np.exp(0.2 * draw.normal(size=(matrices, 1)))
        return lambda w: asymmetry(w.matrices, row, column), LINEAR
    first, second = (clouds(r, matrices, draw) for r in (0.8, 0.2))
    if name == "correlation":
        return lambda w: pearson(w, "lora", *first), FISHER
    return lambda w: pearson(w, "lora", *first) - pearson(w, "lora", *second), LINEAR


def clouds(r: float, matrices: int, draw: np.random.Generator):
    """Four steps of every matrix, (1, matrices, 4) of x and y: two thirds of the variance lie between matrices."""
    of_matrix, of_step = (
        draw.multivariate_normal([0, 0], [[1, r], [r, 1]], size=(matrices, steps)) for steps in (1, 4)
    )
    both = math.sqrt(2 / 3) * of_matrix + math.sqrt(1 / 3) * of_step
    return both[None, :, :, 0], both[None, :, :, 1]


@pytest.mark.parametrize("matrices", [3, 6, 12, 24])
@pytest.mark.parametrize("name", TRUE)
def test_the_interval_covers(name, matrices, monkeypatch):
    monkeypatch.setattr(interval, "RESAMPLES", 500)
    draw = np.random.default_rng(1)
    held = 0
    for _ in range(WORLDS):
        measure, scale = world(name, matrices, draw)
        found = bootstrap(measure, matrices, {"lora": 1}, scale)
        held += found.interval[0] <= TRUE[name] <= found.interval[1]
    assert held / WORLDS >= 0.91


def test_the_interval_covers_other_seeds_where_there_are_several_runs(monkeypatch):
    """Runs differ as much as matrices do; the true number is the population's, over both."""
    monkeypatch.setattr(interval, "RESAMPLES", 500)
    draw = np.random.default_rng(2)
    held = 0
    for _ in range(WORLDS):
        values = draw.normal(size=(3, 1)) + draw.normal(size=(1, 6)) + 0.3 * draw.normal(size=(3, 6))
        found = bootstrap(lambda w, values=values: w.both("lora") @ values.ravel(), 6, {"lora": 3})
        held += found.interval[0] <= 0 <= found.interval[1]
    assert held / WORLDS >= 0.91


def test_of_a_mean_it_is_the_t_interval():
    values = np.array([0.2, 1.0, 0.7, 2.0])
    found = bootstrap(lambda w: w.matrices @ values, 4, {})
    exact = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    assert found.interval == pytest.approx(exact, abs=0.05)


def test_a_number_without_spread_has_itself_as_interval():
    assert bootstrap(lambda w: w.matrices @ np.ones(3), 3, {}).interval == pytest.approx((1, 1))
    zero = np.array([0.0, 0.0, 1.0])  # a resample without the last is 0, of which there is no logarithm
    assert all(map(math.isfinite, bootstrap(lambda w: w.matrices @ zero, 3, {}, LOG).interval))


@pytest.mark.parametrize("freedom", [1, 2, 3, 5, 10, 11, 12, 23, 100, 10_000])
def test_students_t(freedom):
    assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-4)
    assert student(freedom + 0.7) == student(freedom)
