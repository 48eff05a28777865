"""Writing a figure or a movie to a file."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import CalledProcessError
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from matplotlib import rc_context, rcParams
from matplotlib.animation import FFMpegWriter
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray
from PIL import Image

from deltaw.adapters.errors import OptionError
from deltaw.analysis.figures.drawing.formats import check_path, format_of
from deltaw.analysis.records.storage.atomic import atomic_write

DPI = 300
MOVIE_DPI = 150
SECONDS = 6.0  # what a movie takes, with 2 to 8 frames per second
# What a file is written with, whatever style the figure has: letters that journals take (they reject matplotlib's
# default, Type 3), and the same ids in every file.
_FILES: dict[str, Any] = {"pdf.fonttype": 42, "svg.hashsalt": "deltaw"}
_KEPT = "deltaw_style"  # the attribute of a figure that holds the style it was drawn in
# What to leave out of a file so that the same figure gives the same bytes on every day.
_METADATA: dict[str, dict[str, Any]] = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


@dataclass(frozen=True)
class Movie:
    """A figure that shows one step after the other; `save` writes it as GIF or MP4.

    Arguments:
        figure: It holds the last step until another is shown.
        steps: The training steps, one per frame.
        show: Draws the frame of a step.
        moving: What it changes; all else is drawn once. Empty: everything is drawn anew for every frame.
    """

    figure: Figure
    steps: list[int]
    show: Callable[[int], None]
    moving: Sequence[Artist] = ()


def keep_style(figure: Figure) -> None:
    """Keep the style that a figure is drawn in.

    Matplotlib makes ticks as late as at saving, when the style may be another.
    """
    style = dict(rcParams.copy())
    style.pop("backend", None)
    setattr(figure, _KEPT, style)


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
    style = getattr(figure.figure if isinstance(figure, Movie) else figure, _KEPT, {})
    settings: Any = {**style, **_FILES}
    with atomic_write(path) as aside, rc_context(settings):
        if isinstance(figure, Movie):
            _film(figure, aside, kind)
        else:
            figure.savefig(aside, format=kind, dpi=DPI, metadata=_METADATA[kind])
    return path


def _film(movie: Movie, path: Path, kind: str) -> None:
    """Write the frames, the last one for a second longer."""
    rate = min(8, max(2, round(len(movie.steps) / SECONDS)))
    if kind == "gif":
        _gif(list(_frames(movie)), rate, path)
        return
    exact = ["-fflags", "+bitexact", "-flags:v", "+bitexact", "-threads", "1"]  # no date, no version of the encoder
    writer = FFMpegWriter(rate, extra_args=exact)
    wide, high = movie.figure.get_size_inches()
    screen = Figure(figsize=(float(wide), float(high)), dpi=MOVIE_DPI)
    try:
        # The writer tells the format by the name, which a temporary file does not have.
        with TemporaryDirectory() as folder:
            film = Path(folder) / f"film.{kind}"
            writer.setup(screen, str(film), MOVIE_DPI)
            try:
                picture = None
                for frame in _frames(movie):
                    picture = screen.figimage(frame) if picture is None else picture
                    picture.set_data(frame)
                    writer.grab_frame()
                for _ in range(rate):  # the last one
                    writer.grab_frame()
            except BaseException:
                with suppress(Exception):  # ends ffmpeg; the error that counts is the one above
                    writer.finish()
                raise
            writer.finish()
            shutil.copyfile(film, path)
    except CalledProcessError as error:
        raise OSError(f"ffmpeg failed with code {error.returncode}") from None


def _gif(frames: list[NDArray[np.uint8]], rate: int, path: Path) -> None:
    """Write frames as a GIF, all in the 256 colours of the last one, where every trail is longest.

    To look for 256 colours in every frame, as Pillow does by itself, takes most of the time.
    """
    pictures = [Image.fromarray(np.ascontiguousarray(frame[..., :3])) for frame in frames]
    colors = pictures[-1].quantize(256)
    plain = [picture.quantize(palette=colors, dither=Image.Dither.NONE) for picture in pictures]
    lasts = [round(1000 / rate)] * len(plain)
    lasts[-1] += 1000
    plain[0].save(path, format="gif", save_all=True, append_images=plain[1:], duration=lasts, loop=0)


def _frames(movie: Movie) -> Iterator[NDArray[np.uint8]]:
    """Yield each step's frame (height, width, 4): what stands still is drawn once, and what moves over it.

    The layout of the first frame stays: panels do not move about with the length of their titles.
    """
    figure = movie.figure
    kept, dpi, layout = figure.canvas, figure.dpi, figure.get_layout_engine()
    try:
        figure.set_dpi(MOVIE_DPI)
        canvas: Any = FigureCanvasAgg(figure)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        with ExitStack() as hidden:
            for artist in movie.moving:
                hidden.enter_context(_hidden(artist))
            canvas.draw()
            still = canvas.copy_from_bbox(figure.bbox)
        for step in movie.steps:
            movie.show(step)
            if movie.moving:
                canvas.restore_region(still)
                for artist in movie.moving:
                    figure.draw_artist(artist)
            else:
                canvas.draw()
            yield np.array(canvas.buffer_rgba())
    finally:
        figure.set_layout_engine(layout)
        figure.set_dpi(dpi)
        figure.set_canvas(kept)


@contextmanager
def _hidden(artist: Artist) -> Iterator[None]:
    """Draw nothing of an artist. A text keeps its place, as matplotlib sets a panel's titles by each other."""
    alpha, visible = artist.get_alpha(), artist.get_visible()
    if isinstance(artist, Text):
        artist.set_alpha(0)
    else:
        artist.set_visible(False)
    try:
        yield
    finally:
        artist.set_alpha(alpha)
        artist.set_visible(visible)
