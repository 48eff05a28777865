"""The layout of a measure of every matrix: its curve over training, and by layer at the end, a line per method."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.transforms import Transform

from deltaw.adapters.errors import OptionError
from deltaw.analysis.figures.drawing.axes import aside, in_rows, letter, method_entries, step_axis, value_axis
from deltaw.analysis.figures.drawing.canvas import Canvas, Target
from deltaw.analysis.figures.drawing.facts import facts_of, method_name, methods_named
from deltaw.analysis.figures.drawing.layer_positions import (
    MOST_MARKED,
    axis_coordinates,
    layer_axis,
    line_over_layers,
    positions_of,
    with_positions,
)
from deltaw.analysis.figures.drawing.rows import NEAR, finite, fitting_scale, last_steps
from deltaw.analysis.figures.drawing.style import (
    PAPER_WIDTH,
    AnyScale,
    check_choice,
    mark,
    method_styles,
    pale,
    thin,
)

Over = Literal["training", "layers"]

MOST_BANDS = 2  # more methods' bands lie on each other and are mud; they have bars
MOST_BARS = 5
_TITLES = {"training": "over training", "layers": "at the last step"}


def draw_curves(
    rows: pd.DataFrame,
    methods: Sequence[str],
    measures: Mapping[str, str],
    *,
    what: str,
    scale: AnyScale | Mapping[str, AnyScale],
    width: float | None,
    over: Over | None,
    ax: Target | None,
    notes: Sequence[str] = (),
    levels: Mapping[str, float] | None = None,
    beside: tuple[str, str] | None = None,
    row_option: str = "measure",
) -> Target:
    """Draw each measure as a row of two panels: over training, and by layer at each run's last step.

    A curve over training is the mean over the matrices. With one or two methods a band around it is one standard
    deviation of them up and down, no further than they reach; with three to five methods bars say so at some steps,
    side by side; with more there are neither. A run of one step has no curve, and matrices without layer numbers have
    no position: that panel is left out then.

    Arguments:
        rows: run, method, module, layer, kind, step, and the measures.
        methods: In order.
        measures: What an axis is called, by column.
        what: What is drawn, for the caption.
        scale: That of the y axes, or of each measure's. "auto": `fitting_scale`.
        width, over, ax: As in the figures.
        notes: To be written below.
        levels: A reference line by its name, the same in all panels.
        beside: A column and its name in the legend: what each method's measures are to be compared with, dashed.
        row_option: The figure's option that chooses one of several rows.
    """
    if over is not None:
        check_choice("over", over, get_args(Over))
    rows, undefined = finite(rows, list(measures))
    several = rows.groupby(["run", "method"])["step"].nunique().max() > 1
    ends, unnumbered = _ends(rows, needed=over == "layers" or not several)
    notes = [*notes, *undefined, *unnumbered]
    styles = method_styles(methods)
    there = {"training": several, "layers": ends is not None}
    panels: list[Over] = [name for name in get_args(Over) if there[name] and over in (None, name)]
    if not panels:
        raise OptionError("over is 'training', and no run has two steps; choose 'layers', or pass more steps")
    interval = _interval(methods) if "training" in panels else ""
    across = PAPER_WIDTH if len(panels) == 2 else 4.5
    shown = {name: level for name, level in (levels or {}).items() if np.isfinite(level)}
    dotted: Any = {"color": pale(), "linestyle": ":", "linewidth": thin()}
    entries = [*method_entries(methods), *((Line2D([], [], **dotted), name) for name in shown)]
    if beside is not None:
        entries.append((Line2D([], [], color=pale(), linestyle="--", linewidth=thin()), beside[1]))
    legend = in_rows(entries, 5 if len(panels) == 2 else 3)
    height = 0.15 + 1.75 * len(measures)
    choose = "choose one with over='training' or 'layers'" + (f" and {row_option}=" if len(measures) > 1 else "")
    canvas = Canvas(ax, width, (across, height), panels=len(measures) * len(panels), choose=choose)
    grid = (
        np.array([[canvas.ax]])
        if canvas.ax is not None
        else canvas.figure.subplots(len(measures), len(panels), squeeze=False)
    )
    hidden = 0
    for row, (column, label) in enumerate(measures.items()):
        for number, name in enumerate(panels):
            panel = grid[row, number]
            if name == "training":
                _over_training(panel, rows, column, methods, styles)
            elif ends is not None:
                _by_layer(panel, ends, column, methods, styles)
            if beside is not None:
                _beside(panel, rows if name == "training" else ends, beside[0], styles)
            canvas.title(panel, _TITLES[name], letter(row * len(panels) + number))
        for panel in grid[row]:
            for reference, level in shown.items():
                panel.axhline(level, label=reference, zorder=1, **dotted)
        wanted = scale if isinstance(scale, str) else scale[column]
        fitting = fitting_scale(rows[column], rows["method"]) if wanted == "auto" else wanted
        if fitting == "log" and not (rows[column] > 0).any():
            fitting = "linear"  # what is 0 throughout is seen there
        if fitting == "log":
            hidden += int((rows.groupby(["method", "step"])[column].mean() <= 0).sum())
        whole = _drawn(grid[row])
        for panel in grid[row]:
            # Of one scale, unless that makes a flat line of a panel.
            own = _drawn([panel])
            alone = fitting == "linear" and whole.abs().max() > NEAR * own.abs().max() > 0
            value_axis(panel, own if alone else whole, label if alone or panel is grid[row, 0] else "", fitting)
    if hidden:
        notes.append(f"{hidden:,} points that are not above 0 have no place on a logarithmic scale")
    canvas.legend(legend)
    facts = facts_of(
        f"{what} for {methods_named(rows)}", rows, "step", interval=interval, notes=notes, at_end=panels == ["layers"]
    )
    return canvas.finish(facts)


def _beside(ax: Axes, rows: pd.DataFrame | None, column: str, styles: Mapping[str, tuple[str, str]]) -> None:
    """Draw a column's mean over the matrices, over the steps or over the layers, dashed in each method's colour."""
    if rows is None:
        return
    layered = "stack" in rows
    coordinates = axis_coordinates(positions_of(rows)) if layered else {}
    for method, (color, _) in styles.items():
        found = rows[(rows["method"] == method) & rows[column].notna()]
        if found.empty:
            continue
        if layered:
            xs, ys = line_over_layers(found.groupby(["stack", "layer"])[column].mean(), coordinates)
        else:
            means = found.groupby(found["step"].astype(float))[column].mean()
            xs, ys = means.index.tolist(), means.astype(float).tolist()
        ax.plot(xs, ys, color=color, linestyle="--", linewidth=thin(), zorder=1.2)


def _interval(methods: Sequence[str]) -> str:
    if len(methods) > MOST_BARS:
        return ""
    return f"{'bands' if len(methods) <= MOST_BANDS else 'bars'}: one standard deviation over the matrices"


def _ends(rows: pd.DataFrame, *, needed: bool) -> tuple[pd.DataFrame | None, list[str]]:
    """Return the last steps of matrices that have a place in the model; none, with a note, where none has."""
    try:
        return with_positions(last_steps(rows))
    except OptionError:
        if needed:
            raise
        return None, ["no matrix has a layer number"]


def _over_training(
    ax: Axes, rows: pd.DataFrame, column: str, methods: Sequence[str], styles: Mapping[str, tuple[str, str]]
) -> None:
    """Draw a curve per method over the steps: the mean, and the band or the bars around it."""
    banded = len(methods) <= MOST_BANDS
    for number, method in enumerate(methods):
        found = rows[rows["method"] == method]
        color, marker = styles[method]
        several = found.groupby("step").size().max() > 1
        # Each method's markers, and the bars at them, stand at steps of their own.
        every = max(1, found["step"].nunique() // 8)
        first = number * every // len(methods)
        sns.lineplot(
            found.astype({"step": float}),
            x="step",
            y=column,
            errorbar=_deviation if banded and several else None,
            err_kws={"alpha": 0.15, "linewidth": 0},
            color=color,
            marker=marker,
            markersize=mark(),
            markeredgecolor=color,
            markevery=(first, every),
            label=method_name(method),
            legend=False,
            ax=ax,
        )
        if several and not banded and len(methods) <= MOST_BARS:
            steps = found["step"].astype(float)
            room = float(steps.max() - steps.min()) / max(1, steps.nunique() - 1)
            beside = aside(
                ax, number, len(methods), 0.0 if every >= len(methods) else room * steps.nunique(), room=room
            )
            _bars(ax, found, column, color, (first, every), beside)
    ax.set_ylabel("")
    step_axis(ax, [float(step) for step in rows["step"].unique()])


def _bars(ax: Axes, found: pd.DataFrame, column: str, color: str, marked: tuple[int, int], beside: Transform) -> None:
    """Draw the deviation as a bar at every other marker."""
    first, every = marked
    values = dict(iter(found[column].groupby(found["step"].astype(float))))
    steps = list(values)[first :: 2 * every]
    low, high = zip(*(_deviation(values[step]) for step in steps), strict=True)
    ax.vlines(steps, low, high, color=color, linewidth=thin(), transform=beside, zorder=1.5)


def _deviation(values: "pd.Series[float]") -> tuple[float, float]:
    """Return one standard deviation around the mean, no further than the values reach."""
    mean, deviation = values.mean(), values.std() if len(values) > 1 else 0.0
    return max(mean - deviation, values.min()), min(mean + deviation, values.max())


def _drawn(panels: Iterable[Axes]) -> "pd.Series[float]":
    """Return the heights of all lines, bands and bars in the panels, which their axes have to hold."""
    lines = [np.asarray(line.get_ydata(), dtype=float) for ax in panels for line in ax.lines]
    bands = [np.asarray(path.vertices)[:, 1] for ax in panels for band in ax.collections for path in band.get_paths()]
    return pd.Series(np.concatenate([*lines, *bands])).dropna()


def _by_layer(
    ax: Axes, ends: pd.DataFrame, column: str, methods: Sequence[str], styles: Mapping[str, tuple[str, str]]
) -> None:
    """Draw a line per method over the layers, their markers side by side."""
    coordinates = axis_coordinates(positions_of(ends))
    means = ends.groupby(["method", "stack", "layer"])[column].mean()
    there = [method for method in methods if method in set(ends["method"])]
    for number, method in enumerate(there):
        xs, ys = line_over_layers(means[method], coordinates)
        color, marker = styles[method]
        ax.plot(
            xs,
            ys,
            color=color,
            marker=marker,
            markersize=mark() if len(coordinates) <= MOST_MARKED else 0.0,
            linewidth=thin(),
            label=method_name(method),
            transform=aside(ax, number, len(there), max(coordinates.values()) + 1),
        )
    layer_axis(ax, list(coordinates))
