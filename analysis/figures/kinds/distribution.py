"""How ΔM and ΔD are spread over the rows or columns of a matrix, over training."""

from collections.abc import Sequence
from typing import get_args

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from deltaw.adapters.errors import OptionError
from deltaw.analysis.figures.drawing.axes import columns_size, in_rows, letter, log_axis, method_columns, step_axis
from deltaw.analysis.figures.drawing.canvas import Canvas, Target, most_across
from deltaw.analysis.figures.drawing.facts import facts_of, method_name, methods_named
from deltaw.analysis.figures.drawing.quantities import Measure, quantities
from deltaw.analysis.figures.drawing.rows import finite
from deltaw.analysis.figures.drawing.style import check_choice, ink, thin
from deltaw.analysis.measures.change import Axis
from deltaw.analysis.tables.tidy import require_columns, select

SOURCE = "vector_changes"
COLUMNS = ("run", "method", "module", "layer", "kind", "axis", "step_to", "quantile", "delta_m", "delta_d")

CHOOSE = "choose one with methods= and measure="
_DECADES = 5  # what is smaller than this below the largest is left out


def distribution(
    frame: pd.DataFrame,
    *,
    kind: str | None = "query",
    axis: Axis = "column",
    methods: Sequence[str] | None = None,
    measure: Measure | None = None,
    width: float | None = None,
    ax: Target | None = None,
) -> Target:
    """Draw the spread of ΔM (above) and ΔD (below) over the vectors of a matrix against the step, a column per method.

    The line is the median, a band goes from one quantile to that of the other side, as 5 % to 95 %. Each quantile is
    the mean over the matrices and over the runs of a method. The scales are logarithmic and shared by the methods; a
    band that begins at the lower edge begins below it, at vectors that hardly moved or not at all.

    Arguments:
        frame: What ``vector_changes`` returns, with quantiles, 0.5 among them.
        kind: The kind of matrix, "query"; ``None`` for all together.
        axis: "column" for one vector per input feature, "row" for one per output feature.
        methods: The methods to draw, in this order; ``None`` for all, in the order of ``METHODS``.
        measure: "delta_m" or "delta_d" for one of the two; ``None`` for both.
        width: Of a new figure, in inches; ``None`` for up to 7, or more with larger letters. More than five methods go
            into further rows.
        ax: Where to draw: an Axes for one method and one measure, a SubFigure or a Figure; ``None`` for a new Figure.

    Returns:
        What was drawn on, as seaborn does: ``ax``, or the new Figure. Nothing is shown or written.

    Raises:
        OptionError: There is no such kind, method or axis, no median, nothing has moved, or the table is of another
            form.

    Example:
        >>> rows = [
        ...     ("a", "lora", "0.query", 0, "query", "column", step, q, step * (1 + q), 0.1 * step * (1 + q))
        ...     for step in (10, 20)
        ...     for q in (0.25, 0.5, 0.75)
        ... ]
        >>> line = distribution(pd.DataFrame(rows, columns=list(COLUMNS))).axes[0].lines[0]
        >>> [float(y) for y in line.get_ydata()]
        [15.0, 30.0]
    """
    rows, chosen, notes = vector_rows(frame, kind, axis, methods)
    means = rows.groupby(["method", "quantile", "step_to"])[["delta_m", "delta_d"]].mean()
    there = sorted(float(value) for value in rows["quantile"].unique())
    if 0.5 not in there:
        raise OptionError(f"the table has no quantile 0.5, only {', '.join(f'{value:g}' for value in there)}")
    bands = [(low, high) for low, high in zip(there, reversed(there), strict=True) if low < high]
    shades = {band: 0.12 + 0.25 * number / max(len(bands) - 1, 1) for number, band in enumerate(bands)}
    legend: list[tuple[Artist, str]] = [(Line2D([], [], color=ink()), "median")]
    for (low, high), alpha in reversed(shades.items()):
        name = "all" if low == 0 else f"{100 * low:g} to {100 * high:g} %"
        legend.append((Patch(color=ink(), alpha=alpha, linewidth=0), name))
    drawn = quantities(measure)
    panels = len(chosen) * len(drawn)
    most = most_across(5, ax, width, 1.05)
    canvas = Canvas(ax, width, columns_size(len(chosen), len(drawn), 0.1, most), panels=panels, choose=CHOOSE)
    columns = method_columns(canvas, len(chosen), len(drawn), most)
    across = columns.across
    for level, q in enumerate(drawn):
        limits = limits_of(means[q.column], q.symbol)
        for number, method in enumerate(chosen):
            panel = columns.panels[number][level]
            table = means[q.column].xs(method).unstack("quantile")
            steps = table.index.to_numpy(dtype=float)
            for (low, high), alpha in shades.items():
                low_edge, high_edge = (table[end].clip(lower=limits[0]) for end in (low, high))
                if len(steps) == 1:  # a bar, as one step has no width
                    panel.vlines(steps, low_edge, high_edge, color=q.color, alpha=alpha, linewidth=thin(8))
                else:
                    panel.fill_between(steps, low_edge, high_edge, color=q.color, alpha=alpha, linewidth=0)
            marker = "o" if len(table) == 1 else ""
            panel.plot(steps, table[0.5], q.line, color=q.color, marker=marker, label=f"{q.symbol}, median")
            log_axis(panel, "y", *limits, q.symbol if number % across == 0 else "")
            panel.tick_params(labelleft=number % across == 0, labelbottom=level == len(drawn) - 1)
            step_axis(panel, [float(step) for step in rows["step_to"].unique()], label="")
            if level == 0:
                canvas.title(panel, method_name(method), letter(number))
    canvas.legend(in_rows(legend, 4 if across > 1 else 2))
    symbols = " and ".join(q.symbol for q in drawn)
    what = f"How {symbols} are spread over the {plural(axis)} of a matrix, for {methods_named(rows)}"
    band = f"bands: shares of a matrix's {plural(axis)}"
    facts = facts_of(what, rows, "step_to", pairs="changes since the base weights", interval=band, notes=notes)
    return canvas.finish(facts, "training step")


def vector_rows(
    frame: pd.DataFrame, kind: str | None, axis: Axis, methods: Sequence[str] | None
) -> tuple[pd.DataFrame, list[str], list[str]]:
    """Return the finite rows along an axis, the methods in order, and what was left out; without step 0."""
    check_choice("axis", axis, get_args(Axis))
    require_columns(frame, COLUMNS, SOURCE)
    rows, chosen = select(frame, kind, methods)
    rows = rows[rows["axis"] == axis]
    if rows.empty:
        raise OptionError(f"the table has no rows of axis {axis!r}; make it with axes=({axis!r},)")
    moved = rows[rows["step_to"] > 0]
    rows, notes = finite(rows if moved.empty else moved, ("delta_m", "delta_d"))
    return rows, chosen, notes


def plural(axis: Axis) -> str:
    """Return the word for several vectors along an axis."""
    return "matrices" if axis == "matrix" else f"{axis}s"


def limits_of(values: "pd.Series[float]", symbol: str) -> tuple[float, float]:
    """Return what a logarithmic axis spans: all above 0, but at most five powers of ten below a method's largest."""
    high = float(values.max())
    if not high > 0:
        raise OptionError(f"every {symbol} is zero: nothing has moved; pass later steps")
    highest = values.groupby("method").transform("max")
    low = float(values[(values > highest / 10**_DECADES) & (values > 0)].min())
    return low / 1.3, high * 1.3
