"""Writing a figure or a movie to a file."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import CalledProcessError
from tempfile import TemporaryDirectory
from typing import Any

from matplotlib.animation import AbstractMovieWriter, FFMpegWriter, PillowWriter
from matplotlib.figure import Figure

from deltaw.adapters.errors import OptionError
from deltaw.analysis.figures.drawing.formats import check_path, format_of
from deltaw.analysis.figures.drawing.style import paper_style
from deltaw.analysis.records.storage.atomic import atomic_write

DPI = 300
MOVIE_DPI = 150
SECONDS = 8.0  # what a movie takes, with 2 to 12 frames a second
# What to leave out of a file so that the same figure gives the same bytes on every day.
_METADATA: dict[str, dict[str, Any]] = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


@dataclass(frozen=True)
class Movie:
    """A figure that shows one step after the other; `save` writes it as GIF or MP4.

    Arguments:
        figure: It holds the last step until another is shown.
        steps: The training steps, one per frame.
        show: Draws the frame of a step.
    """

    figure: Figure
    steps: list[int]
    show: Callable[[int], None]


def save(figure: Figure | Movie, path: str | Path) -> Path:
    """Write a figure as PNG (300 dots per inch), SVG or PDF, or a movie as GIF or MP4; whole or not at all.

    The same figure gives the same bytes: no date is written.

    Arguments:
        figure: What a function of this package returned.
        path: Where to write; its folder is made if it is missing, an older file is replaced.

    Returns:
        The path.

    Raises:
        OptionError: It is neither, or as `check_path`.
        WriteError: The file cannot be written; what stood there before is untouched.

    Example:
        >>> import tempfile
        >>> save(Figure(), Path(tempfile.mkdtemp()) / "empty.svg").name
        'empty.svg'
    """
    if not isinstance(figure, Figure | Movie):
        raise OptionError(f"figure is {figure!r}; pass the Figure or Movie that a function of this package returned")
    path = check_path(path, movie=isinstance(figure, Movie))
    kind = format_of(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as aside, paper_style():
        if isinstance(figure, Movie):
            _film(figure, aside, kind)
        else:
            figure.savefig(aside, format=kind, dpi=DPI, metadata=_METADATA[kind])
    return path


def _film(movie: Movie, path: Path, kind: str) -> None:
    """Write the frames, the last one for a second longer."""
    rate = min(12, max(2, round(len(movie.steps) / SECONDS)))
    exact = ["-fflags", "+bitexact", "-flags:v", "+bitexact", "-threads", "1"]  # no date, no version of the encoder
    writer: AbstractMovieWriter = PillowWriter(rate) if kind == "gif" else FFMpegWriter(rate, extra_args=exact)
    # The layout of the first frame stays: panels do not move about with the length of their titles.
    movie.figure.draw_without_rendering()
    layout = movie.figure.get_layout_engine()
    movie.figure.set_layout_engine("none")
    try:
        # The writers tell the format by the name, which a temporary file does not have.
        with TemporaryDirectory() as folder:
            film = Path(folder) / f"film.{kind}"
            writer.setup(movie.figure, str(film), MOVIE_DPI)
            try:
                for step in [*movie.steps, *movie.steps[-1:] * rate]:
                    movie.show(step)
                    writer.grab_frame()
            except BaseException:
                with suppress(Exception):  # ends ffmpeg; the error that counts is the one above
                    writer.finish()
                raise
            writer.finish()
            shutil.copyfile(film, path)
    except CalledProcessError as error:
        raise OSError(f"ffmpeg failed with code {error.returncode}") from None
    finally:
        movie.figure.set_layout_engine(layout)
