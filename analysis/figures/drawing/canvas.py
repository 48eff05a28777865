"""Where a figure is drawn: a new Figure, one of the caller's, a SubFigure, or a single Axes; and what stands around."""

import re
from collections.abc import Sequence
from math import ceil
from textwrap import wrap
from typing import Any, Generic, cast

from matplotlib import rcParams
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.text import Text
from typing_extensions import TypeVar

from deltaw.adapters.errors import OptionError
from deltaw.analysis.figures.drawing.facts import Facts, remember
from deltaw.analysis.figures.drawing.saving import keep_style
from deltaw.analysis.figures.drawing.style import PAPER_SIZE, inches
from deltaw.analysis.figures.drawing.words import fitted, in_lines, text_width

Target = TypeVar("Target", bound=Axes | SubFigure | Figure, default=Figure)
Entries = Sequence[tuple[Artist, str]]

_LETTER = 0.53  # the width of a letter, in font sizes
_LEGEND_ROW, _NOTE = 0.17, 0.14  # heights in inches


def papers_width(ax: Axes | SubFigure | Figure | None, width: float | None) -> float:
    """Return the width that a caller gives, in inches where letters have the papers' size; infinite without one."""
    if isinstance(ax, SubFigure | Figure):
        given = ax.bbox.width / ax.dpi
    elif ax is None and width is not None:
        given = inches(width, 0.0)
    else:  # one panel, or what Canvas refuses
        return float("inf")
    return float(given * PAPER_SIZE / rcParams["font.size"])


