"""Dual LoRA's Figure 3: the rank of the update ΔW by layer."""

from collections.abc import Sequence
from math import floor, log2
from typing import Any, get_args

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from deltaw.analysis.figures.drawing.axes import Fitting, aside
from deltaw.analysis.figures.drawing.canvas import Canvas, Target
from deltaw.analysis.figures.drawing.facts import facts_of, method_name, methods_named
from deltaw.analysis.figures.drawing.layer_positions import with_positions
from deltaw.analysis.figures.drawing.rows import last_steps
from deltaw.analysis.figures.drawing.style import Scale, check_choice, ground, mark, method_styles, pale, thin
from deltaw.analysis.tables.tidy import require_columns, select

SOURCE = "Trajectory.spectra(groups=True)"
COLUMNS = ("run", "method", "module", "layer", "kind", "step", "group", "rank", "full_rank")

_GROUPS = {"magnitude": "magnitude group", "direction": "direction group", "update": "overall"}
_GROUP_MARKERS = {"magnitude": "^", "direction": "v"}
_GROUP_SHADES = {"magnitude": 0.45, "direction": -0.45}  # lighter and darker than the whole
_DASH = 4  # in line widths


def rank(
    frame: pd.DataFrame,
    *,
    kind: str | None = None,
    methods: Sequence[str] | None = None,
    scale: Scale = "log",
    width: float | None = None,
    ax: Target | None = None,
) -> Target:
    """Draw the rank of ΔW by layer at the last recorded step, a line per method, and full rank dashed.

    Dual LoRA has three lines where the table has its groups: the magnitude group ReLU(B A), lighter, the direction
    group Sign(D C), darker, and the whole. A point is the mean over a layer's matrices and over the runs of a method.
    The lines' markers stand side by side, and lines that lie on each other take turns in dashes, so that all are seen.
    Matrices without a layer number and undefined ranks are left out, and the figure says how many.

    Arguments:
        frame: The spectra of one or several runs, concatenated, columns as in `Trajectory.spectra`.
        kind: The kind of matrix, such as "query"; ``None`` for all together, as in the paper.
        methods: The methods to draw, in this order; ``None`` for all, in the order of ``METHODS``.
        scale: "log", in powers of two, where rank 8 and full rank are both readable, or "linear", as in the paper.
        width: Of a new figure, in inches; ``None`` for 5.5, or more with larger letters.
        ax: Where to draw: an Axes, a SubFigure or a Figure; ``None`` for a new Figure.

    Returns:
        What was drawn on, as seaborn does: ``ax``, or the new Figure. Nothing is shown or written.

    Raises:
        OptionError: There is no such kind, method or choice, no matrix has a layer number, or the table is of another
            form.

    Source:
        Dual LoRA, section 5 and Figure 3.

    Example:
        >>> columns = ["run", "method", "module", "layer", "kind", "step", "group", "rank", "full_rank"]
        >>> rows = [("a", "lora", f"{layer}.query", layer, "query", 9, "update", 8, 64) for layer in range(3)]
        >>> [line.get_label() for line in rank(pd.DataFrame(rows, columns=columns)).axes[0].lines]
        ['full rank (64)', 'LoRA (8)']
    """
    check_choice("scale", scale, get_args(Scale))
    require_columns(frame, COLUMNS, SOURCE)
    rows, chosen = select(frame, kind, methods)
    rows, notes = _clean(rows)
    lines = {
        (method, group): found.groupby("layer")["rank"].mean()
        for method in chosen
        for group in _GROUPS
        if not (found := rows[(rows["method"] == method) & (rows["group"] == group)]).empty
    }
    canvas = Canvas(ax, width, (5.5, 2.8))
    panel = canvas.panel()
    _draw(panel, rows, lines, scale)
    facts = facts_of(f"The rank of ΔW by layer for {methods_named(rows)}", rows, "step", notes=notes, at_end=True)
    return canvas.finish(facts, under=panel)


