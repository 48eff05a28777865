"""Axes and legends of the figures: numbers with their unit, step numbers, letters, legends in rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from deltaw.analysis.figures.drawing.style import PAPER_WIDTH, Scale, inches, method_styles
from deltaw.analysis.tables.tidy import display_name

Which = Literal["x", "y"]


def letter(index: int) -> str:
    """Return the letter of a panel: a to z, then aa, ab, …

    Example:
        >>> letter(0), letter(26)
        ('a', 'aa')
    """
    head, tail = divmod(index, 26)
    return (letter(head - 1) if head else "") + "abcdefghijklmnopqrstuvwxyz"[tail]


def signed(value: float, digits: int = 2) -> str:
    """Return a number with a true minus sign.

    Example:
        >>> signed(-0.625), signed(float("nan"))
        ('−0.62', 'undefined')
    """
    return f"{value:.{digits}f}".replace("-", "−") if np.isfinite(value) else "undefined"


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
    """A figure with a panel above another for each method.

    Arguments:
        figure: It.
        panels: The upper and the lower panel of each method.
        bars: The axes of the colour bars beside each panel row, the upper and the lower of each block.
        across: How many methods are beside each other.
    """

    figure: Figure
    panels: list[tuple[Axes, Axes]]
    bars: list[tuple[Axes, Axes]]
    across: int


def method_columns(count: int, width: float | None, extra: float, *, bars: bool = False) -> Columns:
    """Return a figure with two panels for each of so many methods, at most five methods beside each other.

    Arguments:
        count: How many methods.
        width: In inches; ``None`` for up to a paper's.
        extra: The height that legend and notes need, in inches.
        bars: Make axes for colour bars.
    """
    blocks, across = grid_of_panels(count, 5)
    figure = Figure(
        figsize=(inches(width, max(3.3, width_of(across, 1.7))), 0.3 + extra + 2.7 * blocks), layout="constrained"
    )
    ratios = [1.0] * across + ([0.07] if bars else [])
    grid = figure.add_gridspec(2 * blocks, len(ratios), width_ratios=ratios)

    def pair(block: int, column: int) -> tuple[Axes, Axes]:
        return figure.add_subplot(grid[2 * block, column]), figure.add_subplot(grid[2 * block + 1, column])

    panels = [pair(number // across, number % across) for number in range(count)]
    return Columns(figure, panels, [pair(block, across) for block in range(blocks)] if bars else [], across)


def width_of(across: int, panel: float = 2.3) -> float:
    """Return the width in inches of so many panels beside each other, no more than a paper's."""
    return min(PAPER_WIDTH, 1.0 + panel * across)


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
        label = rf"{label} ($10^{{{exponent}}}$)"
    axis = _span(ax, which, *limits)
    axis.set_major_locator(MaxNLocator(nbins=nbins, min_n_ticks=3, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(value / unit, 6):g}".replace("-", "−")))
    axis.set_label_text(label)


def log_axis(ax: Axes, which: Which, low: float, high: float, label: str) -> None:
    """Make an axis logarithmic from low to high, both above 0."""
    (ax.set_xscale if which == "x" else ax.set_yscale)("log", nonpositive="mask")
    axis = _span(ax, which, low, high)
    axis.set_major_locator(LogLocator(numticks=6))
    axis.set_minor_locator(LogLocator(subs="auto", numticks=99) if log10(high / low) < 4 else NullLocator())
    axis.set_minor_formatter(NullFormatter())
    if log10(high / low) < 1.9:  # hardly a power of ten is inside
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=9))
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
    """Give a y axis room for the values: from 0 on a linear scale, from the smallest above 0 on a logarithmic one."""
    high = float(values.max())
    if scale == "linear" or high <= 0:
        low = 0.0 if values.min() > 0.02 * high else -0.03 * high  # a line along 0 is to be seen
        number_axis(ax, "y", (low, 1.06 * high) if high > 0 else (-0.03, 1.0), label)
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
    ax.xaxis.set_major_locator(MaxNLocator(nbins=nbins, integer=True, steps=[1, 2, 4, 5, 10]))
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


def row_legend(figure: Figure, rows: Sequence[Sequence[tuple[Artist, str]]]) -> None:
    """Put a legend above the panels with the given rows; matplotlib would fill it column by column."""
    width = max(len(row) for row in rows)
    blank = (Line2D([], [], linestyle=""), "")
    filled = [[*row, *[blank] * (width - len(row))] for row in rows]
    entries = [filled[row][column] for column in range(width) for row in range(len(rows))]
    figure.legend(
        [handle for handle, _ in entries],
        [label for _, label in entries],
        loc="outside upper center",
        ncols=width,
        handlelength=1.2,
        handletextpad=0.3,
        columnspacing=0.9,
    )


def method_entries(methods: Sequence[str]) -> list[tuple[Artist, str]]:
    """Return the legend's entries of methods: a line in each one's colour with its marker."""
    styles = method_styles(methods)
    return [
        (Line2D([], [], color=color, marker=marker), display_name(name)) for name, (color, marker) in styles.items()
    ]


def in_rows(entries: Sequence[tuple[Artist, str]], across: int) -> list[list[tuple[Artist, str]]]:
    """Return entries in rows of nearly equal length, no longer than ``across``."""
    rows, width = grid_of_panels(len(entries), across)
    return [list(entries[row * width : (row + 1) * width]) for row in range(rows)]
