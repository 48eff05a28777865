"""Writing a figure to a file."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from deltaw.adapters import OptionError
from deltaw.analysis.figures.style import paper_style
from deltaw.analysis.files import written_aside

DPI = 300
# What to leave out of a file so that the same figure gives the same bytes on every day.
_METADATA: dict[str, dict[str, Any]] = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


def check_path(path: str | Path) -> Path:
    """Return the path if a figure can be written there by its suffix; ask before the work, not after.

    Raises:
        OptionError: The suffix is none of .png, .svg, .pdf.

    Example:
        >>> check_path("symmetry.pdf").name
        'symmetry.pdf'
    """
    path = Path(path)
    if path.suffix.lower().lstrip(".") not in _METADATA:
        choices = ", ".join(f".{name}" for name in _METADATA)
        raise OptionError(f"{path}: a figure has no format {path.suffix!r}; choose one of {choices}")
    return path


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG (300 dots per inch), SVG or PDF, by the suffix; whole or not at all.

    The same figure gives the same bytes: no date is written.

    Arguments:
        figure: What a function of this package returned.
        path: Where to write; its folder is made if it is missing, an older file is replaced.

    Returns:
        The path.

    Raises:
        OptionError: The suffix is none of .png, .svg, .pdf.

    Example:
        >>> import tempfile
        >>> save(Figure(), Path(tempfile.mkdtemp()) / "empty.svg").name
        'empty.svg'
    """
    path = check_path(path)
    kind = path.suffix.lower().lstrip(".")
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path) as aside, paper_style():
        figure.savefig(aside, format=kind, dpi=DPI, metadata=_METADATA[kind])
    return path
