"""The figures by name: what ``deltaw plot`` offers. Reading this table imports neither pandas, torch nor matplotlib."""

from collections.abc import Callable
from typing import Any

from deltaw.adapters.errors import OptionError
from deltaw.analysis.figures.functions import Function

_PATHS = ("RUNS", "RESULTS")


class FigureKind:
    """A figure as ``deltaw plot`` makes it: ``draw(make(paths, …), …)``.

    Arguments:
        draw: The function draw(table, …) -> Figure, or Movie; or its path, "package.module:function", which is imported
            when the figure is drawn.
        make: The function make(paths, …) that makes its table from paths, or its path.
        about: One line on what the figure shows; ``None`` for the first line of draw's docstring.
        options: The options offered; each goes to those of the two functions that have an argument of its name.
        paths: "RUNS" or "RESULTS", what make reads.
        example: Paths for the example in the help.
        movie: It is an animation.

    Raises:
        OptionError: draw or make is neither a function nor a path of one; paths is another word.

    Example:
        >>> def draw(table, *, bold=False):
        ...     "Draw a table."
        >>> mine = FigureKind(draw, "deltaw.analysis.figure_tables:spectra", options=("bold", "at_most"))
        >>> mine.about, mine.draw_defaults["bold"], mine.make_defaults["at_most"]
        ('Draw a table', False, 40)
    """

    def __init__(
        self,
        draw: Callable[..., Any] | str,
        make: Callable[..., Any] | str,
        about: str | None = None,
        options: tuple[str, ...] = (),
        *,
        paths: str = "RUNS",
        example: str = "runs/ft runs/lora runs/bora",
        movie: bool = False,
    ) -> None:
        if paths not in _PATHS:
            raise OptionError(f"paths is {paths!r}; choose one of {', '.join(_PATHS)}")
        self._draw, self._make = Function("draw", draw), Function("make", make)
        self._about = about
        self._options, self.paths, self.example, self.movie = tuple(options), paths, example, movie

    def __repr__(self) -> str:
        return f"FigureKind({self._draw}, {self._make})"

    @property
    def draw(self) -> Callable[..., Any]:
        """The function that draws the table."""
        return self._draw.load()

    @property
    def make(self) -> Callable[..., Any]:
        """The function that makes the table from paths."""
        return self._make.load()

    @property
    def draw_defaults(self) -> dict[str, Any]:
        """The default of each argument of ``draw``; ``REQUIRED`` where it has none."""
        return self._draw.defaults

    @property
    def make_defaults(self) -> dict[str, Any]:
        """The default of each argument of ``make``; ``REQUIRED`` where it has none."""
        return self._make.defaults

    @property
    def options(self) -> tuple[str, ...]:
        """The options offered.

        Raises:
            OptionError: Neither function has an argument of an option's name.
        """
        for option in self._options:
            if option not in self.draw_defaults | self.make_defaults:
                raise OptionError(f"neither {self._draw} nor {self._make} has an argument {option!r}")
        return self._options

    @property
    def about(self) -> str:
        """One line on what the figure shows."""
        return self.help.split("\n")[0].removesuffix(".") if self._about is None else self._about

    @property
    def help(self) -> str:
        """The docstring of ``draw`` up to its arguments."""
        return self._draw.doc.split("\n\nArguments:")[0].replace("`", "")


def _kind(draw: str, make: str, about: str, options: str = "", **more: Any) -> FigureKind:
    """Return one of this package's figures: "file" or "file:function" in kinds/, and a function of figure_tables."""
    module, _, function = draw.partition(":")
    return FigureKind(
        f"deltaw.analysis.figures.kinds.{module}:{function or module}",
        make if ":" in make else f"deltaw.analysis.figure_tables:{make}",
        about,
        tuple(options.split()),
        **more,
    )


_PAIR = {"options": "kind pair rank side layers modules", "example": "runs/lora runs/dora"}
RESULTS = "deltaw.analysis.tables.results:results"
_RESULTS = {"paths": "RESULTS", "example": "results.csv"}

