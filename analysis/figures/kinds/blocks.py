"""How far each block of a model moved: ‖ΔW‖/‖W₀‖, ΔM and ΔD, the blocks from the model's input down to its output."""

from collections.abc import Sequence
from typing import get_args

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from deltaw.adapters.errors import OptionError
from deltaw.analysis.figures.drawing.axes import Fitting, in_rows, letter, log_axis, method_entries, number_axis
from deltaw.analysis.figures.drawing.canvas import Canvas, Target, most_across
from deltaw.analysis.figures.drawing.facts import facts_of, methods_named
from deltaw.analysis.figures.drawing.rows import last_steps
from deltaw.analysis.figures.drawing.style import PAPER_WIDTH, Scale, check_choice, ground, mark, method_styles, thin
from deltaw.analysis.names import block_order
from deltaw.analysis.printable import printable
from deltaw.analysis.tables.model_blocks import COLUMNS, by_block
from deltaw.analysis.tables.tidy import of_methods, require_columns

SOURCE = "block_table"
LABELS = {"relative": "‖ΔW‖ / ‖W₀‖", "norm": "‖ΔW‖", "delta_m": "ΔM", "delta_d": "ΔD"}
MOST = 45  # names of blocks that are written; of more, every second or third
LONGEST = 32  # letters of one


def blocks(
    frame: pd.DataFrame,
    *,
    methods: Sequence[str] | None = None,
    scale: Scale = "log",
    measure: str | None = None,
    width: float | None = None,
    ax: Target | None = None,
) -> Target:
    """Draw ‖ΔW‖/‖W₀‖, ΔM and ΔD of each block of the model at the last step, a line per method.

    Without W₀ it is ‖ΔW‖ alone. The blocks go from the input at the top to the output at the bottom: of a UNet down,
    mid and up blocks, of a transformer its layers. ‖ΔW‖ and ‖W₀‖ are those of a block's matrices together, ΔM and ΔD
    the means of the matrices' own. A point is the mean over the runs of a method.

    Arguments:
        frame: What ``block_table`` returns.
        methods: The methods to draw, in this order; ``None`` for all, in the order of ``METHODS``.
        scale: "log", or "linear" from 0.
        measure: "relative", "norm", "delta_m" or "delta_d" for one of them; ``None`` for the first that is known of the
            first two, and for ΔM and ΔD where they are.
        width: Of a new figure, in inches; ``None`` for 7, a paper's width, or more with larger letters.
        ax: Where to draw: an Axes for one measure, a SubFigure or a Figure; ``None`` for a new Figure.

    Returns:
        What was drawn on, as seaborn does: ``ax``, or the new Figure. Nothing is shown or written.

    Raises:
        OptionError: There is no such method or choice, nothing is known of a measure, or the table is of another form.

    Example:
        >>> rows = [("a", "lora", f"layers.{k}.q", f"layers.{k}", 9, 1.0 + k, 10.0, 0.1, 0.2) for k in range(3)]
        >>> [axes.get_xlabel() for axes in blocks(pd.DataFrame(rows, columns=list(COLUMNS))).axes]
        ['‖ΔW‖ / ‖W₀‖', 'ΔM', 'ΔD']
    """
    check_choice("scale", scale, get_args(Scale))
    if measure is not None:
        check_choice("measure", measure, tuple(LABELS))
    require_columns(frame, COLUMNS, SOURCE)
    chosen = of_methods(frame, methods)
    rows = last_steps(frame[frame["method"].isin(chosen)])
    whole = by_block(rows)
    shown = _measures(whole, measure)
    first = dict(zip(rows["block"], rows["module"], strict=True))
    names = sorted(first, key=lambda block: block_order(first[block]))
    means = whole.groupby(["method", "block"])[shown].mean()
    styles = method_styles(chosen)
    across = most_across(len(shown), ax, width, 1.9)
    levels = -(-len(shown) // across)
    size = (PAPER_WIDTH, 0.7 + 0.13 * levels * (min(max(len(names), 8), MOST) + (5 if levels > 1 else 0)))
    canvas = Canvas(ax, width, size, panels=len(shown), choose="choose one with measure=")
    panels = (
        [canvas.ax]
        if canvas.ax is not None
        else list(canvas.figure.subplots(levels, across, sharey=True, squeeze=False).flat)
    )
    for number, name in enumerate(shown):
        panel = panels[number]
        for method in chosen:
            own = means[name].xs(method).reindex(names).to_numpy()
            color, marker = styles[method]
            panel.plot(
                np.where(own > 0, own, np.nan) if scale == "log" else own,
                np.arange(len(names)),
                color=color,
                marker=marker,
                markersize=mark(1.1),
                markeredgecolor=ground(),
                markeredgewidth=thin(0.25),
                linewidth=thin(),
            )
        for place in range(1, len(names)):  # from one part of the model to the next
            if block_order(first[names[place]])[:2] != block_order(first[names[place - 1]])[:2]:
                panel.axhline(place - 0.5, color="0.8", linewidth=thin(0.5), zorder=0)
        _values(panel, means[name], LABELS[name], scale)
        canvas.title(panel, LABELS[name], letter(number))
        if number % across == 0:
            _names(panel, names)
        else:  # they share one axis
            panel.tick_params(labelleft=False)
    canvas.legend(in_rows(method_entries(chosen), 5))
    zero = int((means[shown[0]] == 0).sum())
    notes = [f"{zero} blocks that did not move are left out"] if zero and scale == "log" else []
    lost = int(means[shown].isna().any(axis=1).sum())
    notes += [f"{lost} blocks without W₀ are left out of a panel"] if lost else []
    what = f"{', '.join(LABELS[name] for name in shown)} by block of the model for {methods_named(rows)}"
    return canvas.finish(facts_of(what, rows, "step", pairs="since the base weights", notes=notes, at_end=True))


def _measures(whole: pd.DataFrame, measure: str | None) -> list[str]:
    """The measures that are drawn; each must have a number."""
    known = [name for name in LABELS if whole[name].notna().any()]
    if measure is not None:
        if measure not in known:
            raise OptionError(f"measure is {measure!r}, which needs W₀ (base=, --base); there are {', '.join(known)}")
        return [measure]
    if not known:
        raise OptionError("no matrix has an update; there is nothing to draw")
    return [name for name in known if name != "norm" or "relative" not in known]


def _values(panel: Axes, values: "pd.Series[float]", label: str, scale: Scale) -> None:
    high, above = float(values.max()), values[values > 0]
    if scale == "log" and len(above):
        log_axis(panel, "x", float(above.min()) / 1.3, high * 1.3, label)
    else:
        number_axis(panel, "x", (0.0, 1.06 * high if high > 0 else 1.0), label)
        panel.xaxis.set_major_locator(Fitting(4))


def _names(panel: Axes, names: Sequence[str]) -> None:
    """The blocks, the first on top."""
    every = -(-len(names) // MOST)
    lead = _lead(names)
    shown = [_short(name[len(lead) :]) for name in names[::every]]
    panel.set_yticks(range(0, len(names), every), shown)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.set_ylabel("")


def _lead(names: Sequence[str]) -> str:
    """What all blocks begin with, whole parts of their names."""
    parts = [name.split(".")[:-1] for name in names]
    same = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        same.append(column[0])
    return "".join(f"{part}." for part in same) if len(names) > 1 and not all(p == parts[0] for p in parts) else ""


def _short(name: str) -> str:
    found = printable(name)
    return found if len(found) <= LONGEST else f"…{found[1 - LONGEST :]}"
