"""Do two updates use the same directions? LoRA's Figures 3 and 4, and the principal angles."""

from collections.abc import Sequence
from math import ceil

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from deltaw.adapters.errors import OptionError
from deltaw.analysis.figures.drawing.axes import grid_of_panels, letter, row_legend, width_of
from deltaw.analysis.figures.drawing.layer_positions import (
    Position,
    layer_entries,
    position_colors,
    position_name,
    positions_of,
    with_positions,
)
from deltaw.analysis.figures.drawing.rows import finite
from deltaw.analysis.figures.drawing.style import inches, paper_style
from deltaw.analysis.tables.tidy import of_kind, require_columns
from deltaw.analysis.tables.walk import spread_out

PAIR = ("run_first", "run_second", "step_first", "step_second", "module", "layer", "kind", "side")
OVERLAP_COLUMNS = (*PAIR, "i", "j", "overlap")
ANGLE_COLUMNS = (*PAIR, "index", "angle")

_MOST = 6  # panels of an overlap


def overlap(
    frame: pd.DataFrame, *, kind: str | None = "query", layers: Sequence[int] | None = None, width: float | None = None
) -> Figure:
    """Draw φ(i, j), how much of the first i directions of one update lies in the first j of another, a panel per layer.

    Dark is 0, nothing in common, bright is 1, one inside the other. White is where an update has no such direction.

    Arguments:
        frame: What ``subspace_overlap`` returns.
        kind: The kind of matrix, "query"; ``None`` for all, which is the mean over a layer's matrices.
        layers: The layers; ``None`` for up to six, evenly spread over the model.
        width: In inches; ``None`` for up to 7, a paper's width.

    Returns:
        The figure; nothing is shown or written.

    Raises:
        OptionError: There is no such kind or layer, no update has directions, or the table is of another form.

    Source:
        LoRA, section 7.2, equation 4, Figures 3 and 4.

    Example:
        >>> head = ("a", "b", 9, 9, "0.query", 0, "query", "right")
        >>> rows = [(*head, i, j, 1.0 if i == j else 0.5) for i in (1, 2) for j in (1, 2)]
        >>> overlap(pd.DataFrame(rows, columns=list(OVERLAP_COLUMNS))).axes[0].images[0].get_array().data.tolist()
        [[1.0, 0.5], [0.5, 1.0]]
    """
    rows, notes = _rows(frame, OVERLAP_COLUMNS, "subspace_overlap", kind, layers)
    finite(rows, ["overlap"])  # something must be there to draw; the holes stay
    positions = positions_of(rows)
    shown = (
        [positions[position] for position in spread_out(range(len(positions)), _MOST)] if layers is None else positions
    )
    with paper_style():
        blocks, across = grid_of_panels(len(shown))
        wide = inches(width, width_of(across, 2.0))
        height = 0.5 + 0.14 * len(notes) + blocks * ((wide - 0.9) / across + 0.33)
        figure = Figure(figsize=(wide, height), layout="constrained")
        panels = []
        for number, position in enumerate(shown):
            ax = figure.add_subplot(blocks, across, number + 1)
            found = rows[(rows["stack"] == position[0]) & (rows["layer"] == position[1])]
            table = found.pivot_table(index="i", columns="j", values="overlap", dropna=False)
            image = ax.imshow(
                np.ma.masked_invalid(table.to_numpy()), cmap="cividis", vmin=0, vmax=1, origin="lower", aspect="auto"
            )
            for axis, values in ((ax.xaxis, table.columns), (ax.yaxis, table.index)):
                ticks = range(0, len(values), ceil(len(values) / 5))
                axis.set_ticks(ticks, [f"{values[tick]:g}" for tick in ticks])
            ax.set_xlabel("j" if number + across >= len(shown) else "")
            ax.set_ylabel("i" if number % across == 0 else "")
            ax.set_title(f"({letter(number)}) {position_name(position)}", loc="left")
            panels.append(ax)
        figure.colorbar(image, ax=panels, pad=0.02, aspect=20 * blocks, label="overlap φ(i, j)")
        figure.supxlabel("\n".join([_pair(rows), *notes]))
    return figure


def angles(
    frame: pd.DataFrame, *, kind: str | None = "query", layers: Sequence[int] | None = None, width: float | None = None
) -> Figure:
    """Draw the principal angles between the directions of two updates in degrees, smallest first, a line per layer.

    0° is a direction that both have, 90° one that the other has nothing of.

    Arguments:
        frame: What ``subspace_angles`` returns.
        kind: The kind of matrix, "query"; ``None`` for all, which is the mean over a layer's matrices.
        layers: The layers; ``None`` for all.
        width: In inches; ``None`` for 4.5.

    Returns:
        The figure; nothing is shown or written.

    Raises:
        OptionError: There is no such kind or layer, no update has directions, or the table is of another form.

    Source:
        Björck and Golub 1973.

    Example:
        >>> rows = [("a", "b", 9, 9, "0.query", 0, "query", "right", i, np.pi / 4 * i) for i in (1, 2)]
        >>> [float(y) for y in angles(pd.DataFrame(rows, columns=list(ANGLE_COLUMNS))).axes[0].lines[0].get_ydata()]
        [45.0, 90.0]
    """
    rows, notes = _rows(frame, ANGLE_COLUMNS, "subspace_angles", kind, layers)
    rows, undefined = finite(rows, ["angle"])
    notes = [*notes, *undefined]
    positions: list[Position] = positions_of(rows)
    colors = position_colors(positions)
    with paper_style():
        legend = layer_entries(positions, colors)
        figure = Figure(
            figsize=(inches(width, 4.5), 2.5 + 0.17 * len(legend) + 0.14 * len(notes)), layout="constrained"
        )
        ax = figure.add_subplot()
        for position in positions:
            found = rows[(rows["stack"] == position[0]) & (rows["layer"] == position[1])]
            line = np.rad2deg(found.groupby("index")["angle"].mean())
            marker = "o" if len(line) <= 32 else ""
            ax.plot(
                line.index, line, marker=marker, markersize=3, color=colors[position], label=position_name(position)
            )
        ax.axhline(90, color="0.35", linestyle=":", linewidth=0.9, label="_orthogonal", zorder=1)
        ax.set_ylim(0, 94)
        ax.set_yticks([0, 30, 60, 90], ["0°", "30°", "60°", "90°"])
        ax.set_ylabel("principal angle")
        ax.set_xlabel("index")
        ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
        row_legend(figure, legend)
        figure.supxlabel("\n".join([_pair(rows), *notes]))
    return figure


def _rows(
    frame: pd.DataFrame, columns: Sequence[str], source: str, kind: str | None, layers: Sequence[int] | None
) -> tuple[pd.DataFrame, list[str]]:
    require_columns(frame, columns, source)
    rows, notes = with_positions(of_kind(frame, kind))
    if layers is not None:
        if not isinstance(layers, Sequence):
            raise OptionError(f"layers is {layers!r}; pass a list of layers, or None")
        there = sorted({int(layer) for layer in rows["layer"]})
        for layer in layers:
            if layer not in there:
                raise OptionError(f"there is no layer {layer}; there are {', '.join(map(str, there))}")
        rows = rows[rows["layer"].isin(list(layers))]
    return rows, notes


def _pair(rows: pd.DataFrame) -> str:
    """Say which two updates are held against each other."""
    first = rows.iloc[0]
    names = [f"{first[f'run_{one}']}, step {first[f'step_{one}']}" for one in ("first", "second")]
    where = {"right": "input space", "left": "output space"}.get(first["side"], first["side"])
    return f"{names[0]} (i) and {names[1]} (j), {where}"
