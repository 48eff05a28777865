"""The layout of the symmetry and the updates figure: a column of panels per method, a row of panels per axis."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, log10
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from deltaw.adapters.errors import OptionError
from deltaw.adapters.methods.registry import METHODS
from deltaw.analysis.figures.drawing.axes import letter, short_number, step_axis
from deltaw.analysis.figures.drawing.canvas import Canvas, Target, most_across
from deltaw.analysis.figures.drawing.facts import Facts, facts_of, method_name, methods_named
from deltaw.analysis.figures.drawing.quantities import QUANTITIES, Quantity
from deltaw.analysis.figures.drawing.rows import NEAR
from deltaw.analysis.figures.drawing.style import PAPER_WIDTH, Scale, check_choice, ink, small
from deltaw.analysis.measures.change import Axis
from deltaw.analysis.tables.tidy import select

Share = Literal["near", "all", "adapters", "none"]

COLUMNS = ("run", "method", "module", "kind", "axis", "step_from", "step_to", "delta_m", "delta_d")
ROWS: tuple[Axis, Axis] = ("column", "row")  # BoRA's order: columns on top


@dataclass(frozen=True)
class Curve:
    """The mean over the matrices at every step, and the band around it."""

    steps: np.ndarray[Any, Any]
    mean: np.ndarray[Any, Any]
    low: np.ndarray[Any, Any]
    high: np.ndarray[Any, Any]


def draw_panels(
    frame: pd.DataFrame,
    *,
    what: str,
    pairs: str,
    kind: str | None,
    methods: Sequence[str] | None,
    axis: Axis | None,
    share: Share,
    scale: Scale,
    band: bool,
    width: float | None,
    ax: Target | None,
    end_values: bool,
) -> Target:
    """Draw ΔM and ΔD of every method along both axes, or along one.

    Arguments:
        frame: A checked table with ``COLUMNS``.
        what, pairs: For the caption.
        end_values: Mark the last point of each curve and write its value above the panel.
        kind, methods, axis, share, scale, band, width, ax: As in `symmetry`.
    """
    check_choice("share", share, get_args(Share))
    check_choice("scale", scale, get_args(Scale))
    if axis is not None:
        check_choice("axis", axis, get_args(Axis))
    rows, chosen = select(frame, kind, methods)
    axes: tuple[Axis, ...] = ROWS if axis is None else (axis,)
    for one in axes:
        if not (rows["axis"] == one).any():
            raise OptionError(
                f"the table has no rows of axis {one!r}; make it with axes={ROWS[::-1] if one in ROWS else (one,)!r}"
            )
    rows, notes = _clean(rows[rows["axis"].isin(axes)])
    curves = {
        (q.symbol, str(method), str(one)): _curve(found, q.column)
        for (method, one), found in rows.groupby(["method", "axis"])
        for q in QUANTITIES
    }
    if not band:
        curves = {key: Curve(c.steps, c.mean, c.mean, c.mean) for key, c in curves.items()}
    groups = {(q.symbol, name): scale_group(name, share) for q in QUANTITIES for name in chosen}
    if share == "near" and scale == "linear":
        groups = _near_groups(curves, chosen)
        if any(len({groups[q.symbol, name] for name in chosen}) > 1 for q in QUANTITIES):
            notes = [
                *notes,
                f"methods within a factor of {NEAR} share a scale; numbers stand where it changes",
            ]
    banded = any((curve.high > curve.low).any() for curve in curves.values())
    interval = "bands: one standard deviation over the matrices" if banded else ""
    sides = " and ".join(f"by {one}" for one in axes)
    facts = facts_of(
        f"{what} {sides} for {methods_named(rows)}", rows, "step_from", "step_to",
        pairs=pairs, interval=interval, notes=notes,
    )  # fmt: skip
    return _draw(Layout(chosen, axes, groups), curves, facts, scale, width, ax, end_values)


@dataclass(frozen=True)
class Layout:
    """Which panels there are.

    Arguments:
        methods, axes: In order.
        groups: By symbol and method, the name of the group that shares a scale.
    """

    methods: list[str]
    axes: tuple[Axis, ...]
    groups: dict[tuple[str, str], str]

    def crowded(self) -> bool:
        """Whether scales begin at several methods, so that numbers stand between many panels."""
        return any(
            sum(self.groups[q.symbol, one] != self.groups[q.symbol, two] for one, two in pairwise(self.methods)) > 1
            for q in QUANTITIES
        )


def start_of(frame: pd.DataFrame) -> str:
    """Return what the changes of a table with one start per run are from."""
    steps = sorted({int(step) for step in frame["step_from"].dropna()})
    if not steps:
        return "changes since the base weights"
    return f"changes since {'step' if len(steps) == 1 else 'steps'} {' and '.join(f'{step:,}' for step in steps[:3])}"


def scale_group(method: str, share: Share) -> str:
    """Return the name of the group of methods that share their scales."""
    if share == "adapters":
        factory = METHODS.get(method)
        injects = getattr(getattr(factory, "func", factory), "injects", True)  # of a variant, that of its class
        return "adapters" if injects else "ft"
    return "all" if share in ("all", "near") else method


def _near_groups(curves: dict[tuple[str, str, str], Curve], methods: list[str]) -> dict[tuple[str, str], str]:
    """Return the groups of methods whose curves all show on one scale: the largest is at most five times the least."""
    groups: dict[tuple[str, str], str] = {}
    for q in QUANTITIES:
        heights = {
            name: max((float(c.mean.max()) for (symbol, of, _), c in curves.items() if (symbol, of) == (q.symbol, name)
                       and len(c.mean)), default=0.0)
            for name in methods
        }  # fmt: skip
        first = ""
        for name in sorted(methods, key=lambda name: -heights[name]):
            if not first or heights[name] * NEAR < heights[first] * (1 - 1e-9):
                first = name if heights[name] > 0 else first or name
            groups[q.symbol, name] = first
    return groups


def _clean(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Keep the pairs of steps that all runs of a method share, drop NaN and infinity, and say what was left out."""
    notes: list[str] = []
    runs = rows.groupby("method")["run"].nunique()
    if runs.max() > 1:
        start = pd.to_numeric(rows["step_from"]).astype("Float64").fillna(-1.0)  # missing: the base
        having = rows.groupby(["method", start, "step_to"])["run"].transform("nunique")
        shared = having == rows["method"].map(runs)
        for method in runs.index:
            if not shared[rows["method"] == method].any():
                raise OptionError(
                    f"the {runs[method]} runs of {method} have no pair of steps in common; draw them apart"
                )
        if not shared.all():
            notes.append("only the steps that all runs of a method share")
            rows = rows[shared]
    columns = [q.column for q in QUANTITIES]
    values = rows[columns].astype("float64")
    undefined = ~np.isfinite(values.to_numpy())
    if undefined.any():
        notes.append(f"{undefined.sum():,} of {undefined.size:,} values are undefined and left out")
        values = values.mask(undefined)
    return rows.assign(**{name: values[name] for name in columns}), notes


