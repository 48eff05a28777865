"""ΔM and ΔD of single attention heads as a map of layers and heads."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import colormaps
from matplotlib.colors import LogNorm

from deltaw.analysis.figures.drawing.axes import columns_size, hatch, letter, method_columns
from deltaw.analysis.figures.drawing.canvas import Canvas, Target, most_across
from deltaw.analysis.figures.drawing.facts import facts_of, method_name, methods_named
from deltaw.analysis.figures.drawing.layer_positions import axis_coordinates, positions_of, with_positions
from deltaw.analysis.figures.drawing.quantities import Measure, quantities
from deltaw.analysis.figures.drawing.rows import finite, last_steps
from deltaw.analysis.figures.kinds.distribution import CHOOSE, limits_of
from deltaw.analysis.tables.tidy import require_columns, select

SOURCE = "head_changes"
COLUMNS = ("run", "method", "module", "layer", "kind", "part", "step_from", "step_to", "head", "delta_m", "delta_d")


def heads(
    frame: pd.DataFrame,
    *,
    kind: str | None = "query",
    methods: Sequence[str] | None = None,
    measure: Measure | None = None,
    width: float | None = None,
    ax: Target | None = None,
) -> Target:
    """Draw ΔM (above) and ΔD (below) of single attention heads as a map: layers up, heads to the right.

    A column of panels is a method; the methods share one logarithmic scale of colours for ΔM and one for ΔD. White is
    exactly 0, and hatched cells were not recorded. A cell is the mean over the runs, at each one's last step.

    Arguments:
        frame: What ``head_changes`` returns.
        kind: "query", "key", "value" or "output"; ``None`` for all together.
        methods: The methods to draw, in this order; ``None`` for all, in the order of ``METHODS``.
        measure: "delta_m" or "delta_d" for one of the two; ``None`` for both.
        width: Of a new figure, in inches; ``None`` for up to 7, or more with larger letters. More than five methods go
            into further rows.
        ax: Where to draw: an Axes for one method and one measure, a SubFigure or a Figure; ``None`` for a new Figure.

    Returns:
        What was drawn on, as seaborn does: ``ax``, or the new Figure. Nothing is shown or written.

    Raises:
        OptionError: There is no such kind or method, no matrix has a layer number, nothing has moved, or the table is
            of another form.

    Example:
        >>> rows = [
        ...     ("a", "lora", f"{layer}.query", layer, "query", "query", pd.NA, 9, head, 1.0 + head, 0.1 + layer)
        ...     for layer in (0, 1)
        ...     for head in (0, 1, 2)
        ... ]
        >>> heads(pd.DataFrame(rows, columns=list(COLUMNS))).axes[0].collections[0].get_array().data.tolist()
        [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]
    """
    require_columns(frame, COLUMNS, SOURCE)
    rows, chosen = select(frame.assign(kind=frame["part"]), kind, methods)  # of a fused matrix each part for itself
    rows, notes = finite(last_steps(rows, "step_to"), ("delta_m", "delta_d"))
    rows, unnumbered = with_positions(rows)
    coordinates = axis_coordinates(positions_of(rows))
    rows = rows.assign(height=[coordinates[position] for position in zip(rows["stack"], rows["layer"], strict=True)])
    means = rows.groupby(["method", "height", "head"])[["delta_m", "delta_d"]].mean()
    names = {height: f"{stack} {layer}".lstrip() for (stack, layer), height in coordinates.items()}
    heights, across_heads = np.arange(min(names), max(names) + 1), np.arange(int(rows["head"].max()) + 1)
    drawn = quantities(measure)
    panels = len(chosen) * len(drawn)
    most = most_across(5, ax, width, 1.05)
    canvas = Canvas(ax, width, columns_size(len(chosen), len(drawn), 0.1, most), panels=panels, choose=CHOOSE)
    columns = method_columns(canvas, len(chosen), len(drawn), most, bars=True)
    across = columns.across
    for level, q in enumerate(drawn):
        norm = LogNorm(*limits_of(means[q.column], q.symbol))
        for number, method in enumerate(chosen):
            panel = columns.panels[number][level]
            table = means[q.column].xs(method).unstack("head").reindex(index=heights, columns=across_heads)
            table.index = pd.Index([names.get(height, "") for height in heights])
            missing = table.isna().to_numpy()
            sns.heatmap(
                table,
                mask=(table == 0).to_numpy() | missing,
                norm=norm,
                vmin=norm.vmin,
                vmax=norm.vmax,
                cmap=colormaps["viridis"],
                xticklabels=1 + (len(across_heads) - 1) // 8,
                yticklabels=1 + len(heights) // 19,
                cbar=number % across == 0,
                cbar_ax=columns.bars[number // across][level] if columns.bars else None,
                cbar_kws={"label": q.symbol},
                rasterized=True,
                ax=panel,
            )
            panel.grid(False)
            panel.set_facecolor("white")
            hatch(panel, missing)
            panel.invert_yaxis()
            panel.set(xlabel="", ylabel="layer" if number % across == 0 else "")
            panel.tick_params(rotation=0, labelleft=number % across == 0, labelbottom=level == len(drawn) - 1)
            panel.spines[:].set_visible(True)
            if level == 0:
                canvas.title(panel, method_name(method), letter(number))
    still = bool((means[[q.column for q in drawn]] == 0).any(axis=None))
    notes = [*(["white: exactly 0"] if still else []), *notes, *unnumbered]
    what = f"The {' and '.join(q.symbol for q in drawn)} of single attention heads by layer for {methods_named(rows)}"
    first = rows["step_from"].dropna()
    start = "the base weights" if first.empty else f"step {int(first.iloc[0])}"
    facts = facts_of(what, rows, "step_to", pairs=f"changes since {start}, head by head", notes=notes, at_end=True)
    return canvas.finish(facts, "head")
