"""The caption of a drawn figure, as text and as a figure in LaTeX."""

from pathlib import Path
from typing import Any

from deltaw.adapters.errors import OptionError
from deltaw.analysis.figures.drawing.facts import remembered
from deltaw.analysis.figures.drawing.saving import Movie
from deltaw.analysis.printable import LATEX, printable

_OBEYED = "%#{}~^$&\\"  # letters of a file's name that LaTeX would obey; there is no escape for them there


def caption(figure: Any, about: str | None = None) -> str:
    """Return what stands beneath a figure in a paper: what it shows, of which matrices, layers, pairs and checkpoints.

    It also says of how many runs, with the seeds where they are known, what bands and bars are, and what was left out.

    Arguments:
        figure: What a function of this package returned: a Figure, SubFigure, Axes or Movie.
        about: What is said of a figure from outside, of which nothing else is known.

    Raises:
        OptionError: It is none of this package's, and ``about`` is ``None``.

    Example:
        >>> from deltaw.analysis.figures.kinds.rank import rank
        >>> columns = ["run", "method", "module", "layer", "kind", "step", "group", "rank", "full_rank"]
        >>> rows = [("a", "lora", f"{layer}.query", layer, "query", 9, "update", 8, 64) for layer in range(3)]
        >>> import pandas as pd
        >>> caption(rank(pd.DataFrame(rows, columns=columns)))
        'The rank of ΔW by layer for LoRA. Query matrices of layers 0 to 2. At step 9. One run per method.'
    """
    facts = remembered(figure.figure if isinstance(figure, Movie) else figure)
    if facts is not None:
        return facts.caption()
    if about is None:
        raise OptionError(f"figure is {figure!r}; pass what a function of deltaw.analysis.figures returned")
    return about if about.endswith(".") else f"{about}."


def latex(picture: str | Path, caption: str) -> str:
    r"""Return a LaTeX figure with a picture and its caption, labelled by the file's name.

    Arguments:
        picture: The file; a .svg or .gif is named without its suffix, for the .pdf that LaTeX wants.
        caption: Plain text; what LaTeX would obey is escaped.

    Raises:
        OptionError: The file's name has a letter that LaTeX obeys, which cannot be escaped in a name.

    Example:
        >>> print(latex("runs_1/rank.pdf", "The rank of ΔW, 100 %."))
        \begin{figure}
          \centering
          \includegraphics[width=\linewidth]{rank.pdf}
          \caption{The rank of $\Delta$W, 100 \%.}
          \label{fig:rank}
        \end{figure}
    """
    path = Path(picture)
    name = path.name if path.suffix.lower() in (".pdf", ".png") else path.stem
    if obeyed := sorted({letter for letter in name if letter in _OBEYED}):
        raise OptionError(
            f"{path}: LaTeX has no picture with {' '.join(obeyed)} in its name; choose a name of letters and digits"
        )
    return "\n".join(
        [
            r"\begin{figure}",
            r"  \centering",
            rf"  \includegraphics[width=\linewidth]{{{printable(name)}}}",
            rf"  \caption{{{escaped(caption)}}}",
            rf"  \label{{fig:{''.join(c if c.isalnum() or c in '-:' else '-' for c in path.stem)}}}",
            r"\end{figure}",
        ]
    )


def escaped(text: str) -> str:
    r"""Return plain text, with the formulas between dollars that a picture's notes may have, for LaTeX.

    Example:
        >>> print(escaped(r"$10^{-6}$ of a_b, \$1"))
        $10^{-6}$ of a\_b, \$1
    """
    dollar = "\0"
    parts = text.replace(r"\$", dollar).split("$")
    if len(parts) % 2 == 0:  # a lone dollar is one
        parts = [dollar.join(parts)]
    found = [
        f"${part}$" if odd % 2 else "".join(LATEX.get(character, character) for character in part)
        for odd, part in enumerate(parts)
    ]
    return "".join(found).replace(dollar, r"\$")
