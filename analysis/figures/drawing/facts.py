"""What a picture must say of itself: kind, pairs, spacing, layers, seeds, interval. Beneath it, and as its caption."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from deltaw.analysis.printable import printable
from deltaw.analysis.tables.spacing import spacing_of
from deltaw.analysis.tables.tidy import display_name, in_order

_MOST_NAMED = 6  # more kinds or layers are counted
_KEPT = "deltaw_facts"  # the attribute of the drawn figure that holds them


@dataclass(frozen=True)
class Facts:
    """What a picture must say of itself.

    Arguments:
        what: What is drawn, a sentence without its full stop.
        kind: Which matrices, "query matrices".
        pairs: Which steps are compared, "from the base weights, column by column".
        steps: The spacing of the checkpoints and the steps shown.
        layers: Which layers.
        runs: How many runs or seeds a method has.
        interval: What a band or a bar is.
        notes: What was left out, and what else a reader must know.
    """

    what: str
    kind: str = ""
    pairs: str = ""
    steps: str = ""
    layers: str = ""
    runs: str = ""
    interval: str = ""
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return what stands beneath the picture, a line each."""
        subject = ", ".join(part for part in (self.kind, self.pairs) if part)
        first = "; ".join(part for part in (subject, self.steps, _if_several(self.runs)) if part)
        return [line for line in (first, self.interval, *self.notes) if line]

    def caption(self) -> str:
        """Return the whole as sentences."""
        matrices = " of ".join(part for part in (self.kind, self.layers) if part)
        parts = (self.what, matrices, self.pairs, self.steps, self.runs, self.interval, *self.notes)
        return " ".join(_sentence(part) for part in parts if part)


def facts_of(
    what: str,
    rows: pd.DataFrame,
    *steps: str,
    pairs: str = "",
    interval: str = "",
    notes: Sequence[str] = (),
    at_end: bool = False,
    averaged: bool = True,
) -> Facts:
    """Return the facts of rows that are drawn.

    Arguments:
        what, pairs, interval, notes: As in `Facts`.
        rows: Of a tidy table, with run, method, module, layer and kind as far as it has them.
        steps: The columns of its steps.
        at_end: Only each run's last step is drawn.
        averaged: The runs of a method are; else each is drawn.
    """
    return Facts(
        what=what,
        kind=kinds_named(rows["kind"]) if "kind" in rows else "",
        pairs=pairs,
        steps=_steps(rows, steps, at_end),
        layers=_layers(rows["layer"]) if "layer" in rows else "",
        runs=_runs(rows, averaged),
        interval=interval,
        notes=tuple(notes),
    )


def remember(drawn: Any, facts: Facts) -> None:
    """Keep the facts with what was drawn, for its caption."""
    setattr(drawn, _KEPT, facts)


def remembered(drawn: Any) -> Facts | None:
    """Return the facts of what a figure function has returned; ``None`` where there are none."""
    found = getattr(drawn, _KEPT, None)
    return found if isinstance(found, Facts) else None


def plain(text: str) -> str:
    r"""Return a name of a stranger's for a picture: without control characters, and no formula between dollars.

    Example:
        >>> plain("a$b")
        'a\\$b'
    """
    return printable(text, keep="\n").replace("$", r"\$")


def method_name(method: str) -> str:
    """Return how a method is called in a picture."""
    return plain(display_name(method))


def with_notes(facts: Facts, *notes: str) -> Facts:
    """Return the facts with further notes."""
    return replace(facts, notes=(*facts.notes, *notes))


def kinds_named(column: "pd.Series[str]") -> str:
    """Return which matrices a table is of.

    Example:
        >>> kinds_named(pd.Series(["query", "value", "query"])), kinds_named(pd.Series([None]))
        ('query and value matrices', 'matrices')
    """
    there = sorted({plain(str(kind)) for kind in column.dropna()})
    if len(there) > _MOST_NAMED:
        return f"matrices of {len(there)} kinds"
    return f"{_listed(there)} matrices".lstrip()


def _layers(column: "pd.Series[int]") -> str:
    there = sorted({int(layer) for layer in column.dropna()})
    if not there:
        return ""
    if len(there) == 1:
        return f"layer {there[0]}"
    if there == list(range(there[0], there[-1] + 1)):
        return f"layers {there[0]} to {there[-1]}"
    if len(there) <= _MOST_NAMED:
        return f"layers {_listed([str(layer) for layer in there])}"
    return f"{len(there)} layers from {there[0]} to {there[-1]}"


def _steps(rows: pd.DataFrame, columns: Sequence[str], at_end: bool) -> str:
    if not columns:
        return ""
    apart = spacing_of(rows, *columns)
    there = sorted({int(step) for name in columns for step in rows[name].dropna().unique()})
    ends = sorted({int(step) for step in rows.groupby(["run", "method"])[columns[-1]].max()}) if at_end else []
    said = f"checkpoints {apart}" if apart else ""
    if at_end or len(there) == 1:
        last = ends or there
        at = f"at step {last[0]:,}" if len(last) == 1 else f"at each run's last step, {last[0]:,} to {last[-1]:,}"
        return ", ".join(part for part in (at, said) if part)
    return said


def _runs(rows: pd.DataFrame, averaged: bool) -> str:
    if "run" not in rows or "method" not in rows:
        return ""
    counts = rows.groupby("method")["run"].nunique()
    low, high = int(counts.min()), int(counts.max())
    seeds = rows.attrs.get("seeds")
    of = f", {seeds}" if isinstance(seeds, str) and seeds else ""
    if high == 1:
        return f"one run per method{of}"
    how_many = f"{'' if low == high else 'up to '}{high} runs{' per method' if len(counts) > 1 else ''}{of}"
    return f"mean of {how_many}" if averaged else how_many


def _if_several(runs: str) -> str:
    return runs if runs.startswith("mean") else ""


def methods_named(rows: pd.DataFrame) -> str:
    """Return the methods of a table in a sentence."""
    return _listed([method_name(name) for name in in_order(rows["method"])])


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."
