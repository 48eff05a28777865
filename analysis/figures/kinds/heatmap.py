"""ΔM and ΔD of a typical row or column as a map of layers and steps."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from deltaw.adapters.errors import OptionError
from deltaw.analysis.figures.drawing.axes import letter, method_columns, step_name
from deltaw.analysis.figures.drawing.layer_positions import axis_coordinates, positions_of, with_positions
from deltaw.analysis.figures.drawing.panels import QUANTITIES
from deltaw.analysis.figures.drawing.style import check_range, paper_style
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

    A column of panels is a method; the methods share one logarithmic scale of colours for ΔM and one for ΔD. Recorded
    steps stand side by side, equally wide. White is 0, or what lies below the
    scale. A point is the mean over a layer's matrices of the kind and over the runs.

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
    check_range("quantile", quantile, -1e-9, 1, "one from 0 to 1, as 0.5, the median")
    rows, chosen, notes = vector_rows(frame, kind, axis, methods)
    there = sorted(rows["quantile"].unique())
    rows = rows[np.isclose(rows["quantile"].astype("float64"), quantile)]
    if rows.empty:
        raise OptionError(f"the table has no quantile {quantile:g}, only {', '.join(f'{value:g}' for value in there)}")
    rows, unnumbered = with_positions(rows)
    notes = [*notes, *unnumbered]
    coordinates = axis_coordinates(positions_of(rows))
    rows = rows.assign(height=[coordinates[position] for position in zip(rows["stack"], rows["layer"], strict=True)])
    means = rows.groupby(["method", "height", "step_to"])[["delta_m", "delta_d"]].mean()
    names = {height: f"{stack} {layer}".lstrip() for (stack, layer), height in coordinates.items()}
    heights = np.arange(min(names), max(names) + 1)  # with the gaps between stacks, and layers that were not recorded
    faint = False
    word = "median" if quantile == 0.5 else f"{100 * quantile:g} % quantile of"
    with paper_style():
        columns = method_columns(len(chosen), width, 0.45 + 0.14 * len(notes), bars=True)
        figure, across = columns.figure, columns.across
        for level, q in enumerate(QUANTITIES):
            norm = LogNorm(*limits_of(means[q.column], q.symbol))
            for number, method in enumerate(chosen):
                ax, bar = columns.panels[number][level], columns.bars[number // across][level]
                table = means[q.column].xs(method).unstack("step_to").reindex(heights).rename(columns=step_name)
                table.index = pd.Index([names.get(height, "") for height in heights])
                below = ~(table >= norm.vmin)
                faint |= bool(below.to_numpy().any())
                sns.heatmap(
                    table,
                    mask=below,
                    norm=norm,
                    vmin=norm.vmin,  # else seaborn looks for the least of a map that may be all white
                    vmax=norm.vmax,
                    cmap="viridis",
                    xticklabels=1 + (table.shape[1] - 1) // 3,
                    yticklabels=1 + len(heights) // 19,
                    cbar=number % across == 0,
                    cbar_ax=bar,
                    cbar_kws={"label": f"{word} {q.symbol}"},
                    rasterized=True,
                    ax=ax,
                )
                ax.invert_yaxis()
                ax.set(xlabel="", ylabel="layer" if number % across == 0 else "")
                ax.tick_params(rotation=0, labelleft=number % across == 0, labelbottom=level == 1)
                ax.spines[:].set_visible(True)
                if level == 0:
                    ax.set_title(f"({letter(number)}) {display_name(method)}", loc="left")
        if faint:
            notes = ["white: 0, below the scale, or not recorded", *notes]
        figure.supxlabel("\n".join(["training step", f"over a matrix's {axis}s", *notes]))
    return figure
