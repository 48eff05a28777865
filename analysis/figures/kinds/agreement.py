"""How far the updates of runs agree, runs by runs: cosine, signs, and the weights that visibly changed."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm

from deltaw.adapters.errors import OptionError
from deltaw.analysis.figures.drawing.axes import grid_of_panels, hatch, letter, width_of
from deltaw.analysis.figures.drawing.canvas import Canvas, Target, most_across
from deltaw.analysis.figures.drawing.facts import Facts, facts_of, plain
from deltaw.analysis.figures.drawing.style import check_choice, small
from deltaw.analysis.figures.drawing.words import cut
from deltaw.analysis.tables.agreement import PAIR
from deltaw.analysis.tables.tidy import of_kind, require_columns
from deltaw.analysis.tables.whole_model import agreement_matrix, model_agreement

COLUMNS = (*PAIR, "module", "layer", "kind", "entries", "norm_first", "norm_second", "cosine", "cosine_chance")
_WRITTEN = 9  # runs up to which numbers stand in the cells
_LONGEST = 14  # letters of a name at a panel
_DARK = 0.45  # luminance below which letters are white


class _Measure(NamedTuple):
    title: str
    chance: str  # the column of what chance gives
    norm: Normalize
    colors: str


MEASURES = {
    "cosine": _Measure("cosine of updates", "cosine_chance", TwoSlopeNorm(0.0, -1.0, 1.0), "RdBu_r"),
    "sign_agreement": _Measure("same sign", "sign_expected", TwoSlopeNorm(0.5, 0.0, 1.0), "RdBu_r"),
    "jaccard": _Measure("visibly changed by both", "jaccard_expected", Normalize(0.0, 1.0), "cividis"),
}


def agreement(
    frame: pd.DataFrame,
    *,
    kind: str | None = None,
    measure: str | None = None,
    width: float | None = None,
    ax: Target | None = None,
) -> Target:
    """Draw how far the updates of every two runs agree as squares of runs × runs: cosine, signs, visible changes.

    Below the diagonal is what was measured, over all matrices together; above it what chance gives in its place: of the
    cosine the standard deviation about 0, of the signs the share that unrelated updates have, of the weights that
    visibly changed (their Jaccard index |A ∩ B|/|A ∪ B|) that of independent masks. Where a cell looks like its mirror
    image, there is nothing to explain.

    Arguments:
        frame: What `deltaw.analysis.update_agreement` returns, of one step.
        kind: The kind of matrix, "query"; ``None`` for all together.
        measure: "cosine", "sign_agreement" or "jaccard" for one panel; ``None`` for all that the table has.
        width: Of a new figure, in inches; ``None`` for up to 7, or more with larger letters.
        ax: Where to draw: an Axes for one measure, a SubFigure or a Figure; ``None`` for a new Figure.

    Returns:
        What was drawn on, as seaborn does: ``ax``, or the new Figure. Nothing is shown or written.

    Raises:
        OptionError: There is no such kind or measure, or the table is of several steps or of another form.

    Source:
        "Weight-Space Geometry of Offline Reasoning Training" (arXiv 2606.23740) and "The Path Not Taken" (arXiv
        2511.08567) compare runs so; the levels of chance are those of `deltaw.analysis.measures.chance`.

    Example:
        >>> rows = [("a", "b", 9, 9, "0.query", 0, "query", 100, 1.0, 2.0, 0.5, 0.1)]
        >>> square = agreement(pd.DataFrame(rows, columns=list(COLUMNS))).axes[0].images[0].get_array()
        >>> square.filled(0).tolist()
        [[0.0, 0.1], [0.5, 0.0]]
    """
    require_columns(frame, COLUMNS, "update_agreement")
    if measure is not None:
        check_choice("measure", measure, tuple(MEASURES))
    rows = of_kind(frame, kind)
    whole = model_agreement(rows)
    shown = [name for name in MEASURES if name in whole] if measure is None else [measure]
    if missing := [name for name in shown if name not in whole]:
        raise OptionError(f"measure is {missing[0]!r}, which the table has not; ask update_agreement for it")
    blocks, across = grid_of_panels(len(shown), most_across(3, ax, width, 1.8))
    names = [cut(plain(str(name)), _LONGEST) for name in agreement_matrix(whole).index]
    each = (width_of(across, 2.4) - 0.8) / across
    canvas = Canvas(ax, width, (width_of(across, 2.4), 0.5 + blocks * each), panels=len(shown), choose="name a measure")
    for number, (name, panel) in enumerate(zip(shown, canvas.grid(across), strict=True)):
        found = MEASURES[name]
        values = agreement_matrix(whole, name).to_numpy()
        chance = agreement_matrix(whole, found.chance).to_numpy()
        square = np.where(np.tri(len(names), k=-1, dtype=bool), values, chance)
        np.fill_diagonal(square, np.nan)
        masked = np.ma.masked_invalid(square)
        image = panel.imshow(masked, cmap=found.colors, norm=found.norm)
        hatch(panel, np.ma.getmaskarray(masked), offset=-0.5)
        if len(names) <= _WRITTEN:
            _write(panel, masked, found, of_spread=name == "cosine")
        panel.grid(False)
        panel.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
        panel.set_yticks(range(len(names)), names)
        panel.tick_params(labelleft=number % across == 0, length=0)
        bar = canvas.figure.colorbar(image, ax=panel, pad=0.03, fraction=0.05)
        bar.ax.tick_params(labelsize=small())
        canvas.title(panel, found.title, letter(number))
    return canvas.finish(_facts(rows, shown))


def _write(panel: Axes, square: "np.ma.MaskedArray", found: _Measure, *, of_spread: bool) -> None:
    """Write the number into each cell."""
    colors, size = colormaps[found.colors], small() * min(1.0, 5.5 / len(square))
    for (row, column), value in np.ndenumerate(square.filled(np.nan)):
        if np.isnan(value):
            continue
        red, green, blue, _ = colors(found.norm(value))
        dark = 0.3 * red + 0.59 * green + 0.11 * blue < _DARK
        text = f"{value:.2f}".replace("-", "−") if row > column or not of_spread else f"±{value:.1g}".replace("0.", ".")
        panel.text(column, row, text, ha="center", va="center", fontsize=size, color="white" if dark else "black")


def _facts(rows: pd.DataFrame, shown: Sequence[str]) -> Facts:
    steps = sorted({int(step) for name in ("step_first", "step_second") for step in rows[name]})
    at = f"step {steps[0]:,}" if len(steps) == 1 else f"steps {steps[0]:,} to {steps[-1]:,}"
    notes = ["below the diagonal: measured; above: by chance"]
    if "cosine" in shown:
        notes.append("of the cosine by chance: its standard deviation about 0")
    facts = facts_of("How far the updates of every two runs agree", rows, pairs=f"updates since W₀, {at}", notes=notes)
    apart = rows.attrs.get("spacing")
    return replace(facts, steps=f"checkpoints {apart}") if isinstance(apart, str) and apart else facts
