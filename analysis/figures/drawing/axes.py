"""Axes and legends of the figures: numbers with their unit, step numbers, letters, legends in rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import Affine2D, Transform

from deltaw.analysis.figures.drawing.canvas import Canvas
from deltaw.analysis.figures.drawing.facts import method_name
from deltaw.analysis.figures.drawing.style import PAPER_WIDTH, Scale, method_styles, pale, thin

Which = Literal["x", "y"]

_APART = 0.018  # of an axis' length, between two markers beside each other
EMPTY: dict[str, Any] = {"facecolor": "0.92", "edgecolor": "0.6", "hatch": "////", "linewidth": 0}


def letter(index: int) -> str:
    """Return the letter of a panel: a to z, then aa, ab, …

    Example:
        >>> letter(0), letter(26)
        ('a', 'aa')
    """
    head, tail = divmod(index, 26)
    return (letter(head - 1) if head else "") + "abcdefghijklmnopqrstuvwxyz"[tail]


def correlation_text(value: float) -> str:
    """Return a correlation with a true minus sign and two digits, or with as many as tell it from 1.

    Example:
        >>> correlation_text(-0.625), correlation_text(0.997), correlation_text(1.0), correlation_text(float("nan"))
        ('−0.62', '0.997', '1.00', 'undefined')
    """
    if not np.isfinite(value):
        return "undefined"
    one = 1 - abs(value) < 1e-9
    digits = 2 if one else next(count for count in range(2, 12) if float(f"{abs(value):.{count}f}") < 1)
    return f"{value:.{digits}f}".replace("-", "−")


def short_number(value: float) -> str:
    """Return a number in three digits, with its power of ten where it is small or large.

    Example:
        >>> short_number(0.0396), short_number(6e-05), short_number(0.0)
        ('0.0396', '6×10⁻⁵', '0')
    """
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.3g}".replace("-", "−")
    factor, _, exponent = f"{value:.2e}".partition("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{float(factor):g}×10{raised}".replace("-", "−")


def aside(ax: Axes, number: int, count: int, extent: float, *, room: float = 1.0) -> Transform:
    """Return what draws one of so many lines a little to the side, so that no marker hides another's; the data stay.

    Arguments:
        extent: The length of the x axis, in data.
        room: What lies between two neighbouring points of a line; the lines take up to 0.7 of it.
    """
    apart = min(0.7 * room / count, _APART * extent)
    return Affine2D().translate(apart * (number - (count - 1) / 2), 0) + ax.transData


def grid_of_panels(count: int, most: int = 3) -> tuple[int, int]:
    """Return rows and columns for so many panels.

    Example:
        >>> [grid_of_panels(count) for count in (1, 2, 5, 9)]
        [(1, 1), (1, 2), (2, 3), (3, 3)]
    """
    rows = ceil(count / most)
    return rows, ceil(count / rows)


@dataclass(frozen=True)
class Columns:
    """A column of panels for each method, a panel for each measure.

    Arguments:
        panels: The panels of each method, from above.
        bars: The axes of the colour bars beside each row of panels, of each block; empty without.
        across: How many methods are beside each other.
    """

    panels: list[list[Axes]]
    bars: list[list[Axes]]
    across: int


def method_columns(canvas: Canvas[Any], count: int, levels: int, most: int, *, bars: bool = False) -> Columns:
    """Return panels for so many methods.

    Arguments:
        canvas: Where they stand.
        count: How many methods.
        levels: How many panels a method has.
        most: How many methods may stand beside each other.
        bars: Make axes for colour bars; the one beside a single panel of the caller's takes some of its room.
    """
    if canvas.ax is not None:
        return Columns([[canvas.ax]], [], 1)
    blocks, across = grid_of_panels(count, most)
    ratios = [1.0] * across + ([0.07] if bars else [])
    grid = canvas.figure.add_gridspec(levels * blocks, len(ratios), width_ratios=ratios)

    def column(block: int, place: int) -> list[Axes]:
        return [canvas.figure.add_subplot(grid[levels * block + level, place]) for level in range(levels)]

    panels = [column(number // across, number % across) for number in range(count)]
    return Columns(panels, [column(block, across) for block in range(blocks)] if bars else [], across)


def columns_size(count: int, levels: int, extra: float, most: int) -> tuple[float, float]:
    """Return the width and height of a figure of `method_columns`, with the height that legend and notes need."""
    blocks, across = grid_of_panels(count, most)
    return max(3.3, width_of(across, 1.7)), 0.3 + extra + 1.35 * levels * blocks


def width_of(across: int, panel: float = 2.3) -> float:
    """Return the width in inches of so many panels beside each other, no more than a paper's."""
    return min(PAPER_WIDTH, 1.0 + panel * across)


