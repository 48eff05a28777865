"""How the spectrum of an update grows: its entropy, how fast its singular values grow, and how unevenly."""

from collections.abc import Sequence
from typing import Literal, get_args

import pandas as pd

from deltaw.analysis.figures.drawing.canvas import Target
from deltaw.analysis.figures.drawing.curves import Over, draw_curves
from deltaw.analysis.figures.drawing.style import AnyScale, check_choice
from deltaw.analysis.tables.tidy import require_columns, select

SOURCE = "spectral_growth"
COLUMNS = ("run", "method", "module", "layer", "kind", "step", "entropy", "entropy_rate", "growth", "unevenness")
Measure = Literal["entropy", "entropy_rate", "growth", "unevenness"]

_MEASURES = {
    "entropy": "entropy of σ",
    "entropy_rate": "entropy rate\nper step",
    "growth": "mean growth of σ\nper step",
    "unevenness": "unevenness\nof growth",
}
_SCALES: dict[str, AnyScale] = {
    "entropy": "linear",
    "entropy_rate": "linear",
    "growth": "linear",
    "unevenness": "log",
}


def growth(
    frame: pd.DataFrame,
    *,
    kind: str | None = "query",
    methods: Sequence[str] | None = None,
    scale: AnyScale = "auto",
    measure: Measure | None = None,
    over: Over | None = None,
    width: float | None = None,
    ax: Target | None = None,
) -> Target:
    r"""Draw how ΔW's spectrum grows: entropy and its rate, mean growth of the singular values, and how uneven it is.

    With p_i = σ_i / Σ σ the entropy is −Σ p_i log p_i / log min(out, in): 0 where one direction holds all, 1 where all
    hold the same. growth_i = (σ_i(t) − σ_i(t'))/(t − t') from one step of the table to the next; unevenness is its
    standard deviation over the σ_i, divided by the size of its mean: 0 where all singular values grow by the same
    amount. A line is a method, the mean over its matrices and runs. Rates begin at the second step.
    The scale of the unevenness is logarithmic.

    Arguments:
        frame: What `deltaw.analysis.spectral_growth` returns.
        kind: The kind of matrix, "query"; ``None`` for all together.
        methods: The methods to draw, in this order; ``None`` for all, in the order of ``METHODS``.
        scale: "linear"; "log", which has no place for a spectrum that shrinks; or "auto", which is linear but for the
            unevenness, a ratio that is large where the mean growth is near 0.
        measure: "entropy", "entropy_rate", "growth" or "unevenness" for one of the rows; ``None`` for all.
        over: "training" or "layers" for one of the two panels; ``None`` for both.
        width: Of a new figure, in inches; ``None`` for 7, a paper's width, or more with larger letters.
        ax: Where to draw: an Axes with ``over`` and ``measure``, a SubFigure or a Figure; ``None`` for a new Figure.

    Returns:
        What was drawn on, as seaborn does: ``ax``, or the new Figure. Nothing is shown or written.

    Raises:
        OptionError: There is no such kind, method or choice, or the table is of another form.

    Source:
        See `deltaw.analysis.spectral_growth` and `deltaw.analysis.spectral_entropy`.

    Example:
        >>> rows = [("a", "lora", f"{i}.query", i, "query", t, 0.2, 1e-3, 2.0, 0.5) for i in range(3) for t in (10, 20)]
        >>> drawn = growth(pd.DataFrame(rows, columns=list(COLUMNS)), measure="growth")
        >>> drawn.axes[0].get_ylabel(), [float(y) for y in drawn.axes[0].lines[0].get_ydata()]
        ('mean growth of σ\nper step', [2.0, 2.0])
    """
    check_choice("scale", scale, get_args(AnyScale))
    if measure is not None:
        check_choice("measure", measure, get_args(Measure))
    require_columns(frame, COLUMNS, SOURCE)
    rows, chosen = select(frame, kind, methods)
    shown = {name: label for name, label in _MEASURES.items() if measure in (None, name)}
    if measure is None:  # of one step there is no rate
        known = {name: label for name, label in shown.items() if rows[name].notna().any()}
        shown = known or shown
    begun = rows[rows[list(shown)].notna().any(axis=1)]  # not a first step without an update
    return draw_curves(
        rows if begun.empty else begun,
        chosen,
        shown,
        what="Growth of ΔW's spectrum" if measure is None else shown[measure].replace("\n", " ").capitalize(),
        scale={name: _SCALES[name] for name in shown} if scale == "auto" else scale,
        width=width,
        over=over,
        ax=ax,
    )
