"""DoRA's Figures 2 and 7: does a matrix that turns more also change more in magnitude?"""

from collections.abc import Sequence, Set
from typing import Any, get_args

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.transforms import Affine2D

from deltaw.adapters.errors import OptionError
from deltaw.analysis.figures.drawing.axes import (
    correlation_text,
    grid_of_panels,
    letter,
    number_axis,
    padded,
    width_of,
)
from deltaw.analysis.figures.drawing.canvas import Canvas, Target, most_across
from deltaw.analysis.figures.drawing.facts import facts_of, method_name, methods_named
from deltaw.analysis.figures.drawing.layer_positions import (
    Position,
    layer_entries,
    position_colors,
    positions_of,
    with_positions,
)
from deltaw.analysis.figures.drawing.rows import finite
from deltaw.analysis.figures.drawing.style import BLUE, area, check_choice, ground, ink, pale, thin
from deltaw.analysis.measures.change import Axis
from deltaw.analysis.measures.correlation import correlation
from deltaw.analysis.tables.tidy import require_columns, require_one_start, select
from deltaw.analysis.tables.walk import spread_out

SOURCE = 'Trajectory.changes("base")'
COLUMNS = ("run", "method", "module", "layer", "kind", "axis", "step_from", "step_to", "delta_m", "delta_d")
FEWEST_MATRICES = 3  # fewer say nothing of how the line would be with others
RESAMPLES = 300
NO_LAYERS = "no matrix has a layer number, so all have one colour"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")  # more steps than these are told apart by size


def cloud(
    frame: pd.DataFrame,
    *,
    kind: str | None = "query",
    axis: Axis = "column",
    methods: Sequence[str] | None = None,
    steps: int | Sequence[int] | None = 4,
    width: float | None = None,
    ax: Target | None = None,
) -> Target:
    """Draw ΔM against ΔD, one panel per method, a point per matrix and step, with the regression line and Pearson's r.

    The colour is the layer, the marker the step; matrices without layer numbers have one colour. Where a model has an
    encoder and a decoder, each has colours of its own, and so has the decoder's attention to the encoder. Every panel
    has its own scales, as in the paper. Points of several runs of a method lie in one panel. Pearson's r and the line
    are those of the points that are shown. The band holds 95 % of the lines that come out when matrices, and steps of
    each, are drawn anew; fewer than three matrices have none.

    Arguments:
        frame: The changes from the base (or from the first step) of one or several runs, concatenated, columns as in
            `Trajectory.changes`.
        kind: The kind of matrix, "query" (Figure 2) or "value" (Figure 7); ``None`` for all kinds together.
        axis: "column" for the paper's equations 3 and 4, "row" for what its authors' code normalises.
        methods: The methods to draw, in this order; ``None`` for all, in the order of ``METHODS``.
        steps: How many steps, evenly spread with the last among them, 4 as in the paper; or the steps themselves; or
            ``None`` for all. Step 0, where nothing has moved, is left out unless it is named.
        width: Of a new figure, in inches; ``None`` for up to 7, or more with larger letters. More than three methods go
            into further rows.
        ax: Where to draw: an Axes for a single method, a SubFigure or a Figure; ``None`` for a new Figure.

    Returns:
        What was drawn on, as seaborn does: ``ax``, or the new Figure. Nothing is shown or written.

    Raises:
        OptionError: There is no such kind, method, axis or step, or the table is of another form.

    Source:
        DoRA, section 3.2, equations 3 and 4, Figures 2 and 7.

    Example:
        >>> columns = ["run", "method", "module", "layer", "kind", "axis", "step_from", "step_to", "delta_m", "delta_d"]
        >>> rows = [
        ...     ("a", "lora", f"{layer}.query", layer, "query", "column", pd.NA, step, 0.1 * step, 0.01 * step + layer)
        ...     for layer in range(3)
        ...     for step in (10, 20)
        ... ]
        >>> cloud(pd.DataFrame(rows, columns=columns)).axes[0].get_title("left")
        '(a) LoRA'
    """
    check_choice("axis", axis, get_args(Axis))
    require_columns(frame, COLUMNS, SOURCE)
    require_one_start(frame, SOURCE)
    rows, chosen = select(frame, kind, methods)
    rows, notes = clean(rows, axis, layers=False)
    rows = _shown(rows, steps)
    positions = positions_of(rows)
    colors, layer_rows = layer_look(positions, notes)
    looks = _markers(int(rows["turn"].max()) + 1)
    blocks, across = grid_of_panels(len(chosen), most_across(3, ax, width, 1.5))
    legend = [*layer_rows, *_step_entries(rows, looks)]
    height = 0.1 + 1.95 * blocks
    canvas = Canvas(ax, width, (width_of(across), height), panels=len(chosen), choose="choose one with methods=")
    banded = False
    for index, (method, panel) in enumerate(zip(chosen, canvas.grid(across), strict=True)):
        found = rows[rows["method"] == method]
        for turn, (marker, size) in enumerate(looks):
            points = found[found["turn"] == turn]
            shades = [colors[position] for position in zip(points["stack"], points["layer"], strict=True)]
            panel.scatter(points["delta_d"], points["delta_m"], s=size, c=shades, marker=marker, **edge(), zorder=3)
        line, has_band = _regression(panel, found)
        banded |= has_band
        heights = pd.concat([found["delta_m"], pd.Series(line)])  # the line is not cut by the frame
        number_axis(panel, "x", padded(found["delta_d"].min(), found["delta_d"].max()), "ΔD")
        number_axis(panel, "y", padded(heights.min(), heights.max()), "ΔM")
        canvas.title(panel, method_name(method), letter(index), beside=panel.get_title("right"))
    canvas.legend(legend)
    interval = "band: 95 % of lines, bootstrapped over the matrices" if banded else ""
    what = f"ΔM against ΔD for {methods_named(rows)}, a point per matrix and step, with the line of least squares"
    facts = facts_of(
        what,
        rows,
        "step_to",
        pairs=start_note(rows, axis),
        interval=interval,
        notes=[_counted(rows), *notes],
        averaged=False,
    )
    return canvas.finish(facts)


