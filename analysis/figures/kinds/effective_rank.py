"""How many directions the update uses in effect, over training and by layer."""

from collections.abc import Sequence
from typing import Literal, get_args

import pandas as pd

from deltaw.analysis.figures.drawing.canvas import Target
from deltaw.analysis.figures.drawing.curves import Over, draw_curves
from deltaw.analysis.figures.drawing.style import Scale, check_choice
from deltaw.analysis.tables.tidy import require_columns, select

SOURCE = "Trajectory.spectra()"
COLUMNS = ("run", "method", "module", "layer", "kind", "step", "effective_rank", "stable_rank")
Measure = Literal["effective_rank", "stable_rank"]

_MEASURES = {"effective_rank": "effective rank of ΔW", "stable_rank": "stable rank of ΔW"}


def effective_rank(
    frame: pd.DataFrame,
    *,
    kind: str | None = "query",
    methods: Sequence[str] | None = None,
    scale: Scale = "log",
    measure: Measure | None = None,
    over: Over | None = None,
    width: float | None = None,
    ax: Target | None = None,
) -> Target:
    """Draw the effective rank (above) and the stable rank (below) of ΔW over training and by layer at the last step.

    With p_i = σ_i / Σ σ the effective rank is exp(−Σ p_i log p_i), and the stable rank Σ σ_i² / σ_1². A line is a
    method, the mean over its matrices and runs. Step 0, where ΔW is zero and has no rank, is left out.

    Arguments:
        frame: The spectra of one or several runs, concatenated, columns as in `Trajectory.spectra`; of Dual LoRA the
            whole update, not its groups.
        kind: The kind of matrix, "query"; ``None`` for all together.
        methods: The methods to draw, in this order; ``None`` for all, in the order of ``METHODS``.
        scale: "log" or "linear".
        measure: "effective_rank" or "stable_rank" for one of the two rows; ``None`` for both.
        over: "training" or "layers" for one of the two panels; ``None`` for both.
        width: Of a new figure, in inches; ``None`` for 7, a paper's width, or more with larger letters.
        ax: Where to draw: an Axes with ``over`` and ``measure``, a SubFigure or a Figure; ``None`` for a new Figure.

    Returns:
        What was drawn on, as seaborn does: ``ax``, or the new Figure. Nothing is shown or written.

    Raises:
        OptionError: There is no such kind, method or choice, or the table is of another form.

    Source:
        Roy and Vetterli 2007 (effective rank); Rudelson and Vershynin 2007 (stable rank).

    Example:
        >>> rows = [("a", "lora", f"{i}.query", i, "query", step, 6.0, 2.0) for i in range(3) for step in (10, 20)]
        >>> [ax.get_ylabel() for ax in effective_rank(pd.DataFrame(rows, columns=list(COLUMNS))).axes]
        ['effective rank of ΔW', '', 'stable rank of ΔW', '']
    """
    check_choice("scale", scale, get_args(Scale))
    if measure is not None:
        check_choice("measure", measure, get_args(Measure))
    require_columns(frame, COLUMNS, SOURCE)
    rows, chosen = select(frame, kind, methods)
    if "group" in rows:
        rows = rows[rows["group"] == "update"]
    shown = {name: label for name, label in _MEASURES.items() if measure in (None, name)}
    moved = rows[rows["step"] > 0]
    return draw_curves(
        rows if moved.empty else moved,
        chosen,
        shown,
        what=" and ".join(shown.values()),
        scale=scale,
        width=width,
        over=over,
        ax=ax,
    )
