"""BoRA's Figure 3: how far rows and columns have moved since the start of training."""

from collections.abc import Sequence

import pandas as pd

from deltaw.analysis.figures.drawing.canvas import Target
from deltaw.analysis.figures.drawing.panels import COLUMNS, Share, draw_panels, start_of
from deltaw.analysis.figures.drawing.style import Scale
from deltaw.analysis.measures.change import Axis
from deltaw.analysis.tables.tidy import require_columns, require_one_start

SOURCE = 'Trajectory.changes("initial")'


def updates(
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
    """Draw ΔM(t, t₀) and ΔD(t, t₀) of every method up to the end, columns above rows.

    The last point of every curve, ΔM(T, t₀) and ΔD(T, t₀), is marked, and its value written above the panel. All else
    is as in `symmetry`.

    Arguments:
        frame: The changes from the first recorded step, or from the base, of one or several runs, concatenated.
        kind, methods, axis, share, scale, band, width, ax: As in `symmetry`.

    Returns:
        What was drawn on, as seaborn does: ``ax``, or the new Figure. Nothing is shown or written.

    Raises:
        OptionError: There is no such kind, method or choice, or the table is of another form.

    Source:
        BoRA, Figure 3 and equations 5 and 6.

    Example:
        >>> columns = ["run", "method", "module", "kind", "axis", "step_from", "step_to", "delta_m", "delta_d"]
        >>> rows = [
        ...     ("a", "lora", "0.query", "query", axis, 0, step + 1, 0.2, 0.1)
        ...     for axis in ("row", "column")
        ...     for step in range(3)
        ... ]
        >>> frame = pd.DataFrame(rows, columns=columns)
        >>> [text.get_text() for text in updates(frame).axes[0].texts]
        ['ΔM 0.2', 'column-wise']
    """
    require_columns(frame, COLUMNS, SOURCE)
    require_one_start(frame, SOURCE)
    return draw_panels(
        frame,
        what="ΔM and ΔD since the start of training,",
        pairs=start_of(frame),
        kind=kind,
        methods=methods,
        axis=axis,
        share=share,
        scale=scale,
        band=band,
        width=width,
        ax=ax,
        end_values=True,
    )