def layer_look(
    positions: Sequence[Position], notes: Sequence[str]
) -> tuple[dict[Position, str], list[list[tuple[Artist, str]]]]:
    """Return the colours of the positions and their rows of the legend; one colour and no row without layers."""
    if NO_LAYERS in notes:
        return dict.fromkeys(positions, BLUE), []
    colors = position_colors(positions)
    return colors, layer_entries(positions, colors)


def edge() -> dict[str, Any]:
    """Return the edge of a point, which keeps it apart from those it lies on."""
    return {"linewidths": thin(0.25), "edgecolors": ground()}


def clean(rows: pd.DataFrame, axis: Axis, *, layers: bool = True) -> tuple[pd.DataFrame, list[str]]:
    """Return the finite points along an axis with their positions in the model, and what was left out.

    Without ``layers`` matrices may have no layer number: where none has one, all have the same position.
    """
    along = rows[rows["axis"] == axis]
    if along.empty:
        raise OptionError(f"the table has no rows of axis {axis!r}; make it with axes=({axis!r},)")
    if not layers and along["layer"].isna().all():
        along, unnumbered = along.assign(stack="", layer=0), [NO_LAYERS]
    else:
        along, unnumbered = with_positions(along)
    along, undefined = finite(along, ("delta_m", "delta_d"))
    return along, [*unnumbered, *undefined]


def start_note(rows: pd.DataFrame, axis: Axis) -> str:
    """Say what the changes are from and along which axis."""
    start = rows["step_from"].dropna()
    return f"changes since {'the base weights' if start.empty else f'step {int(start.iloc[0])}'}, {axis} by {axis}"


def _shown(rows: pd.DataFrame, steps: int | Sequence[int] | None) -> pd.DataFrame:
    """Keep the wanted steps of every run and number them in the column ``turn``; the last is the last of all."""
    turns: dict[tuple[str, str, int], int] = {}
    for (run, method), found in rows.groupby(["run", "method"])["step_to"]:
        there = sorted(int(step) for step in found.unique())
        turns |= {(str(run), str(method), step): turn for turn, step in enumerate(_wanted(there, steps))}
    keys = list(zip(rows["run"].astype(str), rows["method"], rows["step_to"], strict=True))
    kept = [key in turns for key in keys]
    if not any(kept):
        there = sorted(int(step) for step in rows["step_to"].unique())
        raise OptionError(f"no run has a step of {steps}; there are {', '.join(map(str, spread_out(there, 8)))}")
    return rows[kept].assign(turn=[turns[key] for key in keys if key in turns])


