"""Where a matrix stands in its model: encoder, decoder or cross attention, and the layer there."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D

from deltaw.adapters.errors import OptionError
from deltaw.analysis.figures.drawing.axes import Fitting
from deltaw.analysis.figures.drawing.style import is_dark, small
from deltaw.analysis.names import stack_of
from deltaw.analysis.tables.walk import spread_out

STACKS = ("", "encoder", "down", "mid", "up", "single", "decoder", "cross")
# One ramp per stack, light to dark; blue, orange and grey stay apart for colour-blind readers.
_RAMPS = {"": "viridis", "encoder": "Blues", "decoder": "Oranges", "cross": "Greys"}
_RAMPS |= {"down": "Blues", "mid": "Greys", "up": "Oranges", "single": "Oranges"}
_GAP = 1.0  # between stacks, in layers
MOST_MARKED = 40  # layers; the markers of more lie on each other

Position = tuple[str, int]


def with_positions(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Add the column ``stack`` to rows of matrices that have a layer number, and say how many have none.

    The stack is "" throughout where the matrices are all of one stack.

    Raises:
        OptionError: No matrix has a layer number.
    """
    unnumbered = rows["layer"].isna()
    if unnumbered.all():
        raise OptionError(
            f"no matrix has a layer number in its name (there are {', '.join(sorted(set(rows['module']))[:3])}); "
            "this figure is by layer, see the table instead"
        )
    notes = []
    if unnumbered.any():
        notes.append(f"{rows.loc[unnumbered, 'module'].nunique()} matrices without a layer number left out")
    rows = rows[~unnumbered]
    stacks = rows["module"].map({module: stack_of(module) for module in rows["module"].unique()})
    if stacks.nunique() == 1:
        stacks = pd.Series("", rows.index)
    return rows.assign(stack=stacks, layer=rows["layer"].astype(int)), notes


def positions_of(rows: pd.DataFrame) -> list[Position]:
    """Return the stacks and layers of a table with positions, each once, in the model's order."""
    found = {(str(stack), int(layer)) for stack, layer in zip(rows["stack"], rows["layer"], strict=True)}
    return sorted(found, key=lambda position: (STACKS.index(position[0]), position[1]))


def position_name(position: Position) -> str:
    """Return how a position is called.

    Example:
        >>> position_name(("", 3)), position_name(("cross", 0))
        ('layer 3', 'cross 0')
    """
    return f"{position[0] or 'layer'} {position[1]}"


def position_colors(positions: Sequence[Position]) -> dict[Position, str]:
    """Return a colour per position: a ramp per stack, light below and dark above; on a dark ground the other way."""
    colors = {}
    night = is_dark()
    for stack in dict.fromkeys(stack for stack, _ in positions):
        layers = [layer for other, layer in positions if other == stack]
        # Not so light that it is lost on white.
        low, high = (0.9, 0.0) if stack == "" else (0.38, 1.0)
        if night:  # nor so dark that it is lost on black
            low, high = (0.3, 1.0) if stack == "" else (0.75, 0.1)
        for share, layer in zip(np.linspace(0, 1, max(len(layers), 2)), layers, strict=False):
            colors[stack, layer] = to_hex(colormaps[_RAMPS[stack]](low + share * (high - low)))
    return colors


def axis_coordinates(positions: Sequence[Position]) -> dict[Position, float]:
    """Return where each position stands on an axis of layers: its number, or with several stacks one after the other.

    Example:
        >>> axis_coordinates([("", 2), ("", 5)])
        {('', 2): 2.0, ('', 5): 5.0}
        >>> axis_coordinates([("encoder", 0), ("encoder", 1), ("decoder", 0)])
        {('encoder', 0): 0.0, ('encoder', 1): 1.0, ('decoder', 0): 3.0}
    """
    coordinates: dict[Position, float] = {}
    start = 0.0
    for stack in dict.fromkeys(stack for stack, _ in positions):
        layers = [layer for other, layer in positions if other == stack]
        first = 0 if stack == "" else layers[0]
        coordinates |= {(stack, layer): start + layer - first for layer in layers}
        start += layers[-1] - first + 1 + _GAP
    return coordinates


def line_over_layers(values: "pd.Series[float]", coordinates: dict[Position, float]) -> tuple[list[float], list[float]]:
    """Return x and y of a line over the layers, broken between two stacks.

    Arguments:
        values: By stack and layer.
        coordinates: As ``axis_coordinates`` returns them.

    Example:
        >>> values = pd.Series({("encoder", 0): 0.5, ("decoder", 0): 0.7})
        >>> line_over_layers(values, {("encoder", 0): 0.0, ("decoder", 0): 2.0})
        ([0.0, nan, 2.0], [0.5, nan, 0.7])
    """
    xs: list[float] = []
    ys: list[float] = []
    before = None
    for position, x in coordinates.items():
        if position not in values.index:
            continue
        if before not in (None, position[0]):
            xs.append(float("nan"))
            ys.append(float("nan"))
        before = position[0]
        xs.append(x)
        ys.append(float(values[position]))
    return xs, ys


def layer_axis(ax: Axes, positions: Sequence[Position], *, label: str = "layer", names: bool = True) -> None:
    """Write the layers' numbers on the x axis, and with ``names`` those of the stacks below them."""
    coordinates = axis_coordinates(positions)
    ax.set_xlim(min(coordinates.values()) - 0.5, max(coordinates.values()) + 0.5)
    ax.set_xlabel(label)
    stacks = list(dict.fromkeys(stack for stack, _ in positions))
    if stacks == [""]:
        ax.xaxis.set_major_locator(Fitting(7, integer=True, min_n_ticks=1))
        return
    every = 1 + len(positions) // 19
    shown = [position for stack in stacks for position in [p for p in positions if p[0] == stack][::every]]
    ax.set_xticks([coordinates[position] for position in shown], [f"{layer}" for _, layer in shown])
    for stack in stacks if names else []:
        middle = float(np.mean([x for position, x in coordinates.items() if position[0] == stack]))
        ax.annotate(
            stack or "other",
            (middle, 0),
            xycoords=ax.get_xaxis_transform(),
            xytext=(0, -11),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=small(),
        )
    ax.xaxis.labelpad = 9 if names else 2


def layer_entries(positions: Sequence[Position], colors: dict[Position, str]) -> list[list[tuple[Artist, str]]]:
    """Return the legend's rows of the layers: a row per stack, led by its name; of many layers only some."""
    legend = []
    for stack in dict.fromkeys(stack for stack, _ in positions):
        layers = spread_out([layer for other, layer in positions if other == stack], 8)
        entries: list[tuple[Artist, str]] = [(Line2D([], [], linestyle=""), f"{stack or 'layer'}")]
        for layer in layers:
            entries.append((Line2D([], [], linestyle="", marker="o", color=colors[stack, layer]), str(layer)))
        legend.append(entries)
    return legend
