"""The layout of a measure of every matrix: its curve over training, and by layer at the end, a line per method."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deltaw.adapters.errors import OptionError
from deltaw.analysis.figures.drawing.axes import in_rows, letter, method_entries, row_legend, step_axis, value_axis
from deltaw.analysis.figures.drawing.layer_positions import (
    axis_coordinates,
    layer_axis,
    line_over_layers,
    positions_of,
    with_positions,
)
from deltaw.analysis.figures.drawing.rows import finite, last_steps, runs_note
from deltaw.analysis.figures.drawing.style import PAPER_WIDTH, Scale, inches, method_styles, paper_style
from deltaw.analysis.tables.tidy import display_name

MOST_BANDS = 5  # more methods' bands hide each other
_OVER_TRAINING = "over training"


def draw_curves(
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
    than they reach; there are no bands with more than five methods. A run of one step has no curve, and matrices
    without layer numbers have no position: that panel is left out then.

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
    ends, unnumbered = _ends(rows, needed=not several)
    notes = [*notes, *runs_note(rows), *undefined, *unnumbered]
    styles = method_styles(methods)
    panels = [title for title, there in ((_OVER_TRAINING, several), ("at the last step", ends is not None)) if there]
    banded = several and len(methods) <= MOST_BANDS
    if banded:
        notes = ["bands: one standard deviation over the matrices", *notes]
    with paper_style():
        across = PAPER_WIDTH if len(panels) == 2 else 4.5
        legend = in_rows(method_entries(methods), 5 if len(panels) == 2 else 3)
        height = 0.3 + 0.17 * len(legend) + 0.14 * len(notes) + 1.75 * len(measures)
        figure = Figure(figsize=(inches(width, across), height), layout="constrained")
        grid = figure.subplots(len(measures), len(panels), squeeze=False)
        for row, (column, label) in enumerate(measures.items()):
            for number, title in enumerate(panels):
                ax = grid[row, number]
                if title == _OVER_TRAINING:
                    _over_training(ax, rows, column, methods, styles, banded=banded)
                elif ends is not None:
                    _by_layer(ax, ends, column, methods, styles)
                ax.set_title(f"({letter(row * len(panels) + number)}) {title}", loc="left")
            drawn = _drawn(grid[row])
            for ax in grid[row]:
                value_axis(ax, drawn, label if ax is grid[row, 0] else "", scale)
                for name, level in (levels or {}).items():
                    ax.axhline(level, color="0.35", linestyle=":", linewidth=0.9, label=name, zorder=1)
        row_legend(figure, legend)
        if notes:
            figure.supxlabel("\n".join(notes))
    return figure


def _ends(rows: pd.DataFrame, *, needed: bool) -> tuple[pd.DataFrame | None, list[str]]:
    """Return the last steps of matrices that have a place in the model; none, with a note, where none has."""
    try:
        return with_positions(last_steps(rows))
    except OptionError:
        if needed:
            raise
        return None, ["no matrix has a layer number"]


def _over_training(
    ax: Axes,
    rows: pd.DataFrame,
    column: str,
    methods: Sequence[str],
    styles: Mapping[str, tuple[str, str]],
    *,
    banded: bool,
) -> None:
    """Draw a curve per method over the steps: the mean, and the band around it."""
    for method in methods:
        found = rows[rows["method"] == method]
        color, marker = styles[method]
        sns.lineplot(
            found.astype({"step": float}),
            x="step",
            y=column,
            errorbar=_deviation if banded and found.groupby("step").size().max() > 1 else None,
            err_kws={"alpha": 0.13, "linewidth": 0},
            color=color,
            marker=marker,
            markersize=3,
            markeredgecolor=color,
            markevery=max(1, found["step"].nunique() // 8),
            label=display_name(method),
            legend=False,
            ax=ax,
        )
    ax.set_ylabel("")
    step_axis(ax, [float(step) for step in rows["step"].unique()])


def _deviation(values: "pd.Series[float]") -> tuple[float, float]:
    """Return one standard deviation around the mean, no further than the values reach."""
    mean, deviation = values.mean(), values.std() if len(values) > 1 else 0.0
    return max(mean - deviation, values.min()), min(mean + deviation, values.max())


def _drawn(panels: Iterable[Axes]) -> "pd.Series[float]":
    """Return the heights of all lines and bands in the panels, which their axes have to hold."""
    lines = [np.asarray(line.get_ydata(), dtype=float) for ax in panels for line in ax.lines]
    bands = [np.asarray(path.vertices)[:, 1] for ax in panels for band in ax.collections for path in band.get_paths()]
    return pd.Series(np.concatenate([*lines, *bands])).dropna()


def _by_layer(
    ax: Axes, ends: pd.DataFrame, column: str, methods: Sequence[str], styles: Mapping[str, tuple[str, str]]
) -> None:
    """Draw a line per method over the layers."""
    coordinates = axis_coordinates(positions_of(ends))
    means = ends.groupby(["method", "stack", "layer"])[column].mean()
    there = set(ends["method"])
    for method in methods:
        if method in there:
            xs, ys = line_over_layers(means[method], coordinates)
            color, marker = styles[method]
            ax.plot(xs, ys, color=color, marker=marker, markersize=3, linewidth=0.9, label=display_name(method))
    layer_axis(ax, list(coordinates))