def _wanted(there: list[int], steps: int | Sequence[int] | None) -> list[int]:
    moved = [step for step in there if step > 0] or there
    if steps is None:
        return moved
    if isinstance(steps, Sequence | Set):
        return [step for step in there if step in set(steps)]
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise OptionError(f"steps is {steps!r}; choose 1 or more, a list of steps, or None for all")
    marks = [moved[-1] * turn / steps for turn in range(1, steps + 1)]
    return sorted({min(moved, key=lambda step: abs(step - mark)) for mark in marks})


def _markers(count: int) -> list[tuple[str, float]]:
    """Return marker and size of each step; many steps are circles that grow."""
    if count <= len(MARKERS):
        return [(marker, area()) for marker in MARKERS[:count]]
    return [("o", float(size)) for size in np.linspace(0.17 * area(), 1.45 * area(), count)]


def _step_entries(rows: pd.DataFrame, looks: list[tuple[str, float]]) -> list[list[tuple[Artist, str]]]:
    """Return the legend's row of the steps: their numbers where all runs have the same, else the paper's words."""
    steps = [sorted(int(step) for step in found.unique()) for _, found in rows.groupby("turn")["step_to"]]
    if all(len(found) == 1 for found in steps):
        names = [str(found[0]) for found in steps]
    else:
        names = [*(f"{turn + 1}." for turn in range(len(steps) - 1)), "last"]
    entries: list[tuple[Artist, str]] = [(Line2D([], [], linestyle=""), "step")]
    for turn in spread_out(range(len(looks)), len(MARKERS)):
        marker, size = looks[turn]
        entries.append((Line2D([], [], linestyle="", marker=marker, color=pale(), markersize=size**0.5), names[turn]))
    return [entries]


def _regression(ax: Axes, points: pd.DataFrame) -> tuple[list[float], bool]:
    """Draw the line through the points over the panel, and write r above it; return its ends' heights, and whether
    there is a band."""
    (row,) = correlation(points, by=[]).to_dict("records")
    ax.set_title(f"r = {correlation_text(row['pearson'])}", loc="right")
    if not np.isfinite(row["slope"]):
        return [], False
    ends = np.array([points["delta_d"].min(), points["delta_d"].max()])
    heights = row["intercept"] + row["slope"] * ends
    ax.plot(ends, heights, "--", color=ink(), linewidth=thin(), zorder=2)
    # The steps of a matrix are no independent points, so they are drawn together.
    matrices = points["run"].astype(str) + " " + points["module"].astype(str)
    if matrices.nunique() < FEWEST_MATRICES:
        return list(heights), False
    # Seaborn's least squares lose a slope where ΔD is far below 1, so it sees both as shares of their largest.
    sizes = points["delta_d"].abs().max(), points["delta_m"].abs().max()
    shares = {"x": points["delta_d"] / sizes[0], "y": points["delta_m"] / sizes[1]}
    beside = Figure().add_subplot()
    sns.regplot(**shares, units=matrices, n_boot=RESAMPLES, seed=0, scatter=False, ax=beside)
    band = beside.collections[0].get_paths()[0].transformed(Affine2D().scale(*sizes))
    ax.add_patch(PathPatch(band, color=ink(), alpha=0.1, linewidth=0, zorder=1))
    return list(heights), True


def _counted(rows: pd.DataFrame) -> str:
    """Say how many points r is of, and of how many runs."""
    counts = rows.groupby("method").size()
    low, high = counts.min(), counts.max()
    runs = rows.groupby("method")["run"].nunique().max()
    text = f"Pearson's r of {low if low == high else f'{low} to {high}'} points per panel"
    return text if runs == 1 else f"{text}, from up to {runs} runs"
