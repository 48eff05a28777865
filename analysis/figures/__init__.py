"""The papers' figures and more, drawn from the tidy tables of a trajectory, from results, or from matrices."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from deltaw.analysis.figures import data as sources
from deltaw.analysis.figures.drawing.saving import check_path, save
from deltaw.analysis.figures.kinds.amplification import amplification
from deltaw.analysis.figures.kinds.animation import Movie, animation
from deltaw.analysis.figures.kinds.cloud import cloud
from deltaw.analysis.figures.kinds.costs import costs
from deltaw.analysis.figures.kinds.distribution import distribution
from deltaw.analysis.figures.kinds.effective_rank import effective_rank
from deltaw.analysis.figures.kinds.heatmap import heatmap
from deltaw.analysis.figures.kinds.intruders import intruders
from deltaw.analysis.figures.kinds.layers import layers
from deltaw.analysis.figures.kinds.overlap import angles, overlap
from deltaw.analysis.figures.kinds.rank import rank
from deltaw.analysis.figures.kinds.region import region
from deltaw.analysis.figures.kinds.similarity import similarity
from deltaw.analysis.figures.kinds.singular_values import singular_values
from deltaw.analysis.figures.kinds.sweep import sweep
from deltaw.analysis.figures.kinds.symmetry import symmetry
from deltaw.analysis.figures.kinds.updates import updates


@dataclass(frozen=True)
class FigureKind:
    """A figure as ``deltaw plot`` makes it: ``draw(make(paths, …), …)``.

    Arguments:
        draw: The function: draw(table, …) -> Figure, or Movie.
        make: What makes its table from paths, a function of `deltaw.analysis.figures.data`.
        about: One line on what it shows.
        options: The options offered; each goes to those of the two functions that have an argument of its name.
        paths, example: What it takes, for the help.
        movie: It is an animation.
    """

    draw: Callable[..., Figure | Movie]
    make: Callable[..., Any]
    about: str
    options: tuple[str, ...] = ()
    paths: str = "RUNS"
    example: str = "runs/ft runs/lora runs/bora"
    movie: bool = False


_OVER_TRAINING = ("kind", "scale", "at_most", "modules")

FIGURES = {
    "symmetry": FigureKind(
        symmetry,
        sources.consecutive,
        "ΔM and ΔD from step to step, by column and by row (BoRA, Figure 2)",
        ("kind", "scale", "share", "modules"),
    ),
    "updates": FigureKind(
        updates,
        sources.initial,
        "ΔM and ΔD since the start, by column and by row (BoRA, Figure 3)",
        ("kind", "scale", "share", "modules"),
    ),
    "cloud": FigureKind(
        cloud,
        sources.since,
        "ΔM against ΔD with their correlation (DoRA, Figures 2 and 7)",
        ("kind", "axis", "steps", "pairs", "modules"),
    ),
    "layers": FigureKind(
        layers,
        sources.last_base,
        "ΔM and ΔD by layer at the end (DoRA, Figures 3 and 8)",
        ("kinds", "axis", "scale", "modules"),
    ),
    "region": FigureKind(
        region, sources.updates, "where ΔW of a matrix is not zero (SBoRA, Figure 2)", ("module", "step")
    ),
    "costs": FigureKind(
        costs,
        sources.results,
        "training time and memory (SBoRA, Figures 3 and 4)",
        paths="RESULTS",
        example="results.csv",
    ),
    "sweep": FigureKind(
        sweep,
        sources.results,
        "Dual LoRA's score by r₁ : r₂ (Dual LoRA, Figure 2)",
        ("score",),
        paths="RESULTS",
        example="runs.csv",
    ),
    "rank": FigureKind(
        rank, sources.last_spectra, "the rank of ΔW by layer (Dual LoRA, Figure 3)", ("kind", "scale", "modules")
    ),
    "singular-values": FigureKind(
        singular_values, sources.singular_values, "the spectrum of ΔW over training", ("kind", "at_most", "modules")
    ),
    "effective-rank": FigureKind(
        effective_rank, sources.spectra, "effective and stable rank of ΔW over training and by layer", _OVER_TRAINING
    ),
    "overlap": FigureKind(
        overlap,
        sources.overlap,
        "how much two updates share, φ(i, j) (LoRA, Figures 3 and 4)",
        ("kind", "pair", "rank", "side", "layers", "modules"),
        example="runs/lora runs/dora",
    ),
    "angles": FigureKind(
        angles,
        sources.angles,
        "the principal angles between two updates",
        ("kind", "pair", "rank", "side", "layers", "modules"),
        example="runs/lora runs/dora",
    ),
    "amplification": FigureKind(
        amplification,
        sources.amplification,
        "LoRA's amplification factor over training and by layer (LoRA, Table 7)",
        ("kind", "rank", "scale", "at_most", "modules"),
    ),
    "intruders": FigureKind(
        intruders,
        sources.intruders,
        "intruder dimensions over training and by layer",
        ("kind", "k", "epsilon", "at_most", "modules"),
    ),
    "similarity": FigureKind(
        similarity, sources.similarity, "CKA of W′ with W₀ over training and by layer", _OVER_TRAINING
    ),
    "distribution": FigureKind(
        distribution,
        sources.vectors,
        "how ΔM and ΔD are spread over columns or rows, over training",
        ("kind", "axis", "at_most", "modules"),
    ),
    "heatmap": FigureKind(
        heatmap,
        sources.vectors,
        "a quantile of ΔM and ΔD as a map of layers and steps",
        ("kind", "axis", "quantile", "at_most", "modules"),
    ),
    "animation": FigureKind(
        animation,
        sources.since,
        "the cloud of ΔM and ΔD as it moves over training, as GIF or MP4",
        ("kind", "axis", "pairs", "modules"),
        movie=True,
    ),
}

__all__ = [
    "FIGURES",
    "FigureKind",
    "Movie",
    "amplification",
    "angles",
    "animation",
    "check_path",
    "cloud",
    "costs",
    "distribution",
    "effective_rank",
    "heatmap",
    "intruders",
    "layers",
    "overlap",
    "rank",
    "region",
    "save",
    "similarity",
    "singular_values",
    "sweep",
    "symmetry",
    "updates",
]
