"""Do two updates use the same directions? LoRA's Figures 3 and 4, and the principal angles."""

from collections.abc import Sequence
from dataclasses import replace
from math import ceil

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.lines import Line2D

from deltaw.adapters.errors import OptionError
from deltaw.analysis.figures.drawing.axes import Fitting, grid_of_panels, hatch, letter, width_of
from deltaw.analysis.figures.drawing.canvas import Canvas, Target, most_across
from deltaw.analysis.figures.drawing.facts import Facts, facts_of, plain, with_notes
from deltaw.analysis.figures.drawing.layer_positions import (
    Position,
    layer_entries,
    position_colors,
    position_name,
    positions_of,
    with_positions,
)
from deltaw.analysis.figures.drawing.rows import finite
from deltaw.analysis.figures.drawing.style import area, ink, mark, pale, thin
from deltaw.analysis.tables.tidy import of_kind, require_columns
from deltaw.analysis.tables.walk import spread_out

PAIR = ("run_first", "run_second", "step_first", "step_second", "module", "layer", "kind", "side")
OVERLAP_COLUMNS = (*PAIR, "i", "j", "overlap")
ANGLE_COLUMNS = (*PAIR, "index", "angle")

_MOST = 6  # panels of an overlap


def overlap(
    frame: pd.DataFrame,
    *,
    kind: str | None = "query",
    layers: Sequence[int] | None = None,
    width: float | None = None,
    ax: Target | None = None,
) -> Target:
    """Draw φ(i, j), how much of the first i directions of one update lies in the other's first j, one panel per layer.

    Dark is 0, nothing in common, bright is 1, one inside the other. Hatched is where an update has no such direction.
    Random directions in n dimensions have max(i, j)/n on average: the mark at the colour bar goes up to the largest,
    and a dot is where two updates have no more than that.

    Arguments:
        frame: What ``subspace_overlap`` returns; without its column ``expected`` no level of chance is drawn.
        kind: The kind of matrix, "query"; ``None`` for all, which is the mean over a layer's matrices.
        layers: The layers; ``None`` for up to six, evenly spread over the model.
        width: Of a new figure, in inches; ``None`` for up to 7, or more with larger letters.
        ax: Where to draw: an Axes for a single layer, a SubFigure or a Figure; ``None`` for a new Figure.

    Returns:
        What was drawn on, as seaborn does: ``ax``, or the new Figure. Nothing is shown or written.

    Raises:
        OptionError: There is no such kind or layer, no update has directions, or the table is of another form.

    Source:
        LoRA, section 7.2, equation 4, Figures 3 and 4; Absil, Edelman, Koev 2006, section 2 for the level of chance.

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
    blocks, across = grid_of_panels(len(shown), most_across(3, ax, width, 1.3))
    wide = width_of(across, 2.0)
    size = (wide, 0.3 + blocks * ((wide - 0.9) / across + 0.33))
    canvas = Canvas(ax, width, size, panels=len(shown), choose="choose one layer with layers=")
    panels = canvas.grid(across)
    rows = rows.assign(overlap=rows["overlap"].astype("float64"))
    for number, (position, panel) in enumerate(zip(shown, panels, strict=True)):
        found = rows[(rows["stack"] == position[0]) & (rows["layer"] == position[1])]
        table = found.pivot_table(index="i", columns="j", values="overlap", dropna=False)
        values = np.ma.masked_invalid(table.to_numpy())
        image = panel.imshow(values, cmap="cividis", vmin=0, vmax=1, origin="lower", aspect="auto")
        hatch(panel, np.ma.getmaskarray(values), offset=-0.5)
        if "expected" in found:
            chance = found.pivot_table(index="i", columns="j", values="expected", dropna=False)
            at_i, at_j = np.nonzero((values <= chance.to_numpy()).filled(False))
            panel.scatter(at_j, at_i, s=area(0.4), color="white", linewidths=0)
        panel.grid(False)
        for axis, marks in ((panel.xaxis, table.columns), (panel.yaxis, table.index)):
            ticks = range(0, len(marks), ceil(len(marks) / 5))
            axis.set_ticks(ticks, [f"{marks[tick]:g}" for tick in ticks])
        panel.set_xlabel("j")
        panel.set_ylabel("i" if number % across == 0 else "")
        canvas.title(panel, position_name(position), letter(number))
    bar = canvas.figure.colorbar(image, ax=panels, pad=0.02, aspect=20 * blocks, label="overlap φ(i, j)")
    facts = _facts("How much two updates share, φ(i, j)", rows, notes)
    if "expected" in rows:
        low, high = float(rows["expected"].min()), float(rows["expected"].max())
        bar.ax.plot(
            [0, 0],
            [0, high],
            color="tab:red",
            linewidth=thin(2.5),
            clip_on=False,
            transform=bar.ax.get_yaxis_transform(),
        )
        facts = with_notes(facts, f"red: chance, max(i, j)/n, {low:.2g} to {high:.2g}; a dot is no more than that")
    return canvas.finish(facts)


def angles(
    frame: pd.DataFrame,
    *,
    kind: str | None = "query",
    layers: Sequence[int] | None = None,
    width: float | None = None,
    ax: Target | None = None,
) -> Target:
    """Draw the principal angles between the directions of two updates in degrees, smallest first, a line per layer.

    0° is a direction that both have, 90° one that the other has nothing of. The dashed line is the level of chance, the
    angles of random directions: arccos √x of the zeros of the mean characteristic polynomial
    Σ_l (−1)^l C(k, l) [m]_l / [n]_l x^(k−l) of k and m directions in n dimensions
    (`deltaw.analysis.measures.chance.expected_angles`).

    Arguments:
        frame: What ``subspace_angles`` returns; without its column ``expected`` no level of chance is drawn.
        kind: The kind of matrix, "query"; ``None`` for all, which is the mean over a layer's matrices.
        layers: The layers; ``None`` for all.
        width: Of a new figure, in inches; ``None`` for 4.5, or more with larger letters.
        ax: Where to draw: an Axes for a single layer, a SubFigure or a Figure; ``None`` for a new Figure.

    Returns:
        What was drawn on, as seaborn does: ``ax``, or the new Figure. Nothing is shown or written.

    Raises:
        OptionError: There is no such kind or layer, no update has directions, or the table is of another form.

    Source:
        Björck and Golub 1973; Absil, Edelman, Koev 2006 for the level of chance.

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
    canvas = Canvas(ax, width, (4.5, 2.2))
    panel = canvas.panel()
    for position in positions:
        found = rows[(rows["stack"] == position[0]) & (rows["layer"] == position[1])]
        line = np.rad2deg(found.groupby("index")["angle"].mean())
        marker = "o" if len(line) <= 32 else ""
        panel.plot(
            line.index, line, marker=marker, markersize=mark(), color=colors[position], label=position_name(position)
        )
    legend = layer_entries(positions, colors)
    if "expected" in rows and rows["expected"].notna().any():
        chance = np.rad2deg(rows.groupby("index")["expected"].mean())
        panel.plot(chance.index, chance, "--", color=ink(), linewidth=thin(), label="random directions", zorder=1)
        dashed: Artist = Line2D([], [], linestyle="--", color=ink(), linewidth=thin())
        legend.append([(dashed, "random directions")])
    panel.axhline(90, color=pale(), linestyle=":", linewidth=thin(), label="_orthogonal", zorder=1)
    panel.set_ylim(0, 94)
    panel.set_yticks([0, 30, 60, 90], ["0°", "30°", "60°", "90°"])
    panel.set_ylabel("principal angle")
    panel.set_xlabel("index, smallest angle first")
    panel.xaxis.set_major_locator(Fitting(8, integer=True, min_n_ticks=1))
    canvas.legend(legend)
    return canvas.finish(_facts("The principal angles between two updates", rows, notes))


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


def _facts(what: str, rows: pd.DataFrame, notes: Sequence[str]) -> Facts:
    """Return the facts of two updates that are held against each other."""
    first = rows.iloc[0]
    names = [f"{plain(str(first[f'run_{one}']))}, step {first[f'step_{one}']:,}" for one in ("first", "second")]
    where = {"right": "input space", "left": "output space"}.get(first["side"], plain(str(first["side"])))
    facts = facts_of(what, rows, pairs=f"{names[0]} (i) and {names[1]} (j), {where}", notes=notes)
    apart = rows.attrs.get("spacing")
    return replace(facts, steps=f"checkpoints {apart}") if isinstance(apart, str) and apart else facts
