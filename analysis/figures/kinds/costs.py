"""SBoRA's Figures 3 and 4: memory against time of training, by method and rank."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import FuncFormatter, MaxNLocator

from deltaw.adapters.errors import OptionError
from deltaw.analysis.figures.drawing.axes import padded
from deltaw.analysis.figures.drawing.canvas import Canvas, Target
from deltaw.analysis.figures.drawing.facts import Facts, method_name
from deltaw.analysis.figures.drawing.labels import label_points
from deltaw.analysis.figures.drawing.style import area, method_styles, thin
from deltaw.analysis.tables.tidy import of_methods, require_columns

SOURCE = "grid_table"
COLUMNS = ("method", "rank", "seconds_per_epoch", "peak_megabytes")

_ROOM = 0.25  # around the points, for their labels
_TIME, _MEMORY = "seconds_per_epoch", "peak_megabytes"


def costs(
    frame: pd.DataFrame,
    *,
    methods: Sequence[str] | None = None,
    memory: str = "peak memory (MB)",
    width: float | None = None,
    ax: Target | None = None,
) -> Target:
    """Draw peak memory against training time per epoch, a point per method and rank, each with its name.

    Lower left is cheap. A thin line joins the ranks of a method, larger points are higher ranks. Several rows of a
    method and rank are averaged. What is not a number has no point, and the figure says so. The axes begin where the
    points do, not at 0.

    Arguments:
        frame: One row per method and rank, with the columns method, rank (missing for a method without one),
            seconds_per_epoch, peak_megabytes, as ``deltaw.trainers.cola.grid_table`` returns it.
        methods: The methods to draw, in this order; ``None`` for all, in the order of ``METHODS``.
        memory: What the memory's axis is called; say there what was measured.
        width: Of a new figure, in inches; ``None`` for 7, or more with larger letters.
        ax: Where to draw: an Axes, a SubFigure or a Figure; ``None`` for a new Figure.

    Returns:
        What was drawn on, as seaborn does: ``ax``, or the new Figure. Nothing is shown or written.

    Raises:
        OptionError: There is no such method, or the table is of another form.

    Source:
        SBoRA, section 5.2, Figures 3 and 4.

    Example:
        >>> rows = [("lora", 8, 2.0, 600.0), ("sbora-fa", 8, 1.5, 590.0)]
        >>> figure = costs(pd.DataFrame(rows, columns=list(COLUMNS)))
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['LoRA, r = 8', 'SBoRA-FA, r = 8']
    """
    require_columns(frame, COLUMNS, SOURCE)
    chosen = of_methods(frame, methods)
    frame = frame[frame["method"].isin(chosen)]
    groups = frame.assign(rank=pd.to_numeric(frame["rank"]).astype("Int64")).groupby(["method", "rank"], dropna=False)
    table = groups[[_TIME, _MEMORY]].mean().reset_index()
    rows, missing = _known(table, chosen)
    canvas = Canvas(ax, width, (5.5, 3.5))
    panel = canvas.panel()
    styles = method_styles(chosen)
    ranks = sorted(rows["rank"].dropna().unique())
    points, texts, colors = [], [], []
    for method in chosen:
        found = rows[rows["method"] == method].sort_values("rank")
        color, marker = styles[method]
        panel.plot(found[_TIME], found[_MEMORY], color=color, linewidth=thin(0.6), alpha=0.5, zorder=2)
        sizes = [area(1.2 + 0.35 * (ranks.index(rank) if rank in ranks else 0)) for rank in found["rank"].fillna(-1)]
        panel.scatter(
            found[_TIME], found[_MEMORY], s=sizes, c=color, marker=marker, label=method_name(method), zorder=3
        )
        points += list(zip(found[_TIME].astype(float), found[_MEMORY].astype(float), strict=True))
        texts += [_name(method, rank) for rank in found["rank"]]
        colors += [color] * len(found)
    for axis, column, label in ((panel.xaxis, _TIME, "training time per epoch (s)"), (panel.yaxis, _MEMORY, memory)):
        low, high = padded(float(rows[column].min()), float(rows[column].max()), _ROOM)
        (panel.set_xlim if axis is panel.xaxis else panel.set_ylim)(max(low, 0.0), high)
        axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axis.set_label_text(label)
    drawn = canvas.finish(Facts("Peak memory against training time per epoch", notes=tuple(missing)))
    canvas.root.draw_without_rendering()  # so that the panel has its place
    label_points(panel, points, texts, colors)
    return drawn


def _known(table: pd.DataFrame, methods: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows with both numbers, and which have not."""
    known = np.isfinite(table[[_TIME, _MEMORY]].astype("float64").to_numpy()).all(axis=1)
    if not known.any():
        raise OptionError("no row has a finite seconds_per_epoch and peak_megabytes; there is nothing to draw")
    without = table[~known]
    pairs = sorted(zip(without["method"], without["rank"], strict=True), key=lambda pair: methods.index(pair[0]))
    names = [_name(method, rank) for method, rank in pairs]
    return table.loc[known], [f"without time or memory: {'; '.join(names)}"] if names else []


def _name(method: str, rank: Any) -> str:
    name = method_name(method)
    return name if pd.isna(rank) else f"{name}, r = {rank}"
