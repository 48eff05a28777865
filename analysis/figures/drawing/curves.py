"""The layout of a measure of every matrix: its course over training, and by layer at the end, a line a method."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from deltaw.adapters.errors import OptionError
from deltaw.analysis.figures.drawing.axes import in_rows, letter, row_legend, step_axis, value_axis
from deltaw.analysis.figures.drawing.layer_positions import (
    line_by_place,
    place_axis,
    place_positions,
    places_of,
    with_places,
)
from deltaw.analysis.figures.drawing.rows import finite, last_steps, runs_note
from deltaw.analysis.figures.drawing.style import PAPER_WIDTH, Scale, method_styles, paper_style
from deltaw.analysis.tables.tidy import display_name

MOST_BANDS = 5  # more methods' bands hide each other


def draw_courses(
    rows: pd.DataFrame,
    methods: Sequence[str],
    measures: Mapping[str, str],
    *,
    scale: Scale,
    width: float | None,
    notes: Sequence[str] = (),
    levels: Mapping[str, float] | None = None,
) -> Figure:
    """Draw each measure as a row of two panels: over training, and by layer at each run's last step.

    A curve over training is the mean over the matrices, its band one standard deviation of them up and down, no further
    than they reach; there are no bands with more than five methods. A run of one step has no course, and matrices
    without layer numbers have no places: that panel is left out then.

    Arguments:
        rows: run, method, module, layer, step, and the measures.
        methods: In order.
        measures: What an axis is called, by column.
        scale, width: As in the figures.
        notes: To be written below.
        levels: A reference line by its name, the same in all panels.
    """
    rows, undefined = finite(rows, list(measures))
    several = rows.groupby(["run", "method"])["step"].nunique().max() > 1
    ends, placeless = _ends(rows, needed=not several)
    notes = [*notes, *runs_note(rows), *undefined, *placeless]
    styles = method_styles(methods)
    panels = [name for name, there in (("course", several), ("layers", ends is not None)) if there]
    banded = several and len(methods) <= MOST_BANDS
    if banded:
        notes = ["bands: one standard deviation over the matrices", *notes]
    with paper_style():
        entries: list[tuple[Artist, str]] = [
            (Line2D([], [], color=styles[name][0], marker=styles[name][1]), display_name(name)) for name in methods
        ]
        across = PAPER_WIDTH if len(panels) == 2 else 4.5
        legend = in_rows(entries, 5 if len(panels) == 2 else 3)
        height = 0.3 + 0.17 * len(legend) + 0.14 * len(notes) + 1.75 * len(measures)
        figure = Figure(figsize=(width or across, height), layout="constrained")
        grid = figure.subplots(len(measures), len(panels), squeeze=False)
        for row, (column, label) in enumerate(measures.items()):
            shown = []
            for place, panel in enumerate(panels):
                ax = grid[row, place]
                if panel == "course":
                    shown.append(_course(ax, rows, column, methods, styles, banded=banded))
                    title = "over training"
                elif ends is not None:
                    shown.append(_by_layer(ax, ends, column, methods, styles))
                    title = "at the last step"
                ax.set_title(f"({letter(row * len(panels) + place)}) {title}", loc="left")
            for ax in grid[row]:
                value_axis(ax, pd.concat(shown), label if ax is grid[row, 0] else "", scale)
                for name, level in (levels or {}).items():
                    ax.axhline(level, color="0.35", linestyle=":", linewidth=0.9, label=name, zorder=1)
        row_legend(figure, legend)
        if notes:
            figure.supxlabel("\n".join(notes))
    return figure


def _ends(rows: pd.DataFrame, *, needed: bool) -> tuple[pd.DataFrame | None, list[str]]:
    """Return the last steps of matrices that have a place in the model; none, with a note, where none has."""
    try:
        return with_places(last_steps(rows))
    except OptionError:
        if needed:
            raise
        return None, ["no matrix has a layer number"]


def _course(
    ax: Axes,
    rows: pd.DataFrame,
    column: str,
    methods: Sequence[str],
    styles: Mapping[str, tuple[str, str]],
    *,
    banded: bool,
) -> "pd.Series[float]":
    """Draw a curve a method over the steps; return what an axis has to hold."""
    drawn: list[pd.Series[float]] = []
    for method in methods:
        found = rows[rows["method"] == method].groupby("step")[column].agg(["mean", "std", "min", "max"])
        if found.empty:
            continue
        color, marker = styles[method]
        every = max(1, len(found) // 8)
        name = display_name(method)
        ax.plot(found.index, found["mean"], color=color, marker=marker, markersize=3, markevery=every, label=name)
        drawn.append(found["mean"])
        if banded and found["std"].notna().any():
            spread = found["std"].fillna(0.0)
            low = (found["mean"] - spread).clip(lower=found["min"])
            high = (found["mean"] + spread).clip(upper=found["max"])
            ax.fill_between(found.index.to_numpy(dtype=float), low, high, color=color, alpha=0.13, linewidth=0)
            drawn += [low, high]
    step_axis(ax, [float(step) for step in rows["step"].unique()])
    held: pd.Series[float] = pd.concat(drawn)
    return held


def _by_layer(
    ax: Axes, ends: pd.DataFrame, column: str, methods: Sequence[str], styles: Mapping[str, tuple[str, str]]
) -> "pd.Series[float]":
    """Draw a line a method over the layers; return what an axis has to hold."""
    positions = place_positions(places_of(ends))
    means = ends.groupby(["method", "stack", "layer"])[column].mean()
    there = set(ends["method"])
    for method in methods:
        if method in there:
            xs, ys = line_by_place(means[method], positions)
            color, marker = styles[method]
            ax.plot(xs, ys, color=color, marker=marker, markersize=3, linewidth=0.9, label=display_name(method))
    place_axis(ax, list(positions))
    return means
