"""Text from files on its way to a terminal, a spreadsheet or a notebook: no control character, formula or markup."""

import html
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

# What LaTeX would obey, or has no letter for in its first fonts.
LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "%": r"\%", "&": r"\&", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "’": "'", "…": r"\dots{}",
    "Δ": r"$\Delta$", "σ": r"$\sigma$", "φ": r"$\varphi$", "Σ": r"$\Sigma$", "′": "$'$", "±": r"$\pm$", "−": "$-$",
    "×": r"$\times$", "·": r"$\cdot$", "‖": r"$\|$", "√": r"$\surd$", "≥": r"$\ge$", "≤": r"$\le$", "°": r"$^\circ$",
    "§": r"\S{}", "–": "--", "½": r"$\frac12$", "→": r"$\to$", "λ": r"$\lambda$", "α": r"$\alpha$", "β": r"$\beta$",
}  # fmt: skip
LATEX |= {sign: f"$_{number}$" for number, sign in enumerate("₀₁₂₃₄₅₆₇₈₉")}
LATEX |= {sign: f"$^{number}$" for number, sign in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")} | {"⁻": "$^-$"}
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def printable(text: str, *, keep: str = "") -> str:
    r"""Return a text with everything that a terminal obeys instead of showing it written out, as ``\x1b``.

    These are control characters, line breaks, marks that turn the direction of writing or are not seen, and halves of
    surrogate pairs. Names of modules, files and methods come from strangers, and may hold any of them.

    Arguments:
        text: To be shown.
        keep: Characters that stay as they are, as the line breaks of a table.

    Example:
        >>> print(printable("h.0.\x1b[2J\u202egnp"), printable("ΔM of layer.0"))
        h.0.\x1b[2J\u202egnp ΔM of layer.0
    """
    if text.isprintable():
        return text
    return "".join(character if _shown(character, keep) else _escaped(character) for character in text)


def latex_text(text: str) -> str:
    r"""Return a text as LaTeX prints it: no command, no formula, nothing that a terminal would obey.

    Example:
        >>> print(latex_text(r"\input{x} costs 5 $ & ΔM"))
        \textbackslash{}input\{x\} costs 5 \$ \& $\Delta$M
    """
    signs = LATEX | {"$": r"\$"}
    return "".join(signs.get(character, character) for character in printable(text))


def html_table(title: str, rows: Iterable[tuple[object, object]]) -> str:
    """Return a small table of names and values for a notebook; every text is escaped.

    Arguments:
        title: Above it.
        rows: A name and a value each; numbers are shown to four digits.

    Example:
        >>> print(html_table("Spectrum", [("rank", 8)]))
        <table><caption>Spectrum</caption><tr><th>rank</th><td>8</td></tr></table>
    """
    cells = "".join(f"<tr><th>{_cell(name)}</th><td>{_cell(value)}</td></tr>" for name, value in rows)
    return f"<table><caption>{_cell(title)}</caption>{cells}</table>"


def html_rows(title: str, head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Return a table with a heading over each column for a notebook; every text is escaped.

    Example:
        >>> print(html_rows("Claims", ["it says"], [["r > 0"]]))
        <table><caption>Claims</caption><tr><th>it says</th></tr><tr><td>r &gt; 0</td></tr></table>
    """
    lines = [
        [f"<th>{_cell(name)}</th>" for name in head],
        *([f"<td>{_cell(cell)}</td>" for cell in row] for row in rows),
    ]
    body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in lines)
    return f"<table><caption>{_cell(title)}</caption>{body}</table>"


def _cell(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return html.escape(printable(text))


def spreadsheet_cell(text: str) -> str:
    """Return a text as a cell of a CSV file: printable, and with an apostrophe before what would be a formula.

    A spreadsheet computes a cell that begins with =, +, - or @ (or a tab or a line break before one), even in a file of
    somebody else's; the apostrophe is its own mark for text.

    Example:
        >>> spreadsheet_cell("=1+1"), spreadsheet_cell("layer.0")
        ("'=1+1", 'layer.0')
    """
    return ("'" if text.startswith(_FORMULA) else "") + printable(text)


def spreadsheet_safe(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Return a table whose texts are cells as ``spreadsheet_cell`` makes them; numbers stay numbers.

    Arguments:
        frame: Of any columns; it is not changed.
    """
    texts: Sequence[str] = [name for name in frame.columns if frame[name].dtype.kind not in "biufcmM"]
    cells = {
        name: frame[name].map(lambda cell: spreadsheet_cell(cell) if isinstance(cell, str) else cell) for name in texts
    }
    return frame.assign(**cells)


def _shown(character: str, keep: str) -> bool:
    return character.isprintable() or character in keep or unicodedata.category(character) == "Zs"


def _escaped(character: str) -> str:
    """Write a character out as Python does; what Python would show, too."""
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
