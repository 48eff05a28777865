"""Figures in narrow columns, with long names, on dark grounds, of one step, of zeros: all is seen, nothing overlaps."""

from itertools import combinations
from math import dist

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from deltaw.analysis.figures import FIGURES, Movie, distribution, growth, layers, rotation, similarity, singular_values
from deltaw.analysis.figures.drawing.layer_positions import position_colors
from deltaw.analysis.figures.drawing.words import cut, text_width

from .conftest import table

LONG = "a-method-of-somebody-with_$x_3$-in-its-name"


def laid_out(drawn) -> Figure:
    figure = drawn.figure if isinstance(drawn, Movie) else drawn
    figure.draw_without_rendering()
    return figure


def boxes(texts):
    return [text.get_window_extent().padded(-0.5) for text in texts if text.get_text().strip() and text.get_visible()]


def overlapping(found) -> int:
    return sum(one.overlaps(other) for one, other in combinations(found, 2))


def check(figure: Figure) -> None:
    """No title and no number at an x axis touches another, and no legend or title leaves the picture."""
    titles = [ax._left_title for ax in figure.axes] + [ax.title for ax in figure.axes]
    assert overlapping(boxes(titles)) == 0
    right = [ax._right_title for ax in figure.axes]
    assert overlapping(boxes(right)) == 0
    font = FontProperties(size=matplotlib.rcParams["axes.titlesize"])
    for ax in figure.axes:
        line, beside = ax.get_title("left").split("\n")[-1], ax.get_title("right")
        if line and beside:
            assert text_width(f"{line} {beside}", font) * figure.dpi / 72 < ax.get_window_extent().width
        low, high = sorted(ax.get_xlim())
        labels = [tick.label1 for tick in ax.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
        if ax.get_visible() and not any(label.get_rotation() for label in labels):
            assert overlapping(boxes(labels)) == 0, [label.get_text() for label in labels]
    for box in [*boxes(titles), *(legend.get_window_extent() for legend in figure.legends)]:
        assert figure.bbox.x0 - 1 <= box.x0
        assert box.x1 <= figure.bbox.x1 + 1


@pytest.mark.parametrize("name", FIGURES)
def test_a_column_of_a_paper_has_room_for_a_figure(name, whole) -> None:
    check(laid_out(FIGURES[name].draw(whole(name), width=3.3)))


@pytest.mark.parametrize("name", [name for name in FIGURES if name not in ("costs", "sweep", "rank")])
def test_long_names_are_broken_or_cut(name, whole) -> None:
    frame = whole(name)
    if name == "region":
        frame = {f"{LONG}-{title}": matrix for title, matrix in frame.items()}
    else:
        frame = frame.assign(method=f"{LONG}-" + frame["method"], run=f"{LONG}-" + frame["run"])
        frame = frame.assign(run_first=LONG)
    check(laid_out(FIGURES[name].draw(frame)))


def test_a_long_name_keeps_its_ends() -> None:
    assert cut(r"a-very-long-\$name", 11) == "a-ver…\\$name"
    assert cut("$x^{2}$ is a formula", 5) == "$x^{2}$ is a formula"


def far_apart(name: str) -> pd.DataFrame:
    frame = table()
    return frame.assign(**{name: frame[name].where(frame["method"] == "lora", frame[name] * 1e-3)})


def test_methods_far_apart_are_all_seen() -> None:
    scales = {ax.get_title("left")[-2:]: ax.get_yscale() for ax in layers(far_apart("delta_m")).axes}
    assert scales == {"ΔM": "log", "ΔD": "linear"}
    assert {ax.get_yscale() for ax in layers(table()).axes} == {"linear"}
    assert [ax.get_yscale() for ax in rotation(far_apart("rotation_left"), over="layers").axes] == ["log", "linear"]
    assert {ax.get_yscale() for ax in layers(far_apart("delta_m"), scale="linear").axes} == {"linear"}


def test_layers_that_hardly_grow_any_more_have_a_scale_of_their_own() -> None:
    frame = table()
    frame["growth"] = np.where(frame["step"] == 20, 1e-5 * (1 + frame["layer"]), 1.0)
    training, by_layer = growth(frame, measure="growth").axes
    assert by_layer.get_ylim()[1] < 1e-3 * training.get_ylim()[1]
    assert "per step ($10^{-5}$)" in by_layer.get_ylabel()
    frame["growth"] = 1.0 + frame["layer"]
    training, by_layer = growth(frame, measure="growth").axes
    assert by_layer.get_ylim() == training.get_ylim()
    assert by_layer.get_ylabel() == ""


def test_zeros_are_seen_or_counted() -> None:
    frame = table().assign(dissimilarity=0.0, expected=0.5)
    figure = similarity(frame, over="training")
    assert figure.axes[0].get_yscale() == "linear"
    frame.loc[frame["step"] == 20, "dissimilarity"] = 0.1
    figure = similarity(frame, over="training")
    assert figure.axes[0].get_yscale() == "log"
    assert "2 points that are not above 0 have no place on a logarithmic scale" in figure.get_supxlabel()


@pytest.mark.parametrize("stack", ["", "encoder", "decoder", "cross"])
def test_no_layer_is_lost_on_a_dark_ground(stack) -> None:
    places = [(stack, layer) for layer in range(12)]
    with matplotlib.style.context("dark_background"):
        dark = position_colors(places)
    light = position_colors(places)
    assert min(dist(to_rgb(color), (0, 0, 0)) for color in dark.values()) > 0.4
    assert min(dist(to_rgb(color), (1, 1, 1)) for color in light.values()) > 0.3


def test_no_singular_value_is_lost_on_a_dark_ground() -> None:
    with matplotlib.style.context("dark_background"):
        (line,) = singular_values(table()[table()["method"] == "lora"]).axes[0].lines
    assert dist(to_rgb(line.get_color()), (0, 0, 0)) > 0.6


def test_one_step_has_one_number_and_its_spread() -> None:
    frame = pd.concat([table().assign(quantile=q, delta_m=1.0 + q) for q in (0.05, 0.5, 0.95)])
    frame = frame[frame["step_to"] == 20]
    ax = distribution(frame).axes[0]
    assert ax.get_xticks().tolist() == [20]
    (bar,) = ax.collections
    assert bar.get_segments()[0][:, 1].tolist() == pytest.approx([1.05, 1.95])


def test_a_method_far_below_another_has_its_own_floor() -> None:
    frame = table()
    frame = frame.assign(singular_value=np.where(frame["method"] == "lora", 1.0, 1e-8))
    figure = singular_values(frame)
    assert all(ax.lines for ax in figure.axes[:2])
    low, high = figure.axes[0].get_ylim()
    assert low < 1e-8 < 1 < high