def _clean(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Keep the last step of every run, drop what cannot stand in the figure, and say what was left out."""
    rows, notes = with_positions(last_steps(rows))
    rows = rows.astype({"rank": "Float64", "full_rank": float})
    undefined = ~np.isfinite(rows["rank"].to_numpy(dtype=float, na_value=np.nan))
    if undefined.any():
        notes.append(f"{undefined.sum()} undefined ranks left out")
    return rows[~undefined].astype({"rank": float}), notes


def _draw(ax: Axes, rows: pd.DataFrame, lines: "dict[tuple[str, str], pd.Series[float]]", scale: Scale) -> None:
    full = rows.groupby("layer")["full_rank"].mean()
    sizes = " to ".join(f"{value:,.0f}" for value in sorted({rows["full_rank"].min(), rows["full_rank"].max()}))
    labels = [f"full rank ({sizes})"]
    if full.nunique() == 1:
        ends, level = [full.index.min() - 0.5, full.index.max() + 0.5], [full.iloc[0]] * 2
    else:
        ends, level = list(full.index), list(full)
    handles = ax.plot(ends, level, "--", color=pale(), linewidth=thin(), zorder=1, label=labels[0])
    _rank_axis(ax, list(lines.values()), float(full.max()), scale)
    styles = method_styles(list(dict.fromkeys(method for method, _ in lines)))
    turns = _turns(ax, list(lines.values()))
    for number, ((method, group), line) in enumerate(lines.items()):
        turn, of = turns[number]
        color, marker = styles[method]
        name = method_name(method)
        if any((method, part) in lines for part in _GROUP_MARKERS):
            name += f", {_GROUPS[group]}"
            color, marker = _shade(color, _GROUP_SHADES.get(group, 0.0)), _GROUP_MARKERS.get(group, marker)
        mean = line.mean()
        labels.append(f"{name} ({mean:,.0f})" if mean >= 1000 else f"{name} ({mean:.3g})")
        look: dict[str, Any] = {"color": color, "marker": marker, "markersize": mark(1.2), "markeredgecolor": ground()}
        look |= {"markeredgewidth": thin(0.25)}
        handles.append(Line2D([], [], **look))
        ax.plot(
            line.index,
            line,
            linestyle="-" if of == 1 else (turn * _DASH, (_DASH, (of - 1) * _DASH)),
            dash_capstyle="butt",
            label=labels[-1],
            zorder=2,
            transform=aside(ax, number, len(lines), len(full)),
            **look,
        )
    ax.set_xlim(full.index.min() - 0.5, full.index.max() + 0.5)
    ax.xaxis.set_major_locator(Fitting(9, integer=True, min_n_ticks=1))
    ax.set_xlabel("layer")
    ax.set_ylabel("rank of ΔW")
    ax.legend(
        handles, labels, loc="center left", bbox_to_anchor=(1.01, 0.5), title="mean rank in brackets", alignment="left"
    )


def _shade(color: str, share: float) -> str:
    """Return a colour lighter by a share of the way to white, or darker by one to black where it is below 0."""
    end = np.ones(3) if share > 0 else np.zeros(3)
    red, green, blue = (1 - abs(share)) * np.array(to_rgb(color)) + abs(share) * end
    return str(to_hex((red, green, blue)))


def _turns(ax: Axes, lines: "list[pd.Series[float]]") -> list[tuple[int, int]]:
    """Return for every line its place among the lines that it lies on at most layers, and their number.

    Two lines lie on each other where less than 1.5 % of the axis' height is between them.
    """
    low, high = ax.transScale.transform([(0, y) for y in ax.get_ylim()])[:, 1]
    heights = [
        pd.Series((ax.transScale.transform([(0, y) for y in line])[:, 1] - low) / (high - low), line.index)
        for line in lines
    ]
    heaps: list[list[int]] = []
    for index, height in enumerate(heights):
        for heap in heaps:
            apart = (heights[heap[0]] - height).abs().dropna()
            if len(apart) and (apart < 0.015).mean() > 0.5:
                heap.append(index)
                break
        else:
            heaps.append([index])
    places = {index: (turn, len(heap)) for heap in heaps for turn, index in enumerate(heap)}
    return [places[index] for index in range(len(lines))]


def _rank_axis(ax: Axes, lines: "list[pd.Series[float]]", full: float, scale: Scale) -> None:
    if scale == "linear":
        ax.set_ylim(0, 1.06 * full)
        return
    low = min(float(line.min()) for line in lines)
    # Rank 0, an update that is zero, has its place below 1, where the scale is linear.
    ax.set_yscale("symlog", base=2, linthresh=1, linscale=0.7)
    ax.set_ylim(-0.15 if low < 1 else low / 1.5, 1.5 * full)
    powers = [2.0**k for k in range(floor(log2(max(1.0, full))) + 1)]
    # Full rank has its own tick; a power too close below it makes room.
    shown = [value for value in [0.0, *powers] if ax.get_ylim()[0] <= value < 0.75 * full]
    ax.yaxis.set_major_locator(FixedLocator([*shown[:: 1 + len(shown) // 12], full]))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
