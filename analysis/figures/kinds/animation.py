"""The ΔM, ΔD cloud of DoRA's Figure 2 as it moves over training."""

from collections.abc import Sequence
from typing import get_args

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure

from deltaw.analysis.figures.drawing.axes import (
    grid_of_panels,
    letter,
    number_axis,
    padded,
    row_legend,
    signed,
    width_of,
)
from deltaw.analysis.figures.drawing.layer_positions import layer_entries, position_colors, positions_of
from deltaw.analysis.figures.drawing.saving import Movie
from deltaw.analysis.figures.drawing.style import check_choice, inches, paper_style
from deltaw.analysis.figures.kinds.cloud import COLUMNS, EDGE, SOURCE, clean, start_note
from deltaw.analysis.measures.change import Axis
from deltaw.analysis.measures.correlation import correlation
from deltaw.analysis.tables.tidy import display_name, require_columns, require_one_start, select
from deltaw.analysis.tables.walk import spread_out

MOST_FRAMES = 120


def animation(
    frame: pd.DataFrame,
    *,
    kind: str | None = "query",
    axis: Axis = "column",
    methods: Sequence[str] | None = None,
    width: float | None = None,
) -> Movie:
    """Draw ΔM against ΔD as in `cloud`, a frame per recorded step: each matrix a point that leaves its trail.

    The scales are those of the whole training, so that nothing but the points moves. Above each panel stands
    Pearson's r over the points of that step. Of more than 120 steps so many are shown, evenly spread. A run that did
    not record a step stays where it last was.

    Arguments:
        frame: The changes from the base of one or several runs, concatenated, columns as in `Trajectory.changes`.
        kind: The kind of matrix, "query"; ``None`` for all kinds together.
        axis: "column" for DoRA's equations 3 and 4, "row" for what its authors' code normalises.
        methods: The methods to draw, in this order; ``None`` for all, in the order of ``METHODS``.
        width: In inches; ``None`` for up to 7. More than three methods go into further rows.

    Returns:
        The movie, for `save`; nothing is shown or written.

    Raises:
        OptionError: There is no such kind, method or axis, no matrix has a layer number, or the table is of another
            form.

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
    rows, notes = clean(rows, axis)
    steps = spread_out(sorted(int(step) for step in rows["step_to"].unique()), MOST_FRAMES)
    positions = positions_of(rows)
    colors = position_colors(positions)
    panels: list[tuple[Axes, pd.DataFrame, LineCollection, PathCollection]] = []
    with paper_style():
        blocks, across = grid_of_panels(len(chosen))
        legend = layer_entries(positions, colors)
        height = 0.55 + 0.17 * len(legend) + 0.14 * len(notes) + 1.95 * blocks
        figure = Figure(figsize=(inches(width, width_of(across)), height), layout="constrained")
        for index, method in enumerate(chosen):
            ax = figure.add_subplot(blocks, across, index + 1)
            found = rows[rows["method"] == method].sort_values("step_to", kind="stable")
            matrices = found.drop_duplicates(["run", "module"])
            shades = [colors[position] for position in zip(matrices["stack"], matrices["layer"], strict=True)]
            trails = LineCollection([], colors=shades, linewidths=0.8, alpha=0.5, zorder=2)
            ax.add_collection(trails)
            points = ax.scatter(np.zeros(len(shades)), np.zeros(len(shades)), s=18, c=shades, **EDGE, zorder=3)
            number_axis(ax, "x", padded(found["delta_d"].min(), found["delta_d"].max()), "ΔD")
            number_axis(ax, "y", padded(found["delta_m"].min(), found["delta_m"].max()), "ΔM")
            ax.set_title(f"({letter(index)}) {display_name(method)}", loc="left")
            panels.append((ax, found, trails, points))
        row_legend(figure, legend)
        below = [f"{start_note(rows, axis)}; r: of the points at the step", *notes]

    def show(step: int) -> None:
        with paper_style():
            for ax, found, trails, points in panels:
                seen = found[found["step_to"] <= step]
                paths = [
                    one[["delta_d", "delta_m"]].to_numpy() for _, one in seen.groupby(["run", "module"], sort=False)
                ]
                trails.set_segments(paths)
                # A run that begins later is not there yet.
                ends = [path[-1] for path in paths]
                points.set_offsets(ends or np.empty((0, 2)))
                now = pd.DataFrame(ends or np.empty((0, 2)), columns=["delta_d", "delta_m"])
                (row,) = correlation(now, by=[]).to_dict("records")
                ax.set_title(f"r = {signed(row['pearson'])}", loc="right")
            figure.supxlabel("\n".join([f"step {step}", *below]))

    show(steps[-1])
    return Movie(figure, steps, show)
