"""Intruder dimensions: singular vectors of the fine-tuned weights that the base weights have none like."""

from collections.abc import Sequence

import pandas as pd

from deltaw.adapters.checks import whole_number
from deltaw.adapters.errors import OptionError
from deltaw.analysis.figures.drawing.canvas import Target
from deltaw.analysis.figures.drawing.curves import Over, draw_curves
from deltaw.analysis.figures.drawing.style import check_range
from deltaw.analysis.tables.tidy import require_columns, select

SOURCE = "intruder_table"
COLUMNS = ("run", "method", "module", "layer", "kind", "step", "index", "similarity")


def intruders(
    frame: pd.DataFrame,
    *,
    kind: str | None = "query",
    k: int | None = None,
    epsilon: float = 0.5,
    methods: Sequence[str] | None = None,
    over: Over | None = None,
    width: float | None = None,
    ax: Target | None = None,
) -> Target:
    """Draw how many intruder dimensions a matrix has, over training and by layer at the last step, a line per method.

    Of the first k singular vectors of W' those count whose cosine with every singular vector of W₀ is below epsilon.

    Arguments:
        frame: What ``intruder_table`` returns, a row per singular vector.
        kind: The kind of matrix, "query"; ``None`` for all together.
        k: How many singular vectors are looked at; ``None`` for all that the table has.
        epsilon: The cosine below which one counts, above 0 and at most 1.
        methods: The methods to draw, in this order; ``None`` for all, in the order of ``METHODS``.
        over: "training" or "layers" for one of the two panels; ``None`` for both.
        width: Of a new figure, in inches; ``None`` for 7, a paper's width, or more with larger letters.
        ax: Where to draw: an Axes with ``over``, a SubFigure or a Figure; ``None`` for a new Figure.

    Returns:
        What was drawn on, as seaborn does: ``ax``, or the new Figure. Nothing is shown or written.

    Raises:
        OptionError: There is no such kind or method, k or epsilon is out of its range, or the table is of another form.

    Source:
        Shuttleworth et al. 2024, "LoRA vs full fine-tuning: an illusion of equivalence", definition 1.

    Example:
        >>> rows = [("a", "lora", "0.query", 0, "query", step, i, 0.3 * i) for i in (1, 2) for step in (0, 20)]
        >>> [float(y) for y in intruders(pd.DataFrame(rows, columns=list(COLUMNS))).axes[0].lines[0].get_ydata()]
        [1.0, 1.0]
    """
    require_columns(frame, COLUMNS, SOURCE)
    most = int(frame["index"].max())
    if k is not None and whole_number("k", k, 1, also="None") > most:
        raise OptionError(f"k is {k}; the table has singular vectors 1 to {most}")
    check_range("epsilon", epsilon, 0, 1, "a cosine above 0 and at most 1, as 0.5")
    rows, chosen = select(frame, kind, methods)
    rows = rows[rows["index"] <= (k or most)]
    keys = ["run", "method", "module", "layer", "kind", "step"]
    counts = (
        rows.assign(intruders=(rows["similarity"] < epsilon).astype(float))
        .groupby(keys, dropna=False)["intruders"]
        .sum()
        .reset_index()
    )
    counts.attrs = frame.attrs
    note = (
        f"counted: of the first {k or most} singular vectors of W′, those with cosines below {epsilon:g} to all of W₀'s"
    )
    label = {"intruders": "intruders per matrix"}
    return draw_curves(
        counts,
        chosen,
        label,
        what="Intruder dimensions per matrix",
        scale="linear",
        width=width,
        over=over,
        ax=ax,
        notes=[note],
    )
