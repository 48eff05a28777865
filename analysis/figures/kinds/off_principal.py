"""Which part of an update lies within the leading singular subspaces of the weights that it updates."""

from collections.abc import Sequence
from typing import get_args

import numpy as np
import pandas as pd

from deltaw.analysis.figures.drawing.canvas import Target
from deltaw.analysis.figures.drawing.curves import Over, draw_curves
from deltaw.analysis.figures.drawing.style import Scale, check_choice
from deltaw.analysis.measures.off_principal_share import Sides
from deltaw.analysis.tables.tidy import require_columns, select

SOURCE = "Trajectory.geometry()"
COLUMNS = ("run", "method", "module", "layer", "kind", "step", "off_principal")
_WHERE = {"both": "on both sides", "left": "on the left", "right": "on the right"}


def off_principal(
    frame: pd.DataFrame,
    *,
    kind: str | None = "query",
    sides: Sides = "both",
    methods: Sequence[str] | None = None,
    scale: Scale = "log",
    over: Over | None = None,
    width: float | None = None,
    ax: Target | None = None,
) -> Target:
    """Draw how much of ‖ΔW‖² lies off W₀'s leading singular subspaces, over training and by layer at the last step.

    On the log scale it is the rest, the share within them, as nearly all of a random update lies outside: above the
    dotted line an update seeks the principal directions, below it avoids them. That line is the level of chance,
    k²/(out·in) within both, k/out within the left, k/in within the right subspace.

    Arguments:
        frame: What ``run.geometry()`` returns; without its columns ``…_expected`` no level of chance is drawn.
        kind: The kind of matrix, "query"; ``None`` for all together.
        sides: "both", "left" or "right": whose subspace.
        methods: The methods to draw, in this order; ``None`` for all, in the order of ``METHODS``.
        scale: "log" for the share within, "linear" for the share outside.
        over: "training" or "layers" for one of the two panels; ``None`` for both.
        width: Of a new figure, in inches; ``None`` for 7, a paper's width, or more with larger letters.
        ax: Where to draw: an Axes with ``over``, a SubFigure or a Figure; ``None`` for a new Figure.

    Returns:
        What was drawn on, as seaborn does: ``ax``, or the new Figure. Nothing is shown or written.

    Raises:
        OptionError: There is no such kind, method or choice, or the table is of another form.

    Source:
        deltaw; see `deltaw.analysis.measures.off_principal_share.off_principal`.

    Example:
        >>> rows = [("a", "lora", f"{i}.query", i, "query", step, 0.9) for i in range(3) for step in (10, 20)]
        >>> drawn = off_principal(pd.DataFrame(rows, columns=list(COLUMNS)))
        >>> drawn.axes[0].get_ylabel(), [round(float(y), 3) for y in drawn.axes[0].lines[0].get_ydata()]
        ('share of ‖ΔW‖² within', [0.1, 0.1])
    """
    check_choice("scale", scale, get_args(Scale))
    check_choice("sides", sides, get_args(Sides))
    column = "off_principal" if sides == "both" else f"off_principal_{sides}"
    require_columns(frame, (*COLUMNS[:-1], column), SOURCE)
    rows, chosen = select(frame, kind, methods)
    log = scale == "log"
    expected = f"{column}_expected"
    chance = float(rows[expected].astype("float64").mean()) if expected in rows else float("nan")
    notes = [f"k = {int(rows['k'].min())} leading directions {_WHERE[sides]}"] if "k" in rows else []
    if np.isfinite(chance):
        notes.append(f"a random update has {1 - chance:.2g} within")
    return draw_curves(
        rows.assign(within=1 - rows[column]) if log else rows,
        chosen,
        {"within": "share of ‖ΔW‖² within"} if log else {column: "share of ‖ΔW‖² outside"},
        what="Share of ‖ΔW‖² "
        + ("within" if log else "outside")
        + " W₀'s leading singular subspaces"
        + ("" if sides == "both" else f" {_WHERE[sides]}"),
        scale=scale,
        width=width,
        over=over,
        ax=ax,
        notes=notes,
        levels={"random update": 1 - chance if log else chance},
    )