def _curve(rows: pd.DataFrame, column: str) -> Curve:
    found = rows.groupby("step_to")[column].agg(["mean", "std", "min", "max"]).dropna(subset="mean")
    mean, spread = found["mean"].to_numpy(), found["std"].fillna(0.0).to_numpy()
    # No further than the layers themselves reach, so that the band never goes below 0.
    low, high = np.maximum(mean - spread, found["min"]), np.minimum(mean + spread, found["max"])
    return Curve(found.index.to_numpy(dtype=float), mean, np.asarray(low), np.asarray(high))


def _draw(
    layout: Layout,
    curves: dict[tuple[str, str, str], Curve],
    facts: Facts,
    scale: Scale,
    width: float | None,
    ax: Target | None,
    end_values: bool,
) -> Target:
    """Lay out the panels.

    Arguments:
        curves: By symbol, method and axis.
    """
    methods, groups = layout.methods, layout.groups
    own_scales = all(len({groups[q.symbol, name] for name in methods}) == len(methods) for q in QUANTITIES)
    narrow = (end_values, layout.crowded())  # what needs room beside or above the panels
    most = 3 if own_scales or all(narrow) else 4 if any(narrow) else 5
    most = most_across(most, ax, width, 1.6 if own_scales else 1.05)
    blocks = ceil(len(methods) / most)  # more go into further rows below
    across = ceil(len(methods) / blocks)
    levels = len(layout.axes)
    wide = min(PAPER_WIDTH, 1.6 + (1.8 if most < 5 else 1.4) * across)
    size = (wide, 0.25 + blocks * levels * (1.45 if end_values else 1.3))
    choose = "choose one with methods= and axis="
    canvas = Canvas(ax, width, size, panels=len(methods) * levels, choose=choose)
    grid = None if canvas.ax is not None else canvas.figure.add_gridspec(levels * blocks, across)
    together: dict[tuple[str, str], list[Curve]] = {}
    for (symbol, method, _), curve in curves.items():
        together.setdefault((symbol, groups[symbol, method]), []).append(curve)
    limits = {key: _limits(found, scale) for key, found in together.items()}
    panels: list[Axes] = []
    for block in range(blocks):
        beside = methods[block * across : (block + 1) * across]
        for level, axis in enumerate(layout.axes):
            for number, method in enumerate(beside):
                share = panels[0] if panels else None
                left = (
                    canvas.panel()
                    if grid is None
                    else canvas.figure.add_subplot(grid[levels * block + level, number], sharex=share)
                )
                right = left.twinx()
                above = 1.2 if canvas.width / across < 1.3 * rcParams["font.size"] / 8 else 0.0
                right.grid(False)
                # Numbers only at the outer panels of those that share a scale.
                before, after = (beside[at] if 0 <= at < len(beside) else None for at in (number - 1, number + 1))
                for q, panel, neighbour in zip(QUANTITIES, (left, right), (before, after), strict=True):
                    panel.set_label(f"{method} {axis} {q.column}")
                    group = groups[q.symbol, method]
                    numbers = neighbour is None or groups[q.symbol, neighbour] != group
                    curve = curves.get((q.symbol, method, axis), _EMPTY)
                    _scale_axis(panel, q, limits.get((q.symbol, group), (0.0, 1.0)), scale, numbers)
                    _plot(panel, q, curve)
                    if end_values:
                        _write_end(panel, q, curve, above)
                pad = (1.7 + above) * small() if end_values else None
                canvas.title(left, method_name(method), letter(len(panels)), pad=pad)
                left.tick_params(labelbottom=level == levels - 1)
                if number == 0 and canvas.ax is None:
                    _name_row(left, axis)
                if number == len(beside) - 1 < across - 1:
                    right.set_in_layout(
                        False
                    )  # its numbers stand in the empty cell beside it and need no room of theirs
                panels.append(left)
    # All panels share this axis; three numbers of neighbours don't touch.
    ends = [step for curve in curves.values() for step in (*curve.steps[:1], *curve.steps[-1:])]
    step_axis(panels[0], ends, label="", nbins=3)
    _legend(canvas, bool(facts.interval))
    return canvas.finish(facts, "training step", said=facts.interval)


