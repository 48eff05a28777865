"""The file formats of figures and movies, checked before anything is computed; matplotlib is not imported for it."""

from pathlib import Path

from deltaw.adapters.errors import OptionError

FIGURE_FORMATS = ("png", "svg", "pdf")
MOVIE_FORMATS = ("gif", "mp4")


def check_path(path: str | Path, *, movie: bool = False) -> Path:
    """Return the path if it can be written there by its suffix; ask before the work, not after.

    Arguments:
        path: Where to write.
        movie: A `Movie` is to be written, not a figure.

    Raises:
        OptionError: It is no path; it is a folder; the suffix is none of .png, .svg, .pdf, or for a movie of .gif,
            .mp4; or ffmpeg, which writes MP4, is not installed.

    Example:
        >>> check_path("symmetry.pdf").name
        'symmetry.pdf'
    """
    choices = ", ".join(f".{name}" for name in (MOVIE_FORMATS if movie else FIGURE_FORMATS))
    if not isinstance(path, str | Path):
        raise OptionError(f"path is {path!r}; pass the name of a file that ends in one of {choices}")
    path = Path(path)
    if format_of(path) not in (MOVIE_FORMATS if movie else FIGURE_FORMATS):
        raise OptionError(
            f"{path}: {'an animation' if movie else 'a figure'} has no format {path.suffix!r}; choose one of {choices}"
        )
    if path.is_dir():
        raise OptionError(f"{path}: is a folder; choose the name of a file")
    if format_of(path) == "mp4":
        from matplotlib.animation import FFMpegWriter

        if not FFMpegWriter.isAvailable():
            raise OptionError(f"{path}: MP4 needs the program ffmpeg, which is not found; install it, or write .gif")
    return path


def format_of(path: Path) -> str:
    """Return a file's format as its suffix names it.

    Example:
        >>> format_of(Path("a.PNG"))
        'png'
    """
    return path.suffix.lower().lstrip(".")
