"""The spectrum of the update over training: which directions grow, and when."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from deltaw.adapters.errors import OptionError
from deltaw.analysis.figures.drawing.axes import grid_of_panels, letter, log_axis, step_axis, width_of
from deltaw.analysis.figures.drawing.canvas import Canvas, Target, most_across
from deltaw.analysis.figures.drawing.facts import facts_of, method_name, methods_named
from deltaw.analysis.figures.drawing.rows import finite
from deltaw.analysis.figures.drawing.style import is_dark, thin
from deltaw.analysis.tables.tidy import require_columns, select

SOURCE = "singular_values"
COLUMNS = ("run", "method", "module", "layer", "kind", "step", "index", "singular_value")

_DECADES = 6  # what is smaller than this below the largest is rounding in most runs
_COLORS = ListedColormap(colormaps["viridis"](np.linspace(0, 0.9, 256)))
_COLORS_ON_DARK = ListedColormap(colormaps["viridis"](np.linspace(1, 0.3, 256)))


def singular_values(
    frame: pd.DataFrame,
    *,
    kind: str | None = "query",
    methods: Sequence[str] | None = None,
    width: float | None = None,
    ax: Target | None = None,
) -> Target:
    """Draw the singular values σ_i of ΔW against the training step, one panel per method, a line per index i.

    Lines are 1 to 8, then 16, 32, 64, … as far as there are any, dark for the largest (bright on a dark ground). Each
    is the mean over the matrices of the kind and over the runs of a method. The scale is logarithmic and shared; what
    is more than six powers of ten below its method's largest is left out, and so is step 0, where there is no update.

    Arguments:
        frame: What `deltaw.analysis.singular_values` returns.
        kind: The kind of matrix, "query"; ``None`` for all together.
        methods: The methods to draw, in this order; ``None`` for all, in the order of ``METHODS``.
        width: Of a new figure, in inches; ``None`` for up to 7, or more with larger letters. More than three methods go
            into further rows.
        ax: Where to draw: an Axes for a single method, a SubFigure or a Figure; ``None`` for a new Figure.

    Returns:
        What was drawn on, as seaborn does: ``ax``, or the new Figure. Nothing is shown or written.

    Raises:
        OptionError: There is no such kind or method, nothing has moved, or the table is of another form.

    Example:
        >>> rows = [("a", "lora", "0.query", 0, "query", step, i, step / i) for i in (1, 2) for step in (0, 10, 20)]
        >>> lines = singular_values(pd.DataFrame(rows, columns=list(COLUMNS))).axes[0].lines
        >>> [(line.get_label(), [float(y) for y in line.get_ydata()]) for line in lines]
        [('σ_1', [10.0, 20.0]), ('σ_2', [5.0, 10.0])]
    """
    require_columns(frame, COLUMNS, SOURCE)
    rows, chosen = select(frame, kind, methods)
    rows, notes = finite(rows, ["singular_value"])
    rows = rows[(rows["step"] > 0) | (rows["step"].max() == 0)]
    last = int(rows["index"].max())
    shown = [index for index in (*range(1, 9), *(2**power for power in range(4, 20))) if index <= last]
    rows = rows[rows["index"].isin(shown)]
    means = rows.groupby(["method", "index", "step"])["singular_value"].mean()
    high = float(means.max())
    if not high > 0:
        raise OptionError("every singular value is zero: nothing has moved; pass later steps")
    highest = means.groupby("method").transform("max")
    seen = means[(means > highest / 10**_DECADES) & (means > 0)]
    if len(seen) < len(means):
        notes.append("values below $10^{-6}$ of a method's largest left out")
    there = set(seen.index.droplevel("step"))
    colors = _COLORS_ON_DARK if is_dark() else _COLORS
    norm = LogNorm(1, max(2, *(index for _, index in there)))
    blocks, across = grid_of_panels(len(chosen), most_across(3, ax, width, 1.3))
    size = (width_of(across), 0.15 + 1.75 * blocks)
    canvas = Canvas(ax, width, size, panels=len(chosen), choose="choose one with methods=")
    panels = canvas.grid(across)
    for number, (method, panel) in enumerate(zip(chosen, panels, strict=True)):
        for index in shown:
            if (method, index) not in there:
                continue
            line = seen[method, index]
            marker = "o" if len(line) == 1 else ""
            panel.plot(line.index, line, marker=marker, color=colors(norm(index)), linewidth=thin(), label=f"σ_{index}")
        log_axis(panel, "y", float(seen.min()) / 1.5, high * 1.5, r"$\sigma_i$ of ΔW" if number % across == 0 else "")
        panel.tick_params(labelleft=number % across == 0)
        step_axis(panel, list(rows["step"].unique()), label="")
        canvas.title(panel, method_name(method), letter(number))
    bar = canvas.figure.colorbar(ScalarMappable(norm, colors), ax=panels, pad=0.02, aspect=25 * blocks, label="index i")
    bar.ax.yaxis.set_major_locator(FixedLocator([2.0**power for power in range(20) if 2**power <= norm.vmax]))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda index, _: f"{index:g}"))
    bar.ax.invert_yaxis()
    what = f"The singular values of ΔW over training for {methods_named(rows)}, a line per index"
    return canvas.finish(facts_of(what, rows, "step", notes=notes), "training step")
