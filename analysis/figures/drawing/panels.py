"""The layout of the symmetry and the updates figure: a column of panels per method, a row of panels per axis."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from deltaw.adapters.errors import OptionError
from deltaw.adapters.methods.registry import METHODS
from deltaw.analysis.figures.drawing.axes import letter, step_axis
from deltaw.analysis.figures.drawing.rows import runs_note
from deltaw.analysis.figures.drawing.style import (
    BLUE,
    GREEN,
    PAPER_WIDTH,
    SMALLEST,
    Scale,
    check_choice,
    inches,
    paper_style,
)
from deltaw.analysis.measures.change import Axis
from deltaw.analysis.tables.tidy import display_name, select

Share = Literal["all", "adapters", "none"]

COLUMNS = ("run", "method", "module", "kind", "axis", "step_from", "step_to", "delta_m", "delta_d")
ROWS: tuple[Axis, Axis] = ("column", "row")  # BoRA's order: columns on top


@dataclass(frozen=True)
class Quantity:
    """One of the two curves of a panel."""

    column: str
    symbol: str
    word: str
    color: str
    line: Literal["-", "--"]


QUANTITIES = (
    Quantity("delta_m", "ΔM", "magnitude", BLUE, "-"),
    Quantity("delta_d", "ΔD", "direction", GREEN, "--"),
)


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
    kind: str | None,
    methods: Sequence[str] | None,
    share: Share,
    scale: Scale,
    band: bool,
    width: float | None,
    end_values: bool,
) -> Figure:
    """Draw ΔM and ΔD of every method along both axes.

    Arguments:
        frame: A checked table with ``COLUMNS``.
        end_values: Mark the last point of each curve and write its value above the panel.
        kind, methods, share, scale, band, width: As in `symmetry`.
    """
    check_choice("share", share, get_args(Share))
    check_choice("scale", scale, get_args(Scale))
    rows, chosen = select(frame, kind, methods)
    for axis in ROWS:
        if not (rows["axis"] == axis).any():
            raise OptionError(f'the table has no rows of axis {axis!r}; make it with axes=("row", "column")')
    rows, notes = _clean(rows)
    curves = {
        (q.symbol, str(method), str(axis)): _curve(found, q.column)
        for (method, axis), found in rows.groupby(["method", "axis"])
        for q in QUANTITIES
    }
    if not band:
        curves = {key: Curve(c.steps, c.mean, c.mean, c.mean) for key, c in curves.items()}
    with paper_style():
        return _draw(curves, {name: scale_group(name, share) for name in chosen}, notes, scale, width, end_values)


def scale_group(method: str, share: Share) -> str:
    """Return the name of the group of methods that share their scales."""
    if share == "adapters":
        factory = METHODS.get(method)
        injects = getattr(getattr(factory, "func", factory), "injects", True)  # of a variant, that of its class
        return "adapters" if injects else "ft"
    return "all" if share == "all" else method


def _clean(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Keep the pairs of steps that all runs of a method share, drop NaN and infinity, and say what was left out."""
    notes = runs_note(rows)
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
    curves: dict[tuple[str, str, str], Curve],
    groups: dict[str, str],
    notes: list[str],
    scale: Scale,
    width: float | None,
    end_values: bool,
) -> Figure:
    """Lay out the panels.

    Arguments:
        curves: By symbol, method and axis.
        groups: The methods in order, and the group that each shares its scales with.
    """
    methods = list(groups)
    own_scales = len(set(groups.values())) == len(methods)  # every panel has numbers on both sides
    blocks = ceil(len(methods) / (3 if own_scales else 5))  # more go into further pairs of rows below
    across = ceil(len(methods) / blocks)
    width = inches(width, min(PAPER_WIDTH, 1.6 + (1.8 if own_scales else 1.4) * across))
    figure = Figure(figsize=(width, 0.8 + blocks * (2.9 if end_values else 2.6)), layout="constrained")
    grid = figure.add_gridspec(2 * blocks, across)
    together: dict[tuple[str, str], list[Curve]] = {
        (q.symbol, group): [] for q in QUANTITIES for group in groups.values()
    }
    for (symbol, method, _), curve in curves.items():
        together[symbol, groups[method]].append(curve)
    limits = {key: _limits(found, scale) for key, found in together.items()}
    panels: list[Axes] = []
    for block in range(blocks):
        beside = methods[block * across : (block + 1) * across]
        for level, axis in enumerate(ROWS):
            for number, method in enumerate(beside):
                left = figure.add_subplot(grid[2 * block + level, number], sharex=panels[0] if panels else None)
                right = left.twinx()
                # Numbers only at the outer panels of those that share a scale.
                outer = (
                    number == 0 or groups[beside[number - 1]] != groups[method],
                    number == len(beside) - 1 or groups[beside[number + 1]] != groups[method],
                )
                for q, ax, numbers in zip(QUANTITIES, (left, right), outer, strict=True):
                    ax.set_label(f"{method} {axis} {q.column}")
                    curve = curves.get((q.symbol, method, axis), _EMPTY)
                    unit = _scale_axis(ax, q, limits[q.symbol, groups[method]], scale, numbers)
                    _plot(ax, q, curve)
                    if end_values:
                        _write_end(ax, q, curve, unit)
                left.set_title(
                    f"({letter(len(panels))}) {display_name(method)}", loc="left", pad=11 if end_values else 3
                )
                left.tick_params(labelbottom=level == 1)
                if number == 0:
                    _name_row(left, axis)
                if number == len(beside) - 1 < across - 1:
                    right.set_in_layout(
                        False
                    )  # its numbers stand in the empty cell beside it and need no room of theirs
                panels.append(left)
    # All panels share this axis; three numbers of neighbours don't touch.
    ends = [step for curve in curves.values() for step in (*curve.steps[:1], *curve.steps[-1:])]
    step_axis(panels[0], ends, label="", nbins=3)
    figure.supxlabel("\n".join(["training step", *notes]))
    _legend(figure, any((curve.high > curve.low).any() for curve in curves.values()), width)
    return figure


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


def _scale_axis(ax: Axes, q: Quantity, limits: tuple[float, float], scale: Scale, numbers: bool) -> float:
    """Set limits, ticks and label; return the unit that the numbers are in."""
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
    return unit


def _write_end(ax: Axes, q: Quantity, curve: Curve, unit: float) -> None:
    """Mark the last point and write its value above the panel, ΔM left and ΔD right, where no curve is in the way."""
    if not len(curve.steps):
        return
    end = curve.mean[-1] / unit
    digits = 3 if ax.get_yscale() == "linear" and end >= 0.01 else 2  # what two values side by side have room for
    ax.plot(curve.steps[-1:], curve.mean[-1:], "o", color=q.color, clip_on=False, label=f"{q.symbol} at the end")
    x, side = (0, "left") if q is QUANTITIES[0] else (1, "right")
    ax.annotate(
        f"{q.symbol} {end:.{digits}g}",
        (x, 1),
        xycoords="axes fraction",
        xytext=(0, 2),
        textcoords="offset points",
        ha=side,
        va="bottom",
        color=q.color,
        fontsize=SMALLEST,
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


def _legend(figure: Figure, band: bool, width: float) -> None:
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=q.color, linestyle=q.line, label=f"{q.symbol}, {q.word} ({side} axis)")
        for q, side in zip(QUANTITIES, ("left", "right"), strict=True)
    ]
    if band:
        handles.append(Patch(color="0.5", alpha=0.3, linewidth=0, label="± one standard deviation over the matrices"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles) if width > 6 else 1)
