"""Correlation, line and interval per group, against exact arithmetic and known values."""

import math

import mpmath
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaw.adapters.errors import OptionError
from deltaw.analysis.measures.correlation import correlation


def frame(x, y, **more):
    return pd.DataFrame({"run": "a", "delta_d": x, "delta_m": y} | more)


def one(x, y, **options):
    return correlation(frame(x, y), by="run", **options).iloc[0]


def exact(x, y):
    """Pearson, slope and intercept in 60 digits."""
    with mpmath.workdps(60):
        x, y = ([mpmath.mpf(float(v)) for v in t] for t in (x, y))
        mean_x, mean_y = mpmath.fsum(x) / len(x), mpmath.fsum(y) / len(y)
        xy = mpmath.fsum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
        xx, yy = mpmath.fsum((a - mean_x) ** 2 for a in x), mpmath.fsum((b - mean_y) ** 2 for b in y)
        return float(xy / mpmath.sqrt(xx * yy)), float(xy / xx), float(mean_y - xy / xx * mean_x)


@pytest.mark.parametrize("scale", [1.0, 1e-10, 1e-200, 1e200])
@pytest.mark.parametrize("offset", [0.0, 1.0, 1e6])
def test_exact_whatever_the_scale(scale, offset):
    rng = np.random.default_rng(0)
    x = (rng.random(40) + offset) * scale
    y = (rng.random(40) + offset + 0.5 * rng.random(40)) * 1e-9
    pearson, slope, intercept = exact(x, y)
    found = one(x, y)
    assert found.pearson == pytest.approx(pearson, rel=1e-10)
    assert found.slope == pytest.approx(slope, rel=1e-10)
    assert found.intercept == pytest.approx(intercept, rel=1e-9)
    assert (found.n, found.dropped) == (40, 0)


@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=2, max_size=12))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_laws(points):
    x, y = np.array(points, dtype=float).T
    found = one(x, y)
    if np.ptp(x) == 0:
        assert math.isnan(found.pearson)
        assert math.isnan(found.slope)
        return
    if np.ptp(y) == 0:
        assert math.isnan(found.pearson)
        assert math.isnan(found.spearman)
        assert (found.slope, found.intercept) == (0, y[0])
        return
    pearson, slope, _ = exact(x, y)
    assert found.pearson == pytest.approx(pearson, abs=1e-12)
    assert found.slope == pytest.approx(slope, abs=1e-12)
    assert -1 <= found.pearson <= 1
    swapped = one(y, x)  # a correlation is symmetric, a line is not
    assert swapped.pearson == pytest.approx(found.pearson, abs=1e-12)
    assert found.slope * swapped.slope == pytest.approx(found.pearson**2, abs=1e-12)
    flipped = one(x, -y)
    assert flipped.spearman == pytest.approx(-found.spearman, abs=1e-12)
    assert one(x, np.exp(y / 10)).spearman == pytest.approx(found.spearman, abs=1e-12)  # only the order counts


def test_spearman_shares_the_ranks_of_ties():
    # ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: d² sums to 0.5; Pearson of the ranks is 4.5/√(4.5·5)
    assert one([1.0, 2, 2, 3], [1.0, 2, 3, 4]).spearman == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_fishers_interval():
    # Worked example: r = 0.5, n = 28, so that √(n − 3) = 5
    x = np.arange(28.0)
    noise = np.cos(x * 2.5)
    dx = x - x.mean()
    noise = noise - noise.mean() - dx * (noise @ dx) / (dx @ dx)
    y = dx / math.sqrt(dx @ dx) * 0.5 + noise / math.sqrt(noise @ noise) * math.sqrt(0.75)
    found = one(x, y)
    assert found.pearson == pytest.approx(0.5)
    assert found.ci_low == pytest.approx(math.tanh(math.atanh(0.5) - 1.959963984540054 / 5))
    assert found.ci_high == pytest.approx(math.tanh(math.atanh(0.5) + 1.959963984540054 / 5))
    wider = one(x, y, confidence=0.99)
    assert wider.ci_low < found.ci_low < found.ci_high < wider.ci_high


def test_few_or_constant_points_give_nan_and_no_warning():
    assert math.isnan(one([1.0], [2.0]).pearson)
    two, three = one([1.0, 2], [2.0, 1]), one([1.0, 2, 3], [2.0, 1, 3])
    assert (two.pearson, two.slope) == (-1, -1)
    assert math.isnan(two.ci_low)
    assert math.isnan(three.ci_high)
    constant = one([0.1] * 5, [1.0, 2, 3, 4, 5])  # their mean is not 0.1 in float64
    for name in ("pearson", "spearman", "slope", "intercept", "ci_low"):
        assert math.isnan(constant[name])
    perfect = one([1.0, 2, 3, 4], [2.0, 4, 6, 8])
    assert (perfect.pearson, perfect.ci_low, perfect.ci_high) == (1, 1, 1)


def test_rows_without_a_number_are_dropped_and_counted():
    found = one([1.0, 2, math.nan, 4, 5, 6], [1.0, 3, 3, math.inf, 4, 6])
    clean = one([1.0, 2, 5, 6], [1.0, 3, 4, 6])
    assert (found.n, found.dropped) == (4, 2)
    assert found.pearson == clean.pearson
    empty = one([math.nan], [1.0])
    assert (empty.n, empty.dropped) == (0, 1)
    assert math.isnan(empty.slope)


def test_one_row_a_group_in_order_of_appearance():
    x = [1.0, 2, 3, 1, 2, 3, 1, 2, 3]
    table = frame(x, [2 * v for v in x[:6]] + [-v for v in x[6:]], kind=list("qqqkkkvvv"), axis="row")
    found = correlation(table)
    assert list(found.columns) == [
        "run", "kind", "axis", "pearson", "spearman", "slope", "intercept", "n", "dropped", "ci_low", "ci_high"
    ]  # fmt: skip
    assert list(found["kind"]) == ["q", "k", "v"]
    assert found["slope"].tolist() == pytest.approx([2, 2, -1])
    assert pd.api.types.is_integer_dtype(found["n"])
    assert correlation(table, by=[]).iloc[0].n == 9
    assert correlation(table, by=[]).columns[0] == "pearson"
    assert len(correlation(table.iloc[:0])) == 0
    table.loc[0, "kind"] = None  # a layer of no kind is a group too
    assert len(correlation(table)) == 4
    other = correlation(table, by="axis", x="delta_m", y="delta_d").iloc[0]
    assert other.pearson == pytest.approx(correlation(table, by="axis").iloc[0].pearson)


def test_errors_name_the_column():
    table = frame([1.0], [1.0])
    with pytest.raises(OptionError, match=r"'layer' is not in the table; it has run, delta_d, delta_m"):
        correlation(table, by=["run", "layer"])
    with pytest.raises(OptionError, match="'loss' is not in"):
        correlation(table, by="run", y="loss")
    with pytest.raises(OptionError, match=r"'run' holds .*not numbers"):
        correlation(table, by="run", x="run")
    for confidence in (0, 1, 95, math.nan):
        with pytest.raises(OptionError, match="confidence is"):
            correlation(table, by="run", confidence=confidence)