def most_across(most: int, ax: Axes | SubFigure | Figure | None, width: float | None, least: float) -> int:
    """Return how many panels stand beside each other: so many, or fewer where each would have less than a width.

    Arguments:
        ax, width: What the caller gives.
        least: In inches, where letters have the papers' size.

    Example:
        >>> most_across(3, None, None, 1.5), most_across(3, None, 3.3 * rcParams["font.size"] / PAPER_SIZE, 1.5)
        (3, 2)
    """
    return int(max(1.0, min(most, papers_width(ax, width) // least)))


class Canvas(Generic[Target]):
    """Where a figure is drawn, and its panels, legend and notes.

    Arguments:
        ax: What the caller gave: an Axes, for a single panel; a SubFigure or Figure; ``None`` for a new Figure.
        width: The caller's width in inches, of a new figure; ``None`` for the one of ``size``.
        size: The width and height of a new figure's panels in inches where letters have the papers' size; with larger
            letters, as ``rcParams["font.size"]`` has them, they grow in proportion. Legend and notes add to the height.
        panels: How many panels there are; more than one do not fit into an Axes.
        choose: How a caller gets a single panel, for the message.

    Raises:
        OptionError: ax is something else, or there are several panels for one Axes; a width is given with ``ax``.
    """

    def __init__(
        self,
        ax: Target | None,
        width: float | None,
        size: tuple[float, float],
        *,
        panels: int = 1,
        choose: str = "",
    ) -> None:
        if ax is not None and not isinstance(ax, Axes | SubFigure | Figure):
            raise OptionError(f"ax is {ax!r}; pass a matplotlib Axes, SubFigure or Figure, or None for a new Figure")
        if isinstance(ax, Axes) and panels > 1:
            raise OptionError(
                f"ax is one Axes, and there are {panels} panels; {choose + ', or ' if choose else ''}"
                "pass a SubFigure or a Figure"
            )
        self._scale = rcParams["font.size"] / PAPER_SIZE
        wide = inches(width, size[0] * self._scale)
        if ax is not None and width is not None:
            raise OptionError(f"width is {width!r}; it is that of a new figure: leave it out with ax")
        self.panels, self._new = panels, ax is None
        self._titles: list[tuple[Axes, str, str, dict[str, Any]]] = []
        self.ax: Axes | None = ax if isinstance(ax, Axes) else None
        self._drawn: Axes | SubFigure | Figure
        if ax is None:
            self.figure: Figure | SubFigure = Figure(figsize=(wide, size[1] * self._scale), layout="constrained")
            self._drawn = self.figure
            keep_style(self.figure)
        else:
            self.figure = ax.figure if isinstance(ax, Axes) else ax
            self._drawn = ax

    @property
    def root(self) -> Figure:
        """The whole figure, of which the caller may have given a part."""
        found = self.figure
        while isinstance(found, SubFigure):
            found = found.figure
        return found

    @property
    def width(self) -> float:
        """The width in inches."""
        box = self.figure.bbox if self.ax is None else self.ax.bbox
        return float(box.width / self.figure.dpi)

    def panel(self) -> Axes:
        """Return the only panel."""
        return self.figure.add_subplot() if self.ax is None else self.ax

    def grid(self, across: int) -> list[Axes]:
        """Return the panels in rows of so many, the last row in the middle."""
        if self.ax is not None:
            return [self.ax]
        rows = -(-self.panels // across)
        grid = self.figure.add_gridspec(rows, 2 * across)
        last = self.panels - (rows - 1) * across
        places = []
        for number in range(self.panels):
            row, column = divmod(number, across)
            start = 2 * column + (across - last if row == rows - 1 else 0)
            places.append(self.figure.add_subplot(grid[row, start : start + 2]))
        return places

    def _room(self, ax: Axes) -> float:
        """Return about the width in inches of a panel with what stands beside it, before anything is laid out."""
        spec = ax.get_subplotspec()
        if self.ax is not None or spec is None:
            return float(ax.bbox.width / self.root.dpi)
        return self.width * len(spec.colspan) / spec.get_gridspec().ncols

    def title(self, ax: Axes, text: str, letter: str, *, beside: str = "", **more: Any) -> None:
        """Write a panel's title, with its letter unless it is the only one that the caller asked for.

        A long one is broken into lines by `finish`, so that it ends before the next panel's.

        Arguments:
            beside: What stands at the right end of its line; below it, where there is no room for both.
        """
        text = text if self.ax is not None else f"({letter}) {text}"
        ax.set_title(text, loc="left", **more)
        self._titles.append((ax, text, beside, more))

    def legend(self, rows: Sequence[Entries], **more: Any) -> None:
        """Put a legend with the given rows above the panels, or into the only one.

        Rows that are too long for the figure are broken. Matplotlib would fill it column by column.
        """
        if self.ax is None:
            rows = self._rows_that_fit(rows, **more)
        width = max(len(row) for row in rows)
        blank = (Line2D([], [], linestyle=""), "")
        filled = [[*row, *[blank] * (width - len(row))] for row in rows]
        entries = [filled[row][column] for column in range(width) for row in range(len(rows))]
        look: dict[str, Any] = {"ncols": width, "handlelength": 1.2, "handletextpad": 0.3, "columnspacing": 0.9} | more
        self._grow(len(rows), _LEGEND_ROW)
        where, loc = (self.figure, "outside upper center") if self.ax is None else (self.ax, "best")
        where.legend([handle for handle, _ in entries], [label for _, label in entries], **({"loc": loc} | look))

    def _rows_that_fit(self, rows: Sequence[Entries], *, handlelength: float = 1.2, **_: Any) -> Sequence[Entries]:
        """Return the rows of a legend, broken so that it is no wider than the figure, long names cut in the middle."""
        font = FontProperties(size=rcParams["legend.fontsize"])
        size = font.get_size_in_points()
        handle_and_gaps, room = (handlelength + 1.4) * size, self.width * 72 - 2 * size
        found = [[(handle, fitted(label, room - handle_and_gaps, font)) for handle, label in row] for row in rows]
        for most in range(max(len(row) for row in found), 0, -1):
            evenly = [(row, _even(len(row), most)) for row in found]
            broken = [row[at : at + each] for row, each in evenly for at in range(0, len(row), each)]
            columns = [[row[at][1] for row in broken if at < len(row)] for at in range(max(map(len, broken)))]
            if sum(handle_and_gaps + max(text_width(label, font) for label in column) for column in columns) <= room:
                break
        return broken

    def _fit_titles(self) -> None:
        """Break long titles into lines. What room they have is known once the figure is laid out, which takes time."""
        font = FontProperties(size=rcParams["axes.titlesize"], weight=rcParams["axes.titleweight"])
        widths = [text_width(text, font) + text_width(beside, font) for _, text, beside, _ in self._titles]
        if all(width < 0.6 * 72 * self._room(ax) for width, (ax, *_) in zip(widths, self._titles, strict=True)):
            return
        self.root.draw_without_rendering()
        points, gap = 72 / self.root.dpi, 0.7 * font.get_size_in_points()
        panels = [ax.get_window_extent() for ax, *_ in self._titles]
        most = 1
        for (ax, text, beside, more), box in zip(self._titles, panels, strict=True):
            row = [other.x0 for other in panels if other.x0 > box.x1 and other.y0 < (box.y0 + box.y1) / 2 < other.y1]
            room = (min(row, default=self.figure.bbox.x1) - box.x0) * points - gap
            lines = [line for part in text.split("\n") for line in in_lines(part, room, font)]
            if beside and text_width(f"{lines[-1]}  {beside}", font) > box.width * points:
                lines.append("")
            ax.set_title("\n".join(lines), loc="left", **more)
            most = max(most, len(lines) - text.count("\n"))
        self._grow((most - 1) * len({round(box.y0) for box in panels}), _NOTE)

    def finish(self, facts: Facts, label: str = "", *, under: Axes | None = None, said: str = "") -> Target:
        """Write the facts beneath the panels, keep them for the caption, and return what the caller gets.

        Arguments:
            facts: Of what was drawn.
            label: What the steps' axis is called where all panels share it.
            under: The panel beneath whose own label they stand, where something is beside it.
            said: The one that the legend says already.
        """
        under = self.ax or under
        share = 1.0 if self.ax is not None or under is None else 0.65
        self._fit_titles()
        lines = [part for line in facts.lines() if line != said for part in self.wrapped(line, share)]
        if under is not None:
            self._grow(len(lines), _NOTE)
            under.set_xlabel("\n".join([under.get_xlabel() or label, *lines]).strip("\n"))
            self.label: Text = under.xaxis.label
        else:
            lines = [*([label] if label else []), *lines]
            self._grow(len(lines), _NOTE)
            self.label = self.figure.supxlabel("\n".join(lines))
        remember(self._drawn, facts)
        return cast("Target", self._drawn)

    def wrapped(self, text: str, share: float = 1.0) -> list[str]:
        """Return a note in lines that fit a share of the width, broken after a comma or semicolon if that will do."""
        points = FontProperties(size=rcParams["figure.labelsize"]).get_size_in_points()
        longest = max(20, int((share * self.width - 0.1) * 72 / (_LETTER * points)))
        lines: list[str] = []
        for piece in re.split(r"(?<=[;,]) ", text):
            if lines and len(lines[-1]) + 1 + len(piece) <= longest:
                lines[-1] += f" {piece}"
            else:
                lines += wrap(piece, longest, break_on_hyphens=False) or [piece]
        return lines

    def _grow(self, lines: int, height: float) -> None:
        """Make room for lines of text in a new figure."""
        if self._new:
            wide, high = self.root.get_size_inches()
            self.root.set_size_inches(wide, high + lines * height * self._scale)


def _even(count: int, most: int) -> int:
    """Return how many of so many entries stand in a row, where rows are of nearly equal length."""
    return ceil(count / ceil(count / most))
