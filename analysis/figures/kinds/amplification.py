"""Does fine-tuning amplify directions that the base weights do not emphasise? LoRA's Table 7 over training."""

from collections.abc import Sequence
from typing import get_args

import pandas as pd

from deltaw.analysis.figures.drawing.canvas import Target
from deltaw.analysis.figures.drawing.curves import Over, draw_curves
from deltaw.analysis.figures.drawing.rows import one_value
from deltaw.analysis.figures.drawing.style import Scale, check_choice
from deltaw.analysis.tables.tidy import require_columns, select

SOURCE = "amplification_table"
COLUMNS = ("run", "method", "module", "layer", "kind", "step", "rank", "amplification")


def amplification(
    frame: pd.DataFrame,
    *,
    kind: str | None = "query",
    rank: int | None = None,
    methods: Sequence[str] | None = None,
    scale: Scale = "log",
    over: Over | None = None,
    width: float | None = None,
    ax: Target | None = None,
) -> Target:
    """Draw the amplification factor ‖ΔW‖ / ‖UᵀW₀V‖ over training and by layer at the last step, a line per method.

    U and V are the first singular vectors of ΔW, ``rank`` of them. Step 0, where ΔW is zero, is left out.

    Arguments:
        frame: What ``amplification_table`` returns.
        kind: The kind of matrix, "query"; ``None`` for all together.
        rank: How many singular vectors; it must be named where the table has several.
        methods: The methods to draw, in this order; ``None`` for all, in the order of ``METHODS``.
        scale: "log" or "linear".
        over: "training" or "layers" for one of the two panels; ``None`` for both.
        width: Of a new figure, in inches; ``None`` for 7, a paper's width, or more with larger letters.
        ax: Where to draw: an Axes with ``over``, a SubFigure or a Figure; ``None`` for a new Figure.

    Returns:
        What was drawn on, as seaborn does: ``ax``, or the new Figure. Nothing is shown or written.

    Raises:
        OptionError: There is no such kind, rank, method or choice, or the table is of another form.

    Source:
        LoRA, section 7.3 and Table 7.

    Example:
        >>> rows = [("a", "lora", f"{i}.query", i, "query", step, 8, 20.0) for i in range(3) for step in (10, 20)]
        >>> amplification(pd.DataFrame(rows, columns=list(COLUMNS))).axes[0].get_ylabel()
        'amplification factor'
    """
    check_choice("scale", scale, get_args(Scale))
    require_columns(frame, COLUMNS, SOURCE)
    rows, chosen = select(frame, kind, methods)
    rows = one_value(rows, "rank", rank)
    moved = rows[rows["step"] > 0]
    return draw_curves(
        rows if moved.empty else moved,
        chosen,
        {"amplification": "amplification factor"},
        what=f"LoRA's amplification factor of the first {int(rows['rank'].iloc[0])} directions of ΔW",
        scale=scale,
        width=width,
        over=over,
        ax=ax,
    )