_EMPTY = Curve(*(np.empty(0) for _ in range(4)))


def _plot(ax: Axes, q: Quantity, curve: Curve) -> None:
    if not len(curve.steps):
        ax.text(0.5, 0.6 if q.symbol == "ΔM" else 0.4, f"{q.symbol} undefined", transform=ax.transAxes, ha="center")
        return
    if len(curve.steps) == 1:
        ax.vlines(curve.steps, curve.low, curve.high, color=q.color, alpha=0.35, linewidth=3)
    elif (curve.high > curve.low).any():
        # As a picture where its outline would make a vector file of megabytes.
        long = len(curve.steps) > 2000
        ax.fill_between(curve.steps, curve.low, curve.high, color=q.color, alpha=0.18, linewidth=0, rasterized=long)
    marker = "o" if len(curve.steps) == 1 else ""  # one point makes no line
    ax.plot(curve.steps, curve.mean, q.line, color=q.color, marker=marker, label=q.symbol)


def _limits(curves: list[Curve], scale: Scale) -> tuple[float, float]:
    """Return what an axis spans so that all curves are inside: from 0, or on a log scale from the smallest."""
    high = max((float(c.high.max()) for c in curves if len(c.high)), default=0.0)
    if high <= 0:
        return (0.1, 1.0) if scale == "log" else (0.0, 1.0)
    if scale == "linear":
        return 0.0, high * 1.06
    low = min(float(values[values > 0].min(initial=high)) for c in curves for values in (c.low, c.mean))
    return low / 1.3, high * 1.3


