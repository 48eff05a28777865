"""Where figures are drawn (an Axes, a SubFigure or a Figure of the caller's) and in which style: the caller's."""

from functools import partial

import matplotlib
import numpy as np
import pandas as pd
import pytest
import seaborn as sns
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from deltaw.adapters.errors import OptionError
from deltaw.analysis.figures import FIGURES, Movie, cloud, save, symmetry
from deltaw.analysis.figures.drawing.style import paper_style


@pytest.fixture(autouse=True)
def nothing_global():
    with matplotlib.rc_context(matplotlib.rcParamsDefault):
        before = dict(matplotlib.rcParams)
        yield
        pyplot = __import__("sys").modules.get("matplotlib.pyplot")
        assert pyplot is None or not pyplot.get_fignums()
        assert {key: value for key, value in matplotlib.rcParams.items() if before[key] != value} == {}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_or_subfigure_of_the_caller_is_drawn_into_and_returned(name, whole) -> None:
    drawn = partial(FIGURES[name].draw, whole(name))
    figure = Figure(figsize=(14, 7), layout="constrained")
    left, right = figure.subfigures(1, 2)
    found = drawn(ax=left)
    if isinstance(found, Movie):
        assert found.figure is figure
    else:
        assert found is left
    assert left.axes
    assert not right.axes
    assert drawn(ax=right)
    assert len(right.axes) == len(left.axes) == len(figure.axes) / 2
    figure.draw_without_rendering()
    assert tuple(figure.get_size_inches()) == (14, 7)  # the caller's
    alone = Figure(layout="constrained")
    assert drawn(ax=alone)
    assert len(alone.axes) == len(left.axes)
    with pytest.raises(OptionError, match="width is 5; it is that of a new figure"):
        drawn(ax=alone, width=5)


@pytest.mark.parametrize("name", FIGURES)
def test_one_panel_goes_into_an_axes_and_returns_it(name, whole, single) -> None:
    figure = Figure(figsize=(12, 5), layout="constrained")
    beside, ax = figure.subplots(1, 2)
    found = FIGURES[name].draw(whole(name, single=True), ax=ax, **single.get(name, {}))
    assert isinstance(found, Movie) if FIGURES[name].movie else found is ax
    assert ax.lines or ax.collections or ax.images
    assert not beside.has_data()
    assert not ax.get_title("left").startswith("(a)")  # it is the caller's panel
    figure.draw_without_rendering()
    assert len([one for one in figure.axes if one.get_label() != "<colorbar>"]) <= 3  # a twin for ΔD at most


@pytest.mark.parametrize("name", [name for name in FIGURES if name not in ("costs", "sweep", "rank", "angles")])
def test_several_panels_do_not_go_into_one_axes(name, whole) -> None:
    with pytest.raises(OptionError, match=r"ax is one Axes, and there are .* panels; .*pass a SubFigure or a Figure"):
        FIGURES[name].draw(whole(name), ax=Figure().add_subplot())


@pytest.mark.parametrize("name", FIGURES)
def test_the_callers_letters_lines_and_colours_are_used(name, whole) -> None:
    def letters(figure: Figure) -> float:
        found = [ax.xaxis.label.get_fontsize() for ax in figure.axes if not ax.get_label().startswith("<")]
        return found[0]

    def new() -> Figure:
        found = FIGURES[name].draw(whole(name))
        return found.figure if isinstance(found, Movie) else found

    plain = new()
    with matplotlib.rc_context({"axes.labelsize": 21, "axes.facecolor": "#eeeeff", "font.size": 20}):
        dressed = new()
    with paper_style():
        paper = new()
    assert (letters(plain), letters(dressed), letters(paper)) == (10, 21, 8)
    colours = {to_hex(ax.get_facecolor()) for ax in dressed.axes if not ax.get_label().startswith("<")}
    assert "#eeeeff" in colours or name == "heatmap"
    assert dressed.get_figwidth() > plain.get_figwidth() > paper.get_figwidth()  # room for the letters
    assert paper.get_figwidth() <= 7
    for figure in (plain, dressed, paper):
        figure.draw_without_rendering()


@pytest.mark.parametrize("context", ["paper", "notebook", "talk", "poster"])
def test_seaborns_contexts_and_themes_scale_a_figure_as_a_whole(context, whole) -> None:
    frame = whole("cloud")
    with matplotlib.rc_context({**sns.axes_style("darkgrid"), **sns.plotting_context(context)}):
        figure = cloud(frame)
        figure.draw_without_rendering()
        sizes = {text.get_fontsize() for text in figure.axes[0].get_xticklabels()}
        assert sizes == {matplotlib.rcParams["xtick.labelsize"]}
        line = figure.axes[0].lines[0]
        assert line.get_linewidth() == pytest.approx(0.75 * matplotlib.rcParams["lines.linewidth"])
    panel = figure.axes[0].get_window_extent()
    assert panel.width / figure.dpi * 72 > 8 * max(sizes)  # room for what stands in it
    whole_figure = figure.bbox.padded(2)
    for ax in figure.axes:
        box = ax.get_tightbbox()
        assert whole_figure.x0 <= box.x0
        assert box.x1 <= whole_figure.x1


def test_on_a_dark_ground_nothing_is_black(whole) -> None:
    with matplotlib.style.context("dark_background"):
        figure = FIGURES["layers"].draw(whole("layers"))
        lines = {line.get_label(): to_hex(line.get_color()) for line in figure.axes[0].lines}
    assert "#000000" not in lines.values()


def test_a_figure_is_written_in_the_style_it_was_drawn_in(tmp_path, whole) -> None:
    with paper_style():
        figure = symmetry(whole("symmetry"))
        inside = save(figure, tmp_path / "a.svg").read_bytes()
        again = symmetry(whole("symmetry"))
    assert save(again, tmp_path / "b.svg").read_bytes() == inside
    assert save(symmetry(whole("symmetry")), tmp_path / "c.svg").read_bytes() != inside


def test_pyplots_axes_will_do(whole) -> None:
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots()
    try:
        frame = whole("cloud", single=True)
        assert cloud(frame, kind=None, ax=ax) is ax
        assert ax.collections
        figure.canvas.draw()
    finally:
        plt.close(figure)


def test_the_data_are_the_same_wherever_they_are_drawn(whole) -> None:
    frame = whole("cloud", single=True)
    ax = Figure().add_subplot()
    cloud(frame, ax=ax)
    for one, other in zip(cloud(frame).axes[0].collections, ax.collections, strict=True):
        np.testing.assert_array_equal(one.get_offsets(), other.get_offsets())
    assert isinstance(frame, pd.DataFrame)
    assert "query matrices" in ax.get_xlabel()
