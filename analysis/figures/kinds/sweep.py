"""Dual LoRA's Figure 2: the score against the share of the magnitude group's rank."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter

from deltaw.adapters.errors import OptionError
from deltaw.analysis.figures.drawing.canvas import Canvas, Target
from deltaw.analysis.figures.drawing.facts import Facts, method_name
from deltaw.analysis.figures.drawing.style import mark, method_styles, thin
from deltaw.analysis.tables.tidy import in_order, require_columns

SOURCE = "the results of reproduce_dual_lora"
COLUMNS = ("method", "rank", "direction_rank", "seed")
SWEPT = "dual-lora"

_DASH = 4  # in line widths


def sweep(
    frame: pd.DataFrame,
    *,
    score: str = "best_mcc",
    label: str = "best Matthews correlation",
    width: float | None = None,
    ax: Target | None = None,
) -> Target:
    """Draw Dual LoRA's score against r₁ with r₁ + r₂ fixed, and the other methods as horizontal lines.

    A point is the mean over the seeds; with several, bars and bands are one standard deviation of them up and down.
    Scores that are no number are left out, and the figure says how many.

    Arguments:
        frame: One row per run: method, rank (r₁ of "dual-lora"), direction_rank (r₂; missing for other methods), seed,
            and the score.
        score: The column of the score.
        label: What the score's axis is called.
        width: Of a new figure, in inches; ``None`` for 5.5, or more with larger letters.
        ax: Where to draw: an Axes, a SubFigure or a Figure; ``None`` for a new Figure.

    Returns:
        What was drawn on, as seaborn does: ``ax``, or the new Figure. Nothing is shown or written.

    Raises:
        OptionError: There is no run of Dual LoRA with a score, r₁ + r₂ is not the same in all of them, or the table is
            of another form.

    Source:
        Dual LoRA, section 4.5, Figure 2.

    Example:
        >>> rows = [("lora", 16, None, 0, 0.5), ("dual-lora", 4, 12, 0, 0.6), ("dual-lora", 8, 8, 0, 0.7)]
        >>> figure = sweep(pd.DataFrame(rows, columns=[*COLUMNS, "best_mcc"]))
        >>> [line.get_label() for line in figure.axes[0].lines if not line.get_label().startswith("_")]
        ['LoRA, rank 16', 'Dual LoRA']
    """
    require_columns(frame, [*COLUMNS, score], SOURCE)
    values = pd.to_numeric(frame[score]).astype("float64")
    undefined = ~np.isfinite(values.to_numpy())
    rows = frame.assign(**{score: values})[~undefined]
    dual = rows[rows["method"] == SWEPT].astype({"rank": int, "direction_rank": int})
    if dual.empty:
        raise OptionError(f"there is no run of {SWEPT} with a {score}; pass {SOURCE}")
    totals = sorted(set(dual["rank"] + dual["direction_rank"]))
    if len(totals) > 1:
        raise OptionError(f"r₁ + r₂ is {' and '.join(map(str, totals))}; draw one sum at a time")
    seeds = frame.groupby(["method", "rank"], dropna=False)["seed"].nunique()
    notes = ["one seed" if seeds.max() == 1 else f"mean of {_span(seeds)} seeds, ± one standard deviation"]
    if undefined.any():
        notes.append(f"{undefined.sum()} undefined scores left out")
    canvas = Canvas(ax, width, (5.5, 2.5))
    panel = canvas.panel()
    _draw(panel, rows, dual, score, totals[0])
    panel.set_ylabel(label)
    panel.set_xlabel(f"$r_1 : r_2$ with $r_1 + r_2 = {totals[0]}$")
    # Whole lines in the legend: of a dashed one its short handle may show a gap.
    lines = [line for line in panel.lines if not str(line.get_label()).startswith("_")]
    handles = [Line2D([], [], color=line.get_color(), marker=line.get_marker()) for line in lines]
    panel.legend(handles, [str(line.get_label()) for line in lines], loc="center left", bbox_to_anchor=(1.01, 0.5))
    what = f"The {label} of Dual LoRA by the share of its magnitude group's rank"
    return canvas.finish(Facts(what, notes=("; ".join(notes),)), under=panel)


def _draw(ax: Axes, rows: pd.DataFrame, dual: pd.DataFrame, score: str, total: int) -> None:
    others = rows[rows["method"] != SWEPT]
    styles = method_styles(in_order(others["method"]))
    levels = [
        (method, rank, values["mean"], values["std"])
        for method in in_order(others["method"])
        for rank, values in others[others["method"] == method]
        .groupby("rank", dropna=False)[score]
        .agg(["mean", "std"])
        .iterrows()
    ]
    for turn, (method, rank, mean, deviation) in enumerate(levels):
        color, _ = styles[method]
        name = method_name(method) + ("" if pd.isna(rank) else f", rank {rank}")  # type: ignore[call-overload]
        # In turns, so that lines on each other are all seen.
        dashes = (_DASH * turn, (_DASH, _DASH * max(len(levels) - 1, 0.5)))
        ax.axhline(mean, color=color, linestyle=dashes, dash_capstyle="butt", label=name, zorder=1)
        if deviation > 0:
            ax.axhspan(mean - deviation, mean + deviation, color=color, alpha=0.12, linewidth=0, zorder=0)
    color, marker = method_styles([SWEPT])[SWEPT]
    sns.lineplot(
        dual,
        x="rank",
        y=score,
        errorbar="sd" if dual["rank"].duplicated().any() else None,
        err_style="bars",
        err_kws={"capsize": 2, "elinewidth": thin()},
        color=color,
        marker=marker,
        markersize=mark(1.4),
        markeredgecolor=color,
        label=method_name(SWEPT),
        legend=False,
        zorder=3,
        ax=ax,
    )
    ticks = sorted(set(dual["rank"]))
    ax.xaxis.set_major_locator(FixedLocator(ticks[:: 1 + len(ticks) // 9]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda r, _: f"{r:.0f} : {total - r:.0f}"))
    ax.set_xlim(0, total)


def _span(counts: "pd.Series[int]") -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low}" if low == high else f"{low} to {high}"