def _scale_axis(ax: Axes, q: Quantity, limits: tuple[float, float], scale: Scale, numbers: bool) -> None:
    """Set limits, ticks and label, which names the unit that the numbers are in."""
    unit = 1.0
    label = q.symbol
    if scale == "log":
        ax.set_yscale("log", nonpositive="mask")
        ax.yaxis.set_major_locator(LogLocator(numticks=5))
        ax.yaxis.set_minor_locator(NullLocator())
    else:
        exponent = floor(log10(limits[1] / 2))  # numbers from 1 to 20
        if exponent not in (-1, 0, 1):
            unit = 10.0**exponent
            label = rf"{q.symbol} ($10^{{{exponent}}}$)"
        ax.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10]))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / unit:g}"))
    ax.set_ylim(limits)
    ax.tick_params(axis="y", colors=q.color, labelleft=numbers and q is QUANTITIES[0])
    ax.tick_params(axis="y", labelright=numbers and q is QUANTITIES[1])
    if numbers:
        ax.set_ylabel(label, color=q.color)


def _write_end(ax: Axes, q: Quantity, curve: Curve, above: float) -> None:
    """Mark the last point and write its value above the panel, ΔM left and ΔD right, where no curve is in the way.

    The value is the whole one, not in the unit of the axis, whose label stands at another panel perhaps.

    Arguments:
        above: How many letters ΔM's stands above ΔD's, where a panel has no room for both in a line.
    """
    if not len(curve.steps):
        return
    ax.plot(curve.steps[-1:], curve.mean[-1:], "o", color=q.color, clip_on=False, label=f"{q.symbol} at the end")
    x, side = (0, "left") if q is QUANTITIES[0] else (1, "right")
    ax.annotate(
        f"{q.symbol} {short_number(float(curve.mean[-1]))}",
        (x, 1),
        xycoords="axes fraction",
        xytext=(0, 2 + (above * small() if q is QUANTITIES[0] else 0)),
        textcoords="offset points",
        ha=side,
        va="bottom",
        color=q.color,
        fontsize=small(),
    )


def _name_row(ax: Axes, axis: Axis) -> None:
    """Write the axis to the left of the panel's own label."""
    ax.annotate(
        f"{axis}-wise",
        (0, 0.5),
        xycoords=ax.yaxis.label,
        xytext=(-3, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        rotation=90,
        weight="bold",
    )


def _legend(canvas: Canvas[Any], band: bool) -> None:
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=q.color, linestyle=q.line, label=f"{q.symbol}, {q.word} ({side} axis)")
        for q, side in zip(QUANTITIES, ("left", "right"), strict=True)
    ]
    if band:
        handles.append(Patch(color=ink(), alpha=0.2, linewidth=0, label="± one standard deviation over the matrices"))
    canvas.legend([[(handle, str(handle.get_label())) for handle in handles]], handlelength=2.2)
