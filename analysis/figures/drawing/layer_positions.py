"""Where a matrix stands in its model: encoder, decoder or cross attention, and the layer there."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from deltaw.adapters.errors import OptionError
from deltaw.analysis.figures.drawing.axes import Which
from deltaw.analysis.figures.drawing.rows import spread_out
from deltaw.analysis.figures.drawing.style import SMALLEST
from deltaw.analysis.names import stack_of

STACKS = ("", "encoder", "decoder", "cross")
# One ramp a stack, light to dark; blue, orange and grey stay apart for colour-blind readers.
_RAMPS = {"": "viridis", "encoder": "Blues", "decoder": "Oranges", "cross": "Greys"}
_GAP = 1.0  # between stacks, in layers

Place = tuple[str, int]


def with_places(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Add the column ``stack`` to rows of matrices that have a layer number, and say how many have none.

    The stack is "" throughout where the matrices are all of one stack.

    Raises:
        OptionError: No matrix has a layer number.
    """
    placeless = rows["layer"].isna()
    if placeless.all():
        raise OptionError(
            f"no matrix has a layer number in its name (there are {', '.join(sorted(set(rows['module']))[:3])}); "
            "this figure is by layer, see the table instead"
        )
    notes = []
    if placeless.any():
        notes.append(f"{rows.loc[placeless, 'module'].nunique()} matrices without a layer number left out")
    rows = rows[~placeless]
    stacks = rows["module"].map({module: stack_of(module) for module in rows["module"].unique()})
    if stacks.nunique() == 1:
        stacks = pd.Series("", rows.index)
    return rows.assign(stack=stacks, layer=rows["layer"].astype(int)), notes


def places_of(rows: pd.DataFrame) -> list[Place]:
    """Return the stacks and layers of a table with places, each once, in the model's order."""
    found = {(str(stack), int(layer)) for stack, layer in zip(rows["stack"], rows["layer"], strict=True)}
    return sorted(found, key=lambda place: (STACKS.index(place[0]), place[1]))


def place_name(place: Place) -> str:
    """Return how a place is called.

    Example:
        >>> place_name(("", 3)), place_name(("cross", 0))
        ('layer 3', 'cross 0')
    """
    return f"{place[0] or 'layer'} {place[1]}"


def place_colors(places: Sequence[Place]) -> dict[Place, str]:
    """Return a colour a place: a ramp a stack, light below and dark above."""
    colors = {}
    for stack in dict.fromkeys(stack for stack, _ in places):
        layers = [layer for other, layer in places if other == stack]
        # Not so light that it is lost on white.
        low, high = (0.9, 0.0) if stack == "" else (0.38, 1.0)
        for share, layer in zip(np.linspace(0, 1, max(len(layers), 2)), layers, strict=False):
            colors[stack, layer] = to_hex(colormaps[_RAMPS[stack]](low + share * (high - low)))
    return colors


def place_positions(places: Sequence[Place]) -> dict[Place, float]:
    """Return where each place stands on an axis of layers: its number, or with several stacks one after the other.

    Example:
        >>> place_positions([("", 2), ("", 5)])
        {('', 2): 2.0, ('', 5): 5.0}
        >>> place_positions([("encoder", 0), ("encoder", 1), ("decoder", 0)])
        {('encoder', 0): 0.0, ('encoder', 1): 1.0, ('decoder', 0): 3.0}
    """
    positions: dict[Place, float] = {}
    start = 0.0
    for stack in dict.fromkeys(stack for stack, _ in places):
        layers = [layer for other, layer in places if other == stack]
        first = 0 if stack == "" else layers[0]
        positions |= {(stack, layer): start + layer - first for layer in layers}
        start += layers[-1] - first + 1 + _GAP
    return positions


def line_by_place(values: "pd.Series[float]", positions: dict[Place, float]) -> tuple[list[float], list[float]]:
    """Return x and y of a line over the layers, broken between two stacks.

    Arguments:
        values: By stack and layer.
        positions: As ``place_positions`` returns them.

    Example:
        >>> values = pd.Series({("encoder", 0): 0.5, ("decoder", 0): 0.7})
        >>> line_by_place(values, {("encoder", 0): 0.0, ("decoder", 0): 2.0})
        ([0.0, nan, 2.0], [0.5, nan, 0.7])
    """
    xs: list[float] = []
    ys: list[float] = []
    before = None
    for place, x in positions.items():
        if place not in values.index:
            continue
        if before not in (None, place[0]):
            xs.append(float("nan"))
            ys.append(float("nan"))
        before = place[0]
        xs.append(x)
        ys.append(float(values[place]))
    return xs, ys


def place_axis(
    ax: Axes, places: Sequence[Place], *, axis: Which = "x", label: str = "layer", names: bool = True
) -> None:
    """Write the layers' numbers on an axis, and with ``names`` those of the stacks beside them."""
    positions = place_positions(places)
    the_axis = ax.xaxis if axis == "x" else ax.yaxis
    ends = min(positions.values()) - 0.5, max(positions.values()) + 0.5
    (ax.set_xlim if axis == "x" else ax.set_ylim)(*ends)
    stacks = list(dict.fromkeys(stack for stack, _ in places))
    the_axis.set_label_text(label)
    if stacks == [""]:
        the_axis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))
        return
    every = 1 + len(places) // 19
    shown = {positions[place]: place[1] for stack in stacks for place in [p for p in places if p[0] == stack][::every]}
    the_axis.set_major_locator(FixedLocator(list(shown)))
    the_axis.set_major_formatter(FuncFormatter(lambda x, _: f"{shown.get(x, '')}"))
    for stack in stacks if names else []:
        middle = float(np.mean([x for place, x in positions.items() if place[0] == stack]))
        ax.annotate(
            stack or "other",
            (middle, 0) if axis == "x" else (0, middle),
            xycoords=ax.get_xaxis_transform() if axis == "x" else ax.get_yaxis_transform(),
            xytext=(0, -11) if axis == "x" else (-14, 0),
            textcoords="offset points",
            ha="center" if axis == "x" else "right",
            va="top" if axis == "x" else "center",
            rotation=0 if axis == "x" else 90,
            fontsize=SMALLEST,
        )
    the_axis.labelpad = 9 if names else 2


def place_entries(places: Sequence[Place], colors: dict[Place, str]) -> list[list[tuple[Artist, str]]]:
    """Return the legend's rows of the layers: a row a stack, led by its name; of many layers only some."""
    legend = []
    for stack in dict.fromkeys(stack for stack, _ in places):
        layers = spread_out([layer for other, layer in places if other == stack], 8)
        entries: list[tuple[Artist, str]] = [(Line2D([], [], linestyle=""), f"{stack or 'layer'}")]
        for layer in layers:
            entries.append((Line2D([], [], linestyle="", marker="o", color=colors[stack, layer]), str(layer)))
        legend.append(entries)
    return legend