class Fitting(MaxNLocator):
    """Round numbers, as many as asked for, or as their letters have room for where the axis is short."""

    def __init__(self, most: int, **more: Any) -> None:
        super().__init__(nbins=most, **more)
        self._most = most

    def tick_values(self, vmin: float, vmax: float) -> Any:
        """Return the numbers between two values."""
        room = self._most if self.axis is None else max(2, min(self._most, self.axis.get_tick_space()))
        self.set_params(nbins=room)
        return super().tick_values(vmin, vmax)


class _ShortLog(LogLocator):
    """1, 2, 5 times powers of ten; without the 5 and 2 where the axis has no room for their letters."""

    def tick_values(self, vmin: float, vmax: float) -> Any:
        """Return the numbers between two values."""
        room = 9 if self.axis is None else max(1, self.axis.get_tick_space() - 1)
        for subs in ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
            self.set_params(subs=subs, numticks=9)
            values = np.asarray(super().tick_values(vmin, vmax))
            found = values[(values >= vmin) & (values <= vmax)]
            if len(found) <= room:
                break
        return found


def number_axis(ax: Axes, which: Which, limits: tuple[float, float], label: str, *, nbins: int = 5) -> None:
    """Give an axis short numbers; their power of ten stands in the label.

    Arguments:
        ax, which: The axes, and which of their two.
        limits: What it is to span.
        label: Its label, to which the unit is added.
    """
    highest = max(abs(limits[0]), abs(limits[1]))
    exponent = floor(log10(highest / 2)) if highest > 0 else 0  # numbers from 1 to 20
    unit = 1.0
    if exponent not in (-1, 0, 1):
        unit = 10.0**exponent
        label = rf"{label} ($10^{{{exponent}}}$)" if label else label  # one without a label has its neighbour's unit
    axis = _span(ax, which, *limits)
    axis.set_major_locator(Fitting(nbins, min_n_ticks=3 if which == "y" else 2, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(value / unit, 6):g}".replace("-", "−")))
    axis.set_label_text(label)


def log_axis(ax: Axes, which: Which, low: float, high: float, label: str) -> None:
    """Make an axis logarithmic from low to high, both above 0."""
    _span(ax, which, low, high)  # first: the scale cannot find limits of its own around one value
    (ax.set_xscale if which == "x" else ax.set_yscale)("log", nonpositive="mask")
    axis = _span(ax, which, low, high)
    axis.set_major_locator(LogLocator(numticks=6))
    axis.set_minor_locator(LogLocator(subs="auto", numticks=99) if log10(high / low) < 4 else NullLocator())
    axis.set_minor_formatter(NullFormatter())
    if log10(high / low) < 1.9:  # hardly a power of ten is inside
        axis.set_major_locator(_ShortLog())
        axis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
        axis.set_minor_locator(NullLocator())
    axis.set_label_text(label)


def _short(value: float) -> str:
    """Return a number that is 1, 2 or 5 times a power of ten."""
    if 0.01 <= value < 10_000:
        return f"{value:g}"
    exponent = floor(log10(value) + 1e-9)
    factor = round(value / 10.0**exponent)
    times = "" if factor == 1 else rf"{factor} \cdot "
    return f"${times}10^{{{exponent}}}$"


def value_axis(ax: Axes, values: "pd.Series[float]", label: str, scale: Scale) -> None:
    """Give a y axis room for the values: from 0 on a linear scale, from the smallest above 0 on a logarithmic one.

    On a linear scale an axis of values below 0, as rates have, reaches down to them.
    A line along 0 lies on the frame, which would hide half of it; such lines are drawn over the frame.
    """
    low, high = float(values.min()), float(values.max())
    if scale == "linear" and low < -0.02 * max(high, 0.0):
        number_axis(ax, "y", padded(low, max(high, 0.0)), label)
        ax.axhline(0.0, color=pale(), linewidth=thin(), zorder=0.5)
    elif scale == "linear" or high <= 0:
        number_axis(ax, "y", (0.0, 1.06 * high if high > 0 else 1.0), label)
        for line in ax.lines:
            heights = np.asarray(line.get_ydata(), dtype=float)
            if len(heights) and np.nanmin(heights) <= 0.02 * high:
                line.set(clip_on=False, zorder=3)
    else:
        log_axis(ax, "y", float(values[values > 0].min()) / 1.3, high * 1.3, label)


def _span(ax: Axes, which: Which, low: float, high: float) -> Axis:
    (ax.set_xlim if which == "x" else ax.set_ylim)(low, high)
    return ax.xaxis if which == "x" else ax.yaxis


def step_axis(ax: Axes, steps: Sequence[float], *, label: str = "training step", nbins: int = 5) -> None:
    """Few, short step numbers over the span of the steps."""
    low, high = min(steps, default=0.0), max(steps, default=0.0)
    if low < high:
        margin = 0.03 * float(high - low)
        ax.set_xlim(low - margin, high + margin)
        ax.xaxis.set_major_locator(Fitting(nbins, integer=True, min_n_ticks=1, steps=[1, 2, 4, 5, 10]))
    else:  # no number but its own
        ax.set_xlim(low - 1, high + 1)
        ax.set_xticks([low])
    ax.xaxis.set_major_formatter(FuncFormatter(lambda step, _: step_name(step)))
    ax.set_xlabel(label)


def step_name(step: float) -> str:
    """Return a step's number, short.

    Example:
        >>> step_name(500), step_name(12_500)
        ('500', '12.5k')
    """
    return f"{step / 1000:g}k" if step >= 10_000 else f"{step:g}"


def padded(low: float, high: float, margin: float = 0.08) -> tuple[float, float]:
    """Return limits with some room around low and high.

    Example:
        >>> padded(1.0, 1.0)
        (0.92, 1.08)
    """
    room = margin * ((high - low) or abs(high) or 1.0)
    return low - room, high + room


def hatch(ax: Axes, cells: "np.ndarray[Any, Any]", offset: float = 0.0) -> None:
    """Hatch the cells of a map that hold nothing: what was not recorded, or does not exist.

    Arguments:
        cells: True where there is nothing, (rows, columns).
        offset: Where the first cell begins.
    """
    for row, column in zip(*np.nonzero(cells), strict=True):
        ax.add_patch(Rectangle((column + offset, row + offset), 1, 1, **EMPTY))


def method_entries(methods: Sequence[str]) -> list[tuple[Artist, str]]:
    """Return the legend's entries of methods: a line in each one's colour with its marker."""
    styles = method_styles(methods)
    return [(Line2D([], [], color=color, marker=marker), method_name(name)) for name, (color, marker) in styles.items()]


def in_rows(entries: Sequence[tuple[Artist, str]], across: int) -> list[list[tuple[Artist, str]]]:
    """Return entries in rows of nearly equal length, no longer than ``across``."""
    rows, width = grid_of_panels(len(entries), across)
    return [list(entries[row * width : (row + 1) * width]) for row in range(rows)]
