"""The two quantities of most figures, ΔM and ΔD, and how they look."""

from dataclasses import dataclass
from typing import Literal, get_args

from deltaw.analysis.figures.drawing.style import BLUE, GREEN, check_choice

Measure = Literal["delta_m", "delta_d"]


@dataclass(frozen=True)
class Quantity:
    """One of the two curves of a panel."""

    column: str
    symbol: str
    word: str
    color: str
    line: Literal["-", "--"]


QUANTITIES = (
    Quantity("delta_m", "ΔM", "magnitude", BLUE, "-"),
    Quantity("delta_d", "ΔD", "direction", GREEN, "--"),
)


def quantities(measure: Measure | None) -> list[Quantity]:
    """Return ΔM and ΔD, or the one that is asked for.

    Raises:
        OptionError: measure is neither, nor ``None`` for both.
    """
    if measure is not None:
        check_choice("measure", measure, get_args(Measure))
    return [q for q in QUANTITIES if measure in (None, q.column)]
