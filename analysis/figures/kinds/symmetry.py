"""BoRA's Figure 2: do rows and columns change alike from step to step?"""

from collections.abc import Sequence

import pandas as pd

from deltaw.analysis.figures.drawing.canvas import Target
from deltaw.analysis.figures.drawing.panels import COLUMNS, Share, draw_panels
from deltaw.analysis.figures.drawing.style import Scale
from deltaw.analysis.measures.change import Axis
from deltaw.analysis.tables.tidy import require_columns, require_several_starts

SOURCE = 'Trajectory.changes("consecutive")'


def symmetry(
    frame: pd.DataFrame,
    *,
    kind: str | None = "query",
    methods: Sequence[str] | None = None,
    axis: Axis | None = None,
    share: Share = "near",
    scale: Scale = "linear",
    band: bool = True,
    width: float | None = None,
    ax: Target | None = None,
) -> Target:
    """Draw ΔM(t, t−1) and ΔD(t, t−1) of every method, columns above rows.

    A curve is the mean over the matrices of the kind, one per layer; the band is one standard deviation of them up and
    down, no further than they reach. ΔM is blue, solid, on the left axis, ΔD green, dashed, on the right one.
    Several runs of a method are averaged over the steps that they share. NaN and infinity are left out, and the figure
    says how many.

    Arguments:
        frame: The consecutive changes of one or several runs, concatenated, columns as in `Trajectory.changes`.
        kind: The kind of matrix, "query" as in the paper; ``None`` for all kinds together.
        methods: The methods to draw, in this order; ``None`` for all, in the order of ``METHODS``.
        axis: "column" or "row" for one of the two rows of panels; ``None`` for both.
        share: What shares one scale for ΔM and one for ΔD: "near", the methods within a factor of five of the largest
            among them, so that none is a flat line; "all" panels; "adapters", which gives full fine-tuning its own;
            "none", where only a method's two panels share theirs. On a log scale "near" is "all".
        scale: "linear", from 0, or "log".
        band: Draw the band.
        width: Of a new figure, in inches; ``None`` for up to 7, or more with larger letters. More than five methods go
            into further rows.
        ax: Where to draw: an Axes for one method and one axis, a SubFigure or a Figure; ``None`` for a new Figure.

    Returns:
        What was drawn on, as seaborn does: ``ax``, or the new Figure. Nothing is shown or written.

    Raises:
        OptionError: There is no such kind, method or choice, or the table is of another form.

    Source:
        BoRA, Figure 2 and equations 5 and 6.

    Example:
        >>> columns = ["run", "method", "module", "kind", "axis", "step_from", "step_to", "delta_m", "delta_d"]
        >>> rows = [
        ...     ("a", "lora", "0.query", "query", axis, step, step + 1, 1e-3, 1e-6)
        ...     for axis in ("row", "column")
        ...     for step in range(3)
        ... ]
        >>> frame = pd.DataFrame(rows, columns=columns)
        >>> [axes.get_title("left") for axes in symmetry(frame).axes if axes.get_title("left")]
        ['(a) LoRA', '(b) LoRA']
    """
    require_columns(frame, COLUMNS, SOURCE)
    require_several_starts(frame, SOURCE)
    return draw_panels(
        frame,
        what="ΔM and ΔD from checkpoint to checkpoint,",
        pairs="changes between consecutive checkpoints",
        kind=kind,
        methods=methods,
        axis=axis,
        share=share,
        scale=scale,
        band=band,
        width=width,
        ax=ax,
        end_values=False,
    )
