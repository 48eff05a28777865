"""DoRA's Figures 3 and 8: how far each layer moved, method beside method."""

from collections.abc import Sequence
from typing import get_args

import pandas as pd
from matplotlib.figure import Figure

from deltaw.adapters.errors import OptionError
from deltaw.analysis.figures.drawing.axes import in_rows, letter, method_entries, row_legend, value_axis
from deltaw.analysis.figures.drawing.layer_positions import axis_coordinates, layer_axis, line_over_layers, positions_of
from deltaw.analysis.figures.drawing.rows import last_steps, runs_note
from deltaw.analysis.figures.drawing.style import PAPER_WIDTH, Scale, check_choice, inches, method_styles, paper_style
from deltaw.analysis.figures.kinds.cloud import COLUMNS, SOURCE, clean, start_note
from deltaw.analysis.measures.change import Axis
from deltaw.analysis.tables.tidy import display_name, listed, of_methods, require_columns, require_one_start

KINDS = ("query", "key", "value")
_SYMBOLS = {"delta_m": "ΔM", "delta_d": "ΔD"}


def layers(
    frame: pd.DataFrame,
    *,
    kinds: Sequence[str] | None = None,
    axis: Axis = "column",
    methods: Sequence[str] | None = None,
    scale: Scale = "linear",
    width: float | None = None,
) -> Figure:
    """Draw ΔM (left) and ΔD (right) by layer at the last step, a row of panels per kind, a line per method.

    The panels of a column share their scale. A point is the mean over a layer's matrices of the kind and over the runs
    of a method. An encoder, a decoder and its attention to the encoder stand one after the other.

    Arguments:
        frame: The changes from the base of one or several runs, concatenated, columns as in `Trajectory.changes`.
        kinds: The kinds of matrix; ``None`` for query, key and value as far as they were recorded.
        axis: "column" for the paper's equations 3 and 4, "row" for what its authors' code normalises.
        methods: The methods to draw, in this order; ``None`` for all, in the order of ``METHODS``.
        scale: "linear", from 0, as in the paper, or "log", where methods are far apart.
        width: In inches; ``None`` for 7, a paper's width.

    Returns:
        The figure; nothing is shown or written.

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
    check_choice("scale", scale, get_args(Scale))
    require_columns(frame, COLUMNS, SOURCE)
    require_one_start(frame, SOURCE)
    chosen = of_methods(frame, methods)
    rows = frame[frame["method"].isin(chosen)]
    shown = _kinds(rows, kinds)
    rows, notes = clean(last_steps(rows[rows["kind"].isin(shown)], "step_to"), axis)
    coordinates = axis_coordinates(positions_of(rows))
    styles = method_styles(chosen)
    means = rows.groupby(["kind", "method", "stack", "layer"])[list(_SYMBOLS)].mean()
    found = {(kind, method) for kind, method, *_ in means.index}
    with paper_style():
        legend = in_rows(method_entries(chosen), 5)
        size = (inches(width, PAPER_WIDTH), 0.45 + 0.17 * len(legend) + 0.14 * len(notes) + 1.5 * len(shown))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(len(shown), 2, squeeze=False, sharex=True)
        for column, (name, symbol) in enumerate(_SYMBOLS.items()):
            for row, kind in enumerate(shown):
                ax = panels[row, column]
                for method in chosen:
                    if (kind, method) not in found:
                        continue
                    xs, ys = line_over_layers(means[name].xs((kind, method)), coordinates)
                    color, marker = styles[method]
                    ax.plot(xs, ys, color=color, marker=marker, markersize=3, linewidth=0.9, label=display_name(method))
                value_axis(ax, means[name], symbol, scale)
                ax.set_title(f"({letter(2 * row + column)}) {kind}, {symbol}", loc="left")
                lowest = row == len(shown) - 1
                layer_axis(ax, list(coordinates), label="layer" if lowest else "", names=lowest)
                ax.tick_params(labelbottom=lowest)
        row_legend(figure, legend)
        figure.supxlabel("\n".join(["; ".join([start_note(rows, axis), *runs_note(rows)]), *notes]))
    return figure


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
