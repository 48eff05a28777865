"""The ΔM, ΔD cloud of DoRA's Figure 2 as it moves over training."""

from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure, SubFigure

from deltaw.analysis.figures.drawing.axes import (
    correlation_text,
    grid_of_panels,
    letter,
    number_axis,
    padded,
    width_of,
)
from deltaw.analysis.figures.drawing.canvas import Canvas, most_across
from deltaw.analysis.figures.drawing.facts import facts_of, method_name, methods_named
from deltaw.analysis.figures.drawing.layer_positions import Position, positions_of
from deltaw.analysis.figures.drawing.saving import Movie
from deltaw.analysis.figures.drawing.style import area, check_choice, thin
from deltaw.analysis.figures.kinds.cloud import COLUMNS, SOURCE, clean, edge, layer_look, start_note
from deltaw.analysis.measures.change import Axis
from deltaw.analysis.measures.correlation import correlation
from deltaw.analysis.tables.tidy import require_columns, require_one_start, select
from deltaw.analysis.tables.walk import spread_out

MOST_FRAMES = 40


def animation(
    frame: pd.DataFrame,
    *,
    kind: str | None = "query",
    axis: Axis = "column",
    methods: Sequence[str] | None = None,
    width: float | None = None,
    ax: Axes | SubFigure | Figure | None = None,
) -> Movie:
    """Draw ΔM against ΔD as in `cloud`, a frame per recorded step: each matrix a point that leaves its trail.

    The scales are those of the whole training, so that nothing but the points moves. Above each panel stands
    Pearson's r over the points of that step. Of more than 40 steps so many are shown, evenly spread. A run that did
    not record a step stays where it last was.

    Arguments:
        frame: The changes from the base of one or several runs, concatenated, columns as in `Trajectory.changes`.
        kind: The kind of matrix, "query"; ``None`` for all kinds together.
        axis: "column" for DoRA's equations 3 and 4, "row" for what its authors' code normalises.
        methods: The methods to draw, in this order; ``None`` for all, in the order of ``METHODS``.
        width: Of a new figure, in inches; ``None`` for up to 7, or more with larger letters. More than three methods go
            into further rows.
        ax: Where to draw: an Axes for a single method, a SubFigure or a Figure; ``None`` for a new Figure.

    Returns:
        The movie, for `save`, with its figure; nothing is shown or written.

    Raises:
        OptionError: There is no such kind, method or axis, or the table is of another form.

    Example:
        >>> columns = ["run", "method", "module", "layer", "kind", "axis", "step_from", "step_to", "delta_m", "delta_d"]
        >>> rows = [
        ...     ("a", "lora", f"{layer}.query", layer, "query", "column", pd.NA, step, 0.1 * step, 0.01 * step + layer)
        ...     for layer in range(3)
        ...     for step in (10, 20)
        ... ]
        >>> movie = animation(pd.DataFrame(rows, columns=columns))
        >>> movie.show(10)
        >>> movie.steps, movie.figure.axes[0].collections[1].get_offsets()[:, 1].tolist()
        ([10, 20], [1.0, 1.0, 1.0])
    """
    check_choice("axis", axis, get_args(Axis))
    require_columns(frame, COLUMNS, SOURCE)
    require_one_start(frame, SOURCE)
    rows, chosen = select(frame, kind, methods)
    rows, notes = clean(rows, axis, layers=False)
    steps = spread_out(sorted(int(step) for step in rows["step_to"].unique()), MOST_FRAMES)
    positions = positions_of(rows)
    colors, legend = layer_look(positions, notes)
    blocks, across = grid_of_panels(len(chosen), most_across(3, ax, width, 1.5))
    height = 0.25 + 1.95 * blocks
    canvas = Canvas(ax, width, (width_of(across), height), panels=len(chosen), choose="choose one with methods=")
    panels = [
        _Panel(panel, rows[rows["method"] == method], colors)
        for method, panel in zip(chosen, canvas.grid(across), strict=True)
    ]
    for index, (method, panel) in enumerate(zip(chosen, panels, strict=True)):
        canvas.title(panel.ax, method_name(method), letter(index), beside="r = −0.9999")
    if legend:
        canvas.legend(legend)
    what = f"ΔM against ΔD for {methods_named(rows)} as they move over training, a point per matrix"
    notes = ["Pearson's r of the points at the step", *notes]
    canvas.finish(facts_of(what, rows, "step_to", pairs=start_note(rows, axis), notes=notes, averaged=False))
    label = canvas.label
    below = label.get_text()

    def show(step: int) -> None:
        for panel in panels:
            panel.show(step)
        label.set_text(f"step {step:,}\n{below}" if ax is None else f"{below}\nstep {step:,}")

    show(steps[-1])
    moving = [label, *(artist for panel in panels for artist in panel.moving)]
    return Movie(canvas.root, steps, show, moving)


class _Panel:
    """The points of a method, each with its trail, and r above them."""

    def __init__(self, ax: Axes, rows: pd.DataFrame, colors: Mapping[Position, str]) -> None:
        self.ax = ax
        rows = rows.sort_values("step_to", kind="stable")
        groups = rows.groupby(["run", "module"], sort=False)
        self._paths = [
            (one["step_to"].to_numpy(dtype=float), one[["delta_d", "delta_m"]].to_numpy()) for _, one in groups
        ]
        matrices = rows.drop_duplicates(["run", "module"])
        shades = [colors[position] for position in zip(matrices["stack"], matrices["layer"], strict=True)]
        self._trails = LineCollection([], colors=shades, linewidths=thin(), alpha=0.5, zorder=2)
        ax.add_collection(self._trails)
        nowhere = np.zeros(len(shades))
        self._points = ax.scatter(nowhere, nowhere, s=area(), c=shades, **edge(), zorder=3)
        number_axis(ax, "x", padded(rows["delta_d"].min(), rows["delta_d"].max()), "ΔD")
        number_axis(ax, "y", padded(rows["delta_m"].min(), rows["delta_m"].max()), "ΔM")
        self._title = ax.set_title("", loc="right")
        self.moving: list[Artist] = [self._trails, self._points, self._title]

    def show(self, step: int) -> None:
        """Move every point to where it was at a step, or last was before it; a run that begins later is not there."""
        seen = [points[: np.searchsorted(steps, step, side="right")] for steps, points in self._paths]
        seen = [points for points in seen if len(points)]
        self._trails.set_segments(seen)
        ends = np.array([points[-1] for points in seen]) if seen else np.empty((0, 2))
        self._points.set_offsets(ends)
        (row,) = correlation(pd.DataFrame(ends, columns=["delta_d", "delta_m"]), by=[]).to_dict("records")
        self._title.set_text(f"r = {correlation_text(row['pearson'])}")
