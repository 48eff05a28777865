"""SBoRA's Figures 3 and 4: what training costs in time and memory, by method and rank."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deltaw.analysis.figures.drawing.style import PAPER_WIDTH, SMALLEST, inches, method_styles, paper_style
from deltaw.analysis.tables.tidy import display_name, of_methods, require_columns

SOURCE = "grid_table"
COLUMNS = ("method", "rank", "seconds_per_epoch", "peak_megabytes")

_PANELS = {"seconds_per_epoch": "training time per epoch (s)", "peak_megabytes": "peak memory (MB)"}


def costs(
    frame: pd.DataFrame,
    *,
    methods: Sequence[str] | None = None,
    memory: str = "peak memory (MB)",
    width: float | None = None,
) -> Figure:
    """Draw training time per epoch and peak memory as bars: a group per rank, in it a bar per method.

    Bars start at 0 and have their number above them. Methods without a rank form a group of their own. Several rows of
    a method and rank are averaged. What is not a number has no bar but the word "none".

    Arguments:
        frame: One row per method and rank, with the columns method, rank (missing for a method without one),
            seconds_per_epoch, peak_megabytes, as ``deltaw.trainers.cola.grid_table`` returns it.
        methods: The methods to draw, in this order; ``None`` for all, in the order of ``METHODS``.
        memory: What the memory's axis is called; say there what was measured.
        width: In inches; ``None`` for 7, a paper's width.

    Returns:
        The figure; nothing is shown or written.

    Raises:
        OptionError: There is no such method, or the table is of another form.

    Source:
        SBoRA, section 5.2, Figures 3 and 4, which have the same numbers as points.

    Example:
        >>> rows = [("lora", 8, 2.0, 600.0), ("sbora-fa", 8, 1.5, 590.0)]
        >>> figure = costs(pd.DataFrame(rows, columns=list(COLUMNS)))
        >>> [float(bar.get_height()) for bar in figure.axes[0].patches]
        [2.0, 1.5]
    """
    require_columns(frame, COLUMNS, SOURCE)
    chosen = of_methods(frame, methods)
    frame = frame[frame["method"].isin(chosen)]
    means = frame.assign(rank=pd.to_numeric(frame["rank"]).astype("Int64")).groupby(["rank", "method"], dropna=False)
    table = means[list(_PANELS)].mean().reset_index()
    with paper_style():
        figure = Figure(figsize=(inches(width, PAPER_WIDTH), 2.7), layout="constrained")
        panels = figure.subplots(1, 2)
        for ax, letter, (column, label) in zip(panels, "ab", _PANELS.items(), strict=True):
            _bars(ax, table, column, chosen)
            ax.set_title(f"({letter})", loc="left")
            ax.set_ylabel(memory if column == "peak_megabytes" else label)
        figure.legend(
            handles=list(panels[0].containers),
            labels=[display_name(method) for method in chosen],
            loc="outside upper center",
            ncols=min(len(chosen), 6),
            handlelength=1.2,
        )
    return figure


def _bars(ax: Axes, table: pd.DataFrame, column: str, methods: Sequence[str]) -> None:
    names = [f"rank {rank}" for rank in sorted(table["rank"].dropna().unique())]
    group = ("rank " + table["rank"].astype("string")).fillna("no rank")
    names += ["no rank"] if (group == "no rank").any() else []
    found = table.assign(group=group).set_index(["group", "method"])[column]
    places = {name: [method for method in methods if (name, method) in found.index] for name in names}
    starts = np.cumsum([0.0] + [len(there) + 0.8 for there in places.values()])
    styles = method_styles(methods)
    crowded = len(found) > 12
    for method in methods:
        color, _ = styles[method]
        pairs = zip(starts, places.values(), strict=False)
        xs = [start + there.index(method) for start, there in pairs if method in there]
        heights = [float(found[name, method]) for name, there in places.items() if method in there]
        bars = ax.bar(xs, np.nan_to_num(heights), width=0.86, color=color, label=display_name(method))
        texts = [f"{height:,.0f}" if height >= 1000 else f"{height:.3g}" for height in heights]
        texts = ["none" if np.isnan(height) else text for height, text in zip(heights, texts, strict=True)]
        ax.bar_label(bars, texts, padding=1.5, fontsize=SMALLEST, rotation=90 if crowded else 0)
    highest = float(found.max())
    ax.set_xticks(
        [start + (len(there) - 1) / 2 for start, there in zip(starts, places.values(), strict=False)],
        names,
    )
    if names == ["no rank"]:
        ax.set_xticks([])  # nothing to tell apart: the table has no ranks
    ax.tick_params(axis="x", length=0)
    ax.set_xlim(-0.8, starts[-1] - 1.0)
    ax.set_ylim(0, (1.2 if crowded else 1.12) * highest if highest > 0 else 1.0)
    ax.spines[["top", "right"]].set_visible(False)
