"""How like the base weights the fine-tuned ones still are: centred kernel alignment over training and by layer."""

from collections.abc import Sequence
from typing import get_args

import numpy as np
import pandas as pd

from deltaw.analysis.figures.drawing.canvas import Target
from deltaw.analysis.figures.drawing.curves import Over, draw_curves
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
    over: Over | None = None,
    width: float | None = None,
    ax: Target | None = None,
) -> Target:
    """Draw the CKA of W' with W₀ over training and by layer at the last step, a line per method.

    On the log scale it is 1 − CKA, 0 for the same weights, so that 0.999 and 0.9999 are told apart. The dotted line is
    the level of chance, the CKA of unrelated matrices of this shape, √(p q / ((n + p)(n + q))) for n examples of p and
    q features, ½ for square ones (`deltaw.analysis.measures.chance.expected_similarity`).

    Arguments:
        frame: What ``similarity_table`` returns, each run with its own base; without its column ``expected`` no level
            of chance is drawn.
        kind: The kind of matrix, "query"; ``None`` for all together.
        methods: The methods to draw, in this order; ``None`` for all, in the order of ``METHODS``.
        scale: "log" for 1 − CKA or "linear" for CKA.
        over: "training" or "layers" for one of the two panels; ``None`` for both.
        width: Of a new figure, in inches; ``None`` for 7, a paper's width, or more with larger letters.
        ax: Where to draw: an Axes with ``over``, a SubFigure or a Figure; ``None`` for a new Figure.

    Returns:
        What was drawn on, as seaborn does: ``ax``, or the new Figure. Nothing is shown or written.

    Raises:
        OptionError: There is no such kind, method or choice, or the table is of another form.

    Source:
        Kornblith et al. 2019, "Similarity of neural network representations revisited", equation 2;
        Murphy, Zylberberg, Fyshe 2024 for the level of chance.

    Example:
        >>> rows = [("a", "lora", f"{i}.query", i, "query", step, 0.99, 0.01) for i in range(3) for step in (10, 20)]
        >>> similarity(pd.DataFrame(rows, columns=list(COLUMNS))).axes[0].get_ylabel()
        '1 − CKA of W′ and W₀'
    """
    check_choice("scale", scale, get_args(Scale))
    require_columns(frame, COLUMNS, SOURCE)
    rows, chosen = select(frame, kind, methods)
    log = scale == "log"
    chance = float(rows["expected"].astype("float64").mean()) if "expected" in rows else float("nan")
    return draw_curves(
        rows,
        chosen,
        {"dissimilarity": "1 − CKA of W′ and W₀"} if log else {"similarity": "CKA of W′ and W₀"},
        what="Linear CKA of the fine-tuned with the base weights",
        scale=scale,
        width=width,
        over=over,
        ax=ax,
        notes=[f"unrelated matrices of this shape have a CKA of {chance:.2g}"] if np.isfinite(chance) else [],
        levels={"unrelated weights": 1 - chance if log else chance},
    )
