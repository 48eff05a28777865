"""The figure of growth: what a row shows, and rates below zero inside their axes."""

import numpy as np
import pandas as pd
import pytest

from deltaw.adapters.errors import OptionError
from deltaw.analysis.figures import growth
from deltaw.analysis.figures.kinds.growth import COLUMNS


@pytest.fixture
def frame(whole):
    rows = whole("growth")
    return rows[rows["axis"] == "row"][list(COLUMNS)].assign(entropy_rate=lambda rows: np.where(rows.layer == 1, -2, 1))


def test_a_row_shows_the_mean_over_matrices_and_a_line_by_layer(frame):
    training, layers = growth(frame, measure="growth").axes
    assert training.get_ylabel().startswith("mean growth of σ\nper step")
    np.testing.assert_allclose(training.lines[0].get_ydata(), [0.01, 0.02])
    np.testing.assert_allclose(layers.lines[0].get_ydata(), [0.02] * 3)


def test_rates_below_zero_lie_inside_their_axes(frame):
    for ax in growth(frame, measure="entropy_rate").axes:
        low, high = ax.get_ylim()
        assert low < -2
        assert high > 1
    low, _ = growth(frame, measure="growth").axes[0].get_ylim()
    assert low == 0


def test_a_first_step_without_rates_is_left_out(frame):
    without = pd.concat([frame, frame[frame["step"] == 20].assign(step=30)], ignore_index=True)
    without.loc[without["step"] == 10, ["entropy_rate", "growth", "unevenness"]] = np.nan
    assert list(growth(without, measure="growth", over="training").axes[0].lines[0].get_xdata()) == [20, 30]
    assert list(growth(without, measure="entropy", over="training").axes[0].lines[0].get_xdata()) == [10, 20, 30]


def test_one_checkpoint_has_an_entropy_and_no_rate(frame):
    one = frame[frame["step"] == frame["step"].max()].assign(entropy_rate=float("nan"), growth=None, unevenness=None)
    figure = growth(one)
    assert [ax.get_ylabel() for ax in figure.axes] == ["entropy of σ"]
    with pytest.raises(OptionError, match="no row has a finite growth"):
        growth(one, measure="growth")