# In the order of the help: the papers' figures first.
FIGURES = {
    "symmetry": _kind(
        "symmetry",
        "consecutive",
        "ΔM and ΔD from step to step, by column and by row (BoRA, Figure 2)",
        "kind scale share modules",
    ),
    "updates": _kind(
        "updates",
        "initial",
        "ΔM and ΔD since the start, by column and by row (BoRA, Figure 3)",
        "kind scale share modules",
    ),
    "cloud": _kind(
        "cloud",
        "since",
        "ΔM against ΔD with their correlation (DoRA, Figures 2 and 7)",
        "kind axis steps pairs modules",
    ),
    "layers": _kind(
        "layers", "last_base", "ΔM and ΔD by layer at the end (DoRA, Figures 3 and 8)", "kinds axis scale modules"
    ),
    "region": _kind("region", "updates", "where ΔW of a matrix is not zero (SBoRA, Figure 2)", "module step"),
    "costs": _kind("costs", RESULTS, "training time and memory (SBoRA, Figures 3 and 4)", **_RESULTS),
    "sweep": _kind(
        "sweep",
        RESULTS,
        "Dual LoRA's score by r₁ : r₂ (Dual LoRA, Figure 2)",
        "score",
        paths="RESULTS",
        example="runs.csv",
    ),
    "rank": _kind("rank", "last_spectra", "the rank of ΔW by layer (Dual LoRA, Figure 3)", "kind scale modules"),
    "singular-values": _kind(
        "singular_values", "singular_values", "the spectrum of ΔW over training", "kind at_most modules"
    ),
    "effective-rank": _kind(
        "effective_rank",
        "spectra",
        "effective and stable rank of ΔW over training and by layer",
        "kind scale at_most modules",
    ),
    "growth": _kind(
        "growth",
        "growth",
        "how ΔW's spectrum grows: its entropy, how fast σ grows and how unevenly",
        "kind measure scale at_most modules",
    ),
    "overlap": _kind("overlap", "overlap", "how much two updates share, φ(i, j) (LoRA, Figures 3 and 4)", **_PAIR),
    "angles": _kind("overlap:angles", "angles", "the principal angles between two updates", **_PAIR),
    "agreement": _kind(
        "agreement",
        "agreement",
        "how far the updates of every two runs agree: cosine, signs, visible changes",
        "kind measure modules",
    ),
    "amplification": _kind(
        "amplification",
        "amplification",
        "LoRA's amplification factor over training and by layer (LoRA, Table 7)",
        "kind rank scale at_most modules",
    ),
    "intruders": _kind(
        "intruders",
        "intruders",
        "intruder dimensions over training and by layer",
        "kind k epsilon at_most modules",
    ),
    "similarity": _kind(
        "similarity", "similarity", "CKA of W′ with W₀ over training and by layer", "kind scale at_most modules"
    ),
    "rotation": _kind(
        "rotation",
        "rotation",
        "how far W₀'s leading singular subspaces turn, over training and by layer",
        "kind k side scale at_most modules",
    ),
    "off-principal": _kind(
        "off_principal",
        "off_principal",
        "how much of ΔW lies off W₀'s leading singular subspaces",
        "kind k sides scale at_most modules",
    ),
    "visible": _kind(
        "visible",
        "visible",
        "the share of weights that change once they are stored in a dtype",
        "kind rule scale at_most modules",
    ),
    "distribution": _kind(
        "distribution",
        "vectors",
        "how ΔM and ΔD are spread over columns or rows, over training",
        "kind axis at_most modules",
    ),
    "heatmap": _kind(
        "heatmap",
        "vectors",
        "a quantile of ΔM and ΔD as a map of layers and steps",
        "kind axis quantile at_most modules",
    ),
    "blocks": _kind(
        "blocks",
        "blocks",
        "‖ΔW‖/‖W₀‖, ΔM and ΔD by block of the model, UNets too",
        "axis scale modules",
    ),
    "heads": _kind(
        "heads",
        "heads",
        "ΔM and ΔD of single attention heads as a map of layers and heads",
        "kind step modules heads",
    ),
    "animation": _kind(
        "animation",
        "since",
        "the cloud of ΔM and ΔD as it moves over training, as GIF or MP4",
        "kind axis pairs modules",
        movie=True,
    ),
}
