"""The papers' figures, drawn from the tidy tables of a trajectory, from results, or from matrices."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from matplotlib.figure import Figure

from deltaw.analysis.figures.costs import costs
from deltaw.analysis.figures.files import check_path, save
from deltaw.analysis.figures.rank import rank
from deltaw.analysis.figures.region import region
from deltaw.analysis.figures.sweep import sweep
from deltaw.analysis.figures.symmetry import symmetry
from deltaw.analysis.figures.updates import updates


@dataclass(frozen=True)
class FigureKind:
    """A figure that is drawn from one table of recorded runs, so that ``deltaw plot`` can make it.

    Arguments:
        draw: The function: draw(table, kind=…, methods=…, scale=…) -> Figure.
        table: What it draws: `Trajectory.changes` of "consecutive" or "initial" pairs, or "spectra", which is
            `Trajectory.spectra` with ``groups=True``.
        about: One line on what it shows.
    """

    draw: Callable[..., Figure]
    table: Literal["consecutive", "initial", "spectra"]
    about: str


FIGURES = {
    "symmetry": FigureKind(symmetry, "consecutive", "ΔM and ΔD from step to step, columns above rows (BoRA, Figure 2)"),
    "updates": FigureKind(updates, "initial", "ΔM and ΔD since the start, columns above rows (BoRA, Figure 3)"),
    "rank": FigureKind(rank, "spectra", "the rank of ΔW by layer (Dual LoRA, Figure 3)"),
}

__all__ = [
    "FIGURES",
    "FigureKind",
    "check_path",
    "costs",
    "rank",
    "region",
    "save",
    "sweep",
    "symmetry",
    "updates",
]
