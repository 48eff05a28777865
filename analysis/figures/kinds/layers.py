"""DoRA's Figures 3 and 8: how far each layer moved, method beside method."""

from collections.abc import Sequence
from typing import get_args

import numpy as np
import pandas as pd

from deltaw.adapters.errors import OptionError
from deltaw.analysis.figures.drawing.axes import aside, in_rows, letter, method_entries, value_axis
from deltaw.analysis.figures.drawing.canvas import Canvas, Target
from deltaw.analysis.figures.drawing.facts import facts_of, method_name, methods_named, plain
from deltaw.analysis.figures.drawing.layer_positions import (
    MOST_MARKED,
    axis_coordinates,
    layer_axis,
    line_over_layers,
    positions_of,
)
from deltaw.analysis.figures.drawing.quantities import Measure, quantities
from deltaw.analysis.figures.drawing.rows import fitting_scale, last_steps
from deltaw.analysis.figures.drawing.style import (
    PAPER_WIDTH,
    AnyScale,
    check_choice,
    ground,
    mark,
    method_styles,
    thin,
)
from deltaw.analysis.figures.kinds.cloud import COLUMNS, SOURCE, clean, start_note
from deltaw.analysis.measures.change import Axis
from deltaw.analysis.tables.tidy import listed, of_methods, require_columns, require_one_start

KINDS = ("query", "key", "value")


def layers(
    frame: pd.DataFrame,
    *,
    kinds: Sequence[str] | None = None,
    axis: Axis = "column",
    methods: Sequence[str] | None = None,
    scale: AnyScale = "auto",
    measure: Measure | None = None,
    width: float | None = None,
    ax: Target | None = None,
) -> Target:
    """Draw ΔM (left) and ΔD (right) by layer at the last step, a row of panels per kind, a line per method.

    The panels of a column share their scale: from 0, or a logarithmic one where a method moves more than five times as
    far as another, which would be a flat line. A point is the mean over a layer's matrices of the kind and over the
    runs of a method; the methods' points stand side by side, so that none hides another. An encoder, a decoder and its
    attention to the encoder stand one after the other.

    Arguments:
        frame: The changes from the base of one or several runs, concatenated, columns as in `Trajectory.changes`.
        kinds: The kinds of matrix; ``None`` for query, key and value as far as they were recorded.
        axis: "column" for the paper's equations 3 and 4, "row" for what its authors' code normalises.
        methods: The methods to draw, in this order; ``None`` for all, in the order of ``METHODS``.
        scale: "linear", from 0, as in the paper; "log"; or "auto", which is linear where all methods lie within a
            factor of five, and else logarithmic, so that none is a flat line at 0.
        measure: "delta_m" or "delta_d" for one of the two; ``None`` for both.
        width: Of a new figure, in inches; ``None`` for 7, a paper's width, or more with larger letters.
        ax: Where to draw: an Axes for one kind and one measure, a SubFigure or a Figure; ``None`` for a new Figure.

    Returns:
        What was drawn on, as seaborn does: ``ax``, or the new Figure. Nothing is shown or written.

    Raises:
        OptionError: There is no such kind, method or choice, no matrix has a layer number, or the table is of another
            form.

    Source:
        DoRA, section 4.1, Figures 3 and 8.

    Example:
        >>> columns = ["run", "method", "module", "layer", "kind", "axis", "step_from", "step_to", "delta_m", "delta_d"]
        >>> rows = [
        ...     ("a", "lora", f"{layer}.value", layer, "value", "column", pd.NA, 10, 0.1 * layer, 0.01 * layer)
        ...     for layer in range(3)
        ... ]
        >>> [ax.get_title("left") for ax in layers(pd.DataFrame(rows, columns=columns)).axes]
        ['(a) value, ΔM', '(b) value, ΔD']
    """
    check_choice("axis", axis, get_args(Axis))
    check_choice("scale", scale, get_args(AnyScale))
    symbols = {q.column: q.symbol for q in quantities(measure)}
    require_columns(frame, COLUMNS, SOURCE)
    require_one_start(frame, SOURCE)
    chosen = of_methods(frame, methods)
    rows = frame[frame["method"].isin(chosen)]
    shown = _kinds(rows, kinds)
    rows, notes = clean(last_steps(rows[rows["kind"].isin(shown)], "step_to"), axis)
    coordinates = axis_coordinates(positions_of(rows))
    styles = method_styles(chosen)
    means = rows.groupby(["kind", "method", "stack", "layer"])[list(symbols)].mean()
    found = {(kind, method) for kind, method, *_ in means.index}
    legend = in_rows(method_entries(chosen), 5)
    size = (PAPER_WIDTH, 0.2 + 1.5 * len(shown))
    choose = "choose one with kinds= and measure="
    canvas = Canvas(ax, width, size, panels=len(shown) * len(symbols), choose=choose)
    panels = (
        np.array([[canvas.ax]])
        if canvas.ax is not None
        else canvas.figure.subplots(len(shown), len(symbols), squeeze=False, sharex=True)
    )
    marker_size = mark(1.1) if len(coordinates) <= MOST_MARKED else 0.0
    for column, (name, symbol) in enumerate(symbols.items()):
        of_methods_ = means.index.get_level_values("method").to_series()
        fitting = fitting_scale(means[name], of_methods_) if scale == "auto" else scale
        for row, kind in enumerate(shown):
            panel = panels[row, column]
            for number, method in enumerate(chosen):
                if (kind, method) not in found:
                    continue
                xs, ys = line_over_layers(means[name].xs((kind, method)), coordinates)
                color, marker = styles[method]
                panel.plot(
                    xs,
                    ys,
                    color=color,
                    marker=marker,
                    markersize=marker_size,
                    markeredgecolor=ground(),
                    markeredgewidth=thin(0.25),
                    linewidth=thin(),
                    label=method_name(method),
                    transform=aside(panel, number, len(chosen), max(coordinates.values()) + 1),
                )
            value_axis(panel, means[name], symbol, fitting)
            canvas.title(panel, f"{plain(kind)}, {symbol}", letter(len(symbols) * row + column))
            lowest = row == len(shown) - 1
            layer_axis(panel, list(coordinates), label="layer" if lowest else "", names=lowest)
            panel.tick_params(labelbottom=lowest)
    canvas.legend(legend)
    what = f"{' and '.join(symbols.values())} by layer for {methods_named(rows)}"
    return canvas.finish(facts_of(what, rows, "step_to", pairs=start_note(rows, axis), notes=notes, at_end=True))


def _kinds(rows: pd.DataFrame, kinds: Sequence[str] | None) -> list[str]:
    """Return the kinds to draw: the given ones, or the paper's as far as they are there, or all."""
    there = sorted({str(kind) for kind in rows["kind"].dropna()})
    if kinds is None:
        return [kind for kind in KINDS if kind in there] or there
    chosen = listed("kinds", kinds)
    for kind in chosen:
        if kind not in there:
            raise OptionError(f"there is no matrix of kind {kind!r}; there are {', '.join(there)}")
    if not chosen:
        raise OptionError(f"kinds is empty; there are {', '.join(there)}")
    return chosen
