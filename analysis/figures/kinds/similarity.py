"""How like the base weights the fine-tuned ones still are: centred kernel alignment over training and by layer."""

from collections.abc import Sequence
from typing import get_args

import pandas as pd
from matplotlib.figure import Figure

from deltaw.analysis.figures.drawing.curves import draw_curves
from deltaw.analysis.figures.drawing.style import Scale, check_choice
from deltaw.analysis.tables.tidy import require_columns, select

SOURCE = "similarity_table"
COLUMNS = ("run", "method", "module", "layer", "kind", "step", "similarity", "dissimilarity")


def similarity(
    frame: pd.DataFrame,
    *,
    kind: str | None = "query",
    methods: Sequence[str] | None = None,
    scale: Scale = "log",
    width: float | None = None,
) -> Figure:
    """Draw the CKA of W' with W₀ over training and by layer at the last step, a line per method.

    On the log scale it is 1 − CKA, 0 for the same weights, so that 0.999 and 0.9999 are told apart.

    Arguments:
        frame: What ``similarity_table`` returns, each run with its own base.
        kind: The kind of matrix, "query"; ``None`` for all together.
        methods: The methods to draw, in this order; ``None`` for all, in the order of ``METHODS``.
        scale: "log" for 1 − CKA or "linear" for CKA.
        width: In inches; ``None`` for 7, a paper's width.

    Returns:
        The figure; nothing is shown or written.

    Raises:
        OptionError: There is no such kind, method or choice, or the table is of another form.

    Source:
        Kornblith et al. 2019, "Similarity of neural network representations revisited", equation 2.

    Example:
        >>> rows = [("a", "lora", f"{i}.query", i, "query", step, 0.99, 0.01) for i in range(3) for step in (10, 20)]
        >>> similarity(pd.DataFrame(rows, columns=list(COLUMNS))).axes[0].get_ylabel()
        '1 − CKA of W′ and W₀'
    """
    check_choice("scale", scale, get_args(Scale))
    require_columns(frame, COLUMNS, SOURCE)
    rows, chosen = select(frame, kind, methods)
    if scale == "linear":
        return draw_curves(rows, chosen, {"similarity": "CKA of W′ and W₀"}, scale=scale, width=width)
    return draw_curves(rows, chosen, {"dissimilarity": "1 − CKA of W′ and W₀"}, scale=scale, width=width)
