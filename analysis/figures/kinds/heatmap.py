"""ΔM and ΔD of a typical row or column as a map of layers and steps."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import colormaps
from matplotlib.colors import LogNorm

from deltaw.adapters.errors import OptionError
from deltaw.analysis.figures.drawing.axes import columns_size, hatch, letter, method_columns, step_name
from deltaw.analysis.figures.drawing.canvas import Canvas, Target, most_across
from deltaw.analysis.figures.drawing.facts import facts_of, method_name, methods_named
from deltaw.analysis.figures.drawing.layer_positions import axis_coordinates, positions_of, with_positions
from deltaw.analysis.figures.drawing.quantities import Measure, quantities
from deltaw.analysis.figures.drawing.style import check_range
from deltaw.analysis.figures.kinds.distribution import CHOOSE, limits_of, plural, vector_rows
from deltaw.analysis.measures.change import Axis

_COLORS = colormaps["viridis"].with_extremes(under="#1b0033")
_STILL = "white"
_NO_MOVE, _BELOW, _MISSING = "white: exactly 0", "darkest: below the scale", "hatched: not recorded"


def heatmap(
    frame: pd.DataFrame,
    *,
    kind: str | None = "query",
    axis: Axis = "column",
    quantile: float = 0.5,
    methods: Sequence[str] | None = None,
    measure: Measure | None = None,
    width: float | None = None,
    ax: Target | None = None,
) -> Target:
    """Draw a quantile of ΔM (above) and ΔD (below) over the vectors as a map: layers up, steps to the right.

    A column of panels is a method; the methods share one logarithmic scale of colours for ΔM and one for ΔD. Recorded
    steps stand side by side, equally wide. White is exactly 0, the darkest colour is below the scale, and hatched cells
    were not recorded. A point is the mean over a layer's matrices of the kind and over the runs.

    Arguments:
        frame: What ``vector_changes`` returns, with quantiles.
        kind: The kind of matrix, "query"; ``None`` for all together.
        axis: "column" for one vector per input feature, "row" for one per output feature.
        quantile: Which, 0.5 for the median.
        methods: The methods to draw, in this order; ``None`` for all, in the order of ``METHODS``.
        measure: "delta_m" or "delta_d" for one of the two; ``None`` for both.
        width: Of a new figure, in inches; ``None`` for up to 7, or more with larger letters. More than five methods go
            into further rows.
        ax: Where to draw: an Axes for one method and one measure, a SubFigure or a Figure; ``None`` for a new Figure.

    Returns:
        What was drawn on, as seaborn does: ``ax``, or the new Figure. Nothing is shown or written.

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
    word = "median" if quantile == 0.5 else f"{100 * quantile:g} % quantile of"
    seen: set[str] = set()
    drawn = quantities(measure)
    panels = len(chosen) * len(drawn)
    most = most_across(5, ax, width, 1.05)
    canvas = Canvas(ax, width, columns_size(len(chosen), len(drawn), 0.1, most), panels=panels, choose=CHOOSE)
    columns = method_columns(canvas, len(chosen), len(drawn), most, bars=True)
    across = columns.across
    for level, q in enumerate(drawn):
        norm = LogNorm(*limits_of(means[q.column], q.symbol))
        low = bool(((means[q.column] > 0) & (means[q.column] < norm.vmin)).any())
        for number, method in enumerate(chosen):
            panel = columns.panels[number][level]
            bar = columns.bars[number // across][level] if columns.bars else None
            table = means[q.column].xs(method).unstack("step_to").reindex(heights).rename(columns=step_name)
            table.index = pd.Index([names.get(height, "") for height in heights])
            still, missing = (table == 0).to_numpy(), table.isna().to_numpy()
            sns.heatmap(
                table,
                mask=still | missing,
                norm=norm,
                vmin=norm.vmin,  # else seaborn looks for the least of a map that may be all white
                vmax=norm.vmax,
                cmap=_COLORS,
                xticklabels=1 + (table.shape[1] - 1) // 3,
                yticklabels=1 + len(heights) // 19,
                cbar=number % across == 0,
                cbar_ax=bar,
                cbar_kws={"label": f"{word} {q.symbol}", "extend": "min" if low else "neither"},
                rasterized=True,
                ax=panel,
            )
            panel.grid(False)
            panel.set_facecolor(_STILL)
            hatch(panel, missing)
            seen |= {name for name, there in ((_NO_MOVE, still), (_MISSING, missing)) if there.any()}
            seen |= {_BELOW} if low else set()
            panel.invert_yaxis()
            panel.set(xlabel="", ylabel="layer" if number % across == 0 else "")
            panel.tick_params(rotation=0, labelleft=number % across == 0, labelbottom=level == len(drawn) - 1)
            panel.spines[:].set_visible(True)
            if level == 0:
                canvas.title(panel, method_name(method), letter(number))
    looks = "; ".join(name for name in (_NO_MOVE, _BELOW, _MISSING) if name in seen)
    notes = [*([looks] if looks else []), *notes]
    what = f"The {word} {' and '.join(q.symbol for q in drawn)} by layer and step for {methods_named(rows)}"
    pairs = f"changes since the base weights, over a matrix's {plural(axis)}"
    return canvas.finish(facts_of(what, rows, "step_to", pairs=pairs, notes=notes), "training step")
