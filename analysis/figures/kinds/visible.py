"""How many weights have another value once they are stored."""

from collections.abc import Sequence
from typing import Literal, get_args

import pandas as pd

from deltaw.analysis.figures.drawing.canvas import Target
from deltaw.analysis.figures.drawing.curves import Over, draw_curves
from deltaw.analysis.figures.drawing.style import Scale, check_choice
from deltaw.analysis.tables.tidy import require_columns, select

SOURCE = "Trajectory.geometry()"
COLUMNS = ("run", "method", "module", "layer", "kind", "step", "visible_bfloat16")
Rule = Literal["bfloat16", "float16", "float32", "path-not-taken"]


def visible(
    frame: pd.DataFrame,
    *,
    kind: str | None = "query",
    rule: Rule = "bfloat16",
    methods: Sequence[str] | None = None,
    scale: Scale = "linear",
    over: Over | None = None,
    width: float | None = None,
    ax: Target | None = None,
) -> Target:
    """Draw the share of weights that differ from W₀ once both are stored, over training and by layer at the last step.

    1 less this share is the paper's update sparsity.

    Arguments:
        frame: What ``run.geometry(visible=…)`` returns.
        kind: The kind of matrix, "query"; ``None`` for all together.
        rule: The dtype they are stored in, "bfloat16", "float16" or "float32"; "path-not-taken" for that paper's rule
            on the weights as they are, |ΔW_ij| above a thousandth of the larger.
        methods: The methods to draw, in this order; ``None`` for all, in the order of ``METHODS``.
        scale: "log" or "linear".
        over: "training" or "layers" for one of the two panels; ``None`` for both.
        width: Of a new figure, in inches; ``None`` for 7, a paper's width, or more with larger letters.
        ax: Where to draw: an Axes with ``over``, a SubFigure or a Figure; ``None`` for a new Figure.

    Returns:
        What was drawn on, as seaborn does: ``ax``, or the new Figure. Nothing is shown or written.

    Raises:
        OptionError: There is no such kind, method or choice, or the table is of another form.

    Source:
        Zhu et al. 2025, "The Path Not Taken" (arXiv 2511.08567), definition 2.2.

    Example:
        >>> rows = [("a", "lora", f"{i}.query", i, "query", step, 0.25) for i in range(3) for step in (10, 20)]
        >>> visible(pd.DataFrame(rows, columns=list(COLUMNS))).axes[0].get_ylabel()
        'share visible\\nin bfloat16'
    """
    check_choice("scale", scale, get_args(Scale))
    check_choice("rule", rule, get_args(Rule))
    column = f"visible_{rule.replace('-', '_')}"
    require_columns(frame, (*COLUMNS[:-1], column), SOURCE)
    rows, chosen = select(frame, kind, methods)
    paper = rule == "path-not-taken"
    return draw_curves(
        rows,
        chosen,
        {column: "share changed\nby > 0.1 %" if paper else f"share visible\nin {rule}"},
        what="Share of weights that "
        + ("change by more than a thousandth" if paper else f"differ from W₀ once both are stored in {rule}"),
        scale=scale,
        width=width,
        over=over,
        ax=ax,
    )
