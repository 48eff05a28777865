"""Dual LoRA's Figure 3: the rank of the update ΔW by layer."""

from collections.abc import Sequence
from math import floor, log2
from typing import get_args

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from deltaw.adapters import OptionError
from deltaw.analysis.figures.style import COLORS, PAPER_WIDTH, Scale, check_choice, paper_style
from deltaw.analysis.tidy import display_name, require_columns, select

SOURCE = "Trajectory.spectra(groups=True)"
COLUMNS = ("run", "method", "module", "layer", "kind", "step", "group", "rank", "full_rank")

_MARKERS = "osD^vPX*"
_GROUPS = {"update": "overall", "magnitude": "magnitude group", "direction": "direction group"}


def rank(
    frame: pd.DataFrame,
    *,
    kind: str | None = None,
    methods: Sequence[str] | None = None,
    scale: Scale = "log",
    width: float | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw the rank of ΔW by layer at the last recorded step, a line a method, and full rank dashed.

    Dual LoRA has three lines where the table has its groups: the magnitude group ReLU(B A), the direction group
    Sign(D C), and the whole. A point is the mean over a layer's matrices and over the runs of a method. Lines that lie
    on each other are drawn from wide to narrow, so that all are seen. Matrices without a layer number and undefined
    ranks are left out, and the figure says how many.

    Arguments:
        frame: The spectra of one or several runs, concatenated, columns as in `Trajectory.spectra`.
        kind: The kind of matrix, such as "query"; ``None`` for all together, as in the paper.
        methods: The methods to draw, in this order; ``None`` for all, in the order of ``METHODS``.
        scale: "log", in powers of two, where rank 8 and full rank are both readable, or "linear", as in the paper.
        width: In inches; ``None`` for 5.
        ax: Draw here instead of in a new figure, in the style that is set.

    Returns:
        The figure; nothing is shown or written.

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
        for group in ("magnitude", "direction", "update")
        if not (found := rows[(rows["method"] == method) & (rows["group"] == group)]).empty
    }
    if ax is not None:
        _draw(ax, rows, lines, notes, scale)
        return ax.get_figure(root=True)
    with paper_style():
        figure = Figure(figsize=(width or min(PAPER_WIDTH, 5.5), 2.9), layout="constrained")
        _draw(figure.add_subplot(), rows, lines, notes, scale)
    return figure


def _clean(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Keep the last step of every run, drop what has no place in the figure, and say what was left out."""
    rows = rows[rows["step"] == rows.groupby(["run", "method"])["step"].transform("max")]
    notes = []
    placeless = rows["layer"].isna()
    if placeless.all():
        raise OptionError(
            f"no matrix has a layer number in its name (there are {', '.join(sorted(set(rows['module']))[:3])}); "
            "this figure is by layer, see the table instead"
        )
    if placeless.any():
        notes.append(f"{rows.loc[placeless, 'module'].nunique()} matrices without a layer number left out")
    undefined = ~np.isfinite(rows["rank"].astype("float64").to_numpy(na_value=np.nan))
    if undefined.any():
        notes.append(f"{undefined.sum()} undefined ranks left out")
    rows = rows[~placeless & ~undefined]
    return rows.astype({"layer": int, "rank": float, "full_rank": float}), notes


def _draw(
    ax: Axes, rows: pd.DataFrame, lines: "dict[tuple[str, str], pd.Series[float]]", notes: list[str], scale: Scale
) -> None:
    full = rows.groupby("layer")["full_rank"].mean()
    sizes = " to ".join(f"{value:g}" for value in sorted({rows["full_rank"].min(), rows["full_rank"].max()}))
    ax.plot(full.index, full, "--", color="0.35", linewidth=0.9, zorder=1, label=f"full rank ({sizes})")
    values = list(lines.values())
    for index, ((method, group), line) in enumerate(lines.items()):
        # A line that later ones cover is wider, so that its edges show beside them.
        covered = sum(_touch(line, later) for later in values[index + 1 :])
        name = display_name(method)
        if group != "update" or (method, "magnitude") in lines:
            name += f", {_GROUPS[group]}"
        ax.plot(
            line.index,
            line,
            color=COLORS[index % len(COLORS)],
            marker=_MARKERS[index % len(_MARKERS)],
            linewidth=1.2 + 1.8 * covered,
            markersize=3.5 + 1.8 * covered,
            linestyle="-" if index < len(COLORS) else ":",
            label=f"{name} ({line.mean():.3g})" if line.mean() < 1000 else f"{name} ({line.mean():,.0f})",
            zorder=2,
        )
    _rank_axis(ax, values, float(full.max()), scale)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("\n".join(["layer", *notes]))
    ax.set_ylabel("rank of ΔW")
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), title="mean rank in brackets", alignment="left")


def _touch(one: "pd.Series[float]", other: "pd.Series[float]") -> bool:
    """Whether two lines come closer than 3 % at any layer."""
    both = pd.concat([one, other], axis=1, join="inner").to_numpy()
    return bool((np.abs(both[:, 0] - both[:, 1]) <= 0.03 * both.max(axis=1, initial=1.0)).any())


def _rank_axis(ax: Axes, lines: "list[pd.Series[float]]", full: float, scale: Scale) -> None:
    if scale == "linear":
        ax.set_ylim(0, 1.06 * full)
        return
    low = min(float(line.min()) for line in lines)
    # Rank 0, an update that is zero, has its place below 1, where the scale is linear.
    ax.set_yscale("symlog", base=2, linthresh=1, linscale=0.7)
    ax.set_ylim(-0.15 if low < 1 else low / 1.5, 1.5 * full)
    powers = [2.0**k for k in range(floor(log2(max(1.0, full))) + 1)]
    shown = [value for value in [0.0, *powers[:: 1 + len(powers) // 9]] if value >= ax.get_ylim()[0]]
    # The last power makes room for full rank itself.
    shown = [value for value in shown if value == full or value < 0.75 * full]
    ax.yaxis.set_major_locator(FixedLocator([*shown, full]))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
