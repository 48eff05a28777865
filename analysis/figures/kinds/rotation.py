"""How far fine-tuning turns the leading singular subspaces of the weights."""

from collections.abc import Sequence
from typing import get_args

import numpy as np
import pandas as pd

from deltaw.analysis.figures.drawing.canvas import Target
from deltaw.analysis.figures.drawing.curves import Over, draw_curves
from deltaw.analysis.figures.drawing.style import AnyScale, check_choice
from deltaw.analysis.measures.subspace import SIDES, Side
from deltaw.analysis.tables.tidy import require_columns, select

SOURCE = "Trajectory.geometry()"
COLUMNS = ("run", "method", "module", "layer", "kind", "step", "rotation_left", "rotation_right")
_SPACES = {"left": "left rotation (°)", "right": "right rotation (°)"}


def rotation(
    frame: pd.DataFrame,
    *,
    kind: str | None = "query",
    side: Side | None = None,
    methods: Sequence[str] | None = None,
    scale: AnyScale = "auto",
    over: Over | None = None,
    width: float | None = None,
    ax: Target | None = None,
) -> Target:
    """Draw how far the leading singular subspaces of W' are turned against W₀'s, over training and by layer at the end.

    It is the largest principal angle between the two, of the left subspaces above and of the right ones below. Dashed
    beside each method: how far a random update of the same norm would turn them, where first order tells that. The
    dotted line is the level of two random subspaces. The scale is logarithmic where one method turns them more than
    five times as far as another.

    Arguments:
        frame: What ``run.geometry()`` returns; without its columns ``rotation_random`` and ``rotation_expected`` there
            is no level of chance.
        kind: The kind of matrix, "query"; ``None`` for all together.
        side: "left" or "right" for one of the two rows; ``None`` for both.
        methods: The methods to draw, in this order; ``None`` for all, in the order of ``METHODS``.
        scale: "linear"; "log"; or "auto", which is linear where all methods turn them within a factor of five of each
            other.
        over: "training" or "layers" for one of the two panels; ``None`` for both.
        width: Of a new figure, in inches; ``None`` for 7, a paper's width, or more with larger letters.
        ax: Where to draw: an Axes with ``over`` and ``side``, a SubFigure or a Figure; ``None`` for a new Figure.

    Returns:
        What was drawn on, as seaborn does: ``ax``, or the new Figure. Nothing is shown or written.

    Raises:
        OptionError: There is no such kind, method or choice, or the table is of another form.

    Source:
        Zhu et al. 2025, "The Path Not Taken" (arXiv 2511.08567), figure 4, which has them for SFT and RLVR.

    Example:
        >>> rows = [("a", "lora", f"{i}.query", i, "query", step, 0.5, 0.4) for i in range(3) for step in (10, 20)]
        >>> [ax.get_ylabel() for ax in rotation(pd.DataFrame(rows, columns=list(COLUMNS))).axes]
        ['left rotation (°)', '', 'right rotation (°)', '']
    """
    check_choice("scale", scale, get_args(AnyScale))
    if side is not None:
        check_choice("side", side, SIDES)
    require_columns(frame, COLUMNS, SOURCE)
    rows, chosen = select(frame, kind, methods)
    shown = {f"rotation_{name}": label for name, label in _SPACES.items() if side in (None, name)}
    chance = float(rows["rotation_expected"].astype("float64").mean()) if "rotation_expected" in rows else float("nan")
    random = "rotation_random" in rows and bool(rows["rotation_random"].notna().any())
    notes = [f"k = {_count(rows)} leading directions"] if "k" in rows else []
    if random:
        notes.append("dashed: a random update of the same norm, to first order, up to 10°")
    return draw_curves(
        rows,
        chosen,
        shown,
        what="Largest principal angle between the leading singular subspaces of W₀ and W′",
        scale=scale,
        width=width,
        over=over,
        ax=ax,
        notes=notes,
        levels={"random subspaces": chance} if np.isfinite(chance) else {},
        beside=("rotation_random", "random update of the same norm") if random else None,
        row_option="side",
    )


def _count(rows: pd.DataFrame) -> str:
    low, high = int(rows["k"].min()), int(rows["k"].max())
    return str(low) if low == high else f"{low} to {high}"
