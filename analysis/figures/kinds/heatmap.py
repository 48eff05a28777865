"""ΔM and ΔD of a typical row or column as a map of layers and steps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from deltaw.adapters.errors import OptionError
from deltaw.analysis.figures.drawing.axes import letter, method_columns, step_axis
from deltaw.analysis.figures.drawing.layer_positions import place_axis, place_positions, places_of, with_places
from deltaw.analysis.figures.drawing.panels import QUANTITIES
from deltaw.analysis.figures.drawing.style import paper_style
from deltaw.analysis.figures.kinds.distribution import limits_of, vector_rows
from deltaw.analysis.measures.change import Axis
from deltaw.analysis.tables.tidy import display_name


def heatmap(
    frame: pd.DataFrame,
    *,
    kind: str | None = "query",
    axis: Axis = "column",
    quantile: float = 0.5,
    methods: Sequence[str] | None = None,
    width: float | None = None,
) -> Figure:
    """Draw a quantile of ΔM (above) and ΔD (below) over the vectors as a map: layers up, steps to the right.

    A column of panels is a method; the methods share one logarithmic scale of colours for ΔM and one for ΔD. White is
    0, or what lies below the scale. A point is the mean over a layer's matrices of the kind and over the runs.

    Arguments:
        frame: What ``vector_changes`` returns, with quantiles.
        kind: The kind of matrix, "query"; ``None`` for all together.
        axis: "column" for one vector per input feature, "row" for one per output feature.
        quantile: Which, 0.5 for the median.
        methods: The methods to draw, in this order; ``None`` for all, in the order of ``METHODS``.
        width: In inches; ``None`` for up to 7, a paper's width. More than five methods go into further rows.

    Returns:
        The figure; nothing is shown or written.

    Raises:
        OptionError: There is no such kind, method, axis or quantile, no matrix has a layer number, nothing has moved,
            or the table is of another form.

    Example:
        >>> from deltaw.analysis.figures.kinds.distribution import COLUMNS
        >>> rows = [
        ...     ("a", "lora", f"{layer}.query", layer, "query", "column", step, 0.5, step * (1.0 + layer), 0.1)
        ...     for layer in (0, 1)
        ...     for step in (10, 20)
        ... ]
        >>> heatmap(pd.DataFrame(rows, columns=list(COLUMNS))).axes[0].collections[0].get_array().data.tolist()
        [[10.0, 20.0], [20.0, 40.0]]
    """
    rows, chosen, notes = vector_rows(frame, kind, axis, methods)
    there = sorted(rows["quantile"].unique())
    rows = rows[np.isclose(rows["quantile"].astype("float64"), quantile)]
    if rows.empty:
        raise OptionError(f"the table has no quantile {quantile:g}, only {', '.join(f'{value:g}' for value in there)}")
    rows, placeless = with_places(rows)
    notes = [*notes, *placeless]
    places = places_of(rows)
    positions = place_positions(places)
    rows = rows.assign(position=[positions[place] for place in zip(rows["stack"], rows["layer"], strict=True)])
    means = rows.groupby(["method", "position", "step_to"])[["delta_m", "delta_d"]].mean()
    heights = (
        np.arange(0.0, max(positions.values()) + 1) if min(positions.values()) == 0 else sorted(positions.values())
    )
    faint = False
    word = "median" if quantile == 0.5 else f"{100 * quantile:g} % quantile of"
    with paper_style():
        columns = method_columns(len(chosen), width, 0.45 + 0.14 * len(notes), bars=True)
        figure, across = columns.figure, columns.across
        for level, q in enumerate(QUANTITIES):
            norm = LogNorm(*limits_of(means[q.column], q.symbol))
            for place, method in enumerate(chosen):
                ax = columns.panels[place][level]
                table = means[q.column].xs(method).unstack("step_to").reindex(heights)
                values = np.ma.masked_invalid(table.where(table >= norm.vmin).to_numpy(dtype=float))
                edges = _edges(table.columns.to_numpy(dtype=float)), _edges(np.asarray(heights))
                faint |= bool(np.ma.getmaskarray(values).any())
                mesh = ax.pcolormesh(*edges, values, cmap="viridis", norm=norm, rasterized=True)
                place_axis(
                    ax, places, axis="y", label="layer" if place % across == 0 else "", names=place % across == 0
                )
                step_axis(ax, list(edges[0]), label="")
                ax.set_xlim(edges[0][0], edges[0][-1])
                ax.xaxis.set_major_locator(MaxNLocator(nbins=3, integer=True, steps=[1, 2, 4, 5, 10]))
                ax.tick_params(labelleft=place % across == 0, labelbottom=level == 1)
                if level == 0:
                    ax.set_title(f"({letter(place)}) {display_name(method)}", loc="left")
            for bars in columns.bars:
                figure.colorbar(mesh, cax=bars[level], label=f"{word} {q.symbol}")
        if faint:
            notes = ["white: 0, below the scale, or not recorded", *notes]
        figure.supxlabel("\n".join(["training step", f"over a matrix' {axis}s", *notes]))
    return figure


def _edges(centres: NDArray[Any]) -> NDArray[np.float64]:
    """Return the cells' edges half-way between their centres.

    Example:
        >>> [float(edge) for edge in _edges(np.array([10.0, 20.0, 40.0]))]
        [5.0, 15.0, 30.0, 50.0]
    """
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middle = (centres[:-1] + centres[1:]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])
