"""How the figures look: sizes for a paper 7 inches wide, and colours that colour-blind readers tell apart."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from math import dist
from typing import Any, Literal

import matplotlib.style
import numpy as np
import seaborn as sns
from matplotlib import rcParams
from matplotlib.colors import to_hex, to_rgb, to_rgba
from matplotlib.font_manager import FontProperties

from deltaw.adapters.errors import OptionError
from deltaw.adapters.methods.registry import METHODS, look

Scale = Literal["linear", "log"]
AnyScale = Literal["auto", "linear", "log"]

BLUE, GREEN = "#0072B2", "#009E73"  # Okabe and Ito's; the papers' two colours: magnitude and direction

_MARKERS = "XdhpP8*v^<>Dso"
_CANDIDATES = 24
_LEAST_APART = 0.25  # of colours, in a cube of side 1


def method_styles(methods: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return the colour and the marker of each method, the same in every figure.

    They are those that the method's own file names (`Method.look`). Where it names none they follow from the method's
    position among the others in ``METHODS``: a colour of a palette as far as can be from all that are taken, and a
    marker of a cycle. Names that are not in ``METHODS`` come after those.

    Example:
        >>> method_styles(["lora", "mine"])["lora"]
        ('#0072B2', 'o')
    """
    own = {name: found for name in METHODS if (found := look(name)) is not None}
    others = [name for name in dict.fromkeys([*METHODS, *methods]) if name not in own]
    colors = _colors_apart(tuple(sorted({to_hex(color) for color, _ in own.values()})))
    free = {
        name: (colors[number % len(colors)], _MARKERS[number % len(_MARKERS)]) for number, name in enumerate(others)
    }
    return {name: _seen(*(own | free)[name]) for name in methods}


def _seen(color: str, marker: str) -> tuple[str, str]:
    """Return a look that is seen: a black line on a dark ground takes the colour of the letters."""
    return (ink() if dist(to_rgb(color), to_rgb(ground())) < _LEAST_APART else color), marker


@cache
def _colors_apart(taken: tuple[str, ...]) -> list[str]:
    """Return the colours of a palette, each as far as can be from those taken and from those before it."""
    left: list[tuple[float, float, float]] = list(sns.husl_palette(_CANDIDATES, s=0.8, l=0.55))
    near = [to_rgb(color) for color in taken]
    chosen = []
    while left:
        farthest = max(left, key=lambda color: min((dist(color, other) for other in near), default=0.0))
        left.remove(farthest)
        near.append(farthest)
        chosen.append(to_hex(farthest))
    return chosen


PAPER_WIDTH = 7.0  # inches
PAPER_SIZE = 8.0  # points, the letters at which the figures' sizes in inches are meant
_STYLE: dict[str, Any] = {
    "font.size": PAPER_SIZE,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "figure.labelsize": 8,
    "legend.fontsize": 7.5,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.pad": 2.0,
    "ytick.major.pad": 2.0,
    "axes.labelpad": 2.0,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "mathtext.fontset": "dejavusans",
    "figure.constrained_layout.w_pad": 0.03,
    "figure.constrained_layout.h_pad": 0.03,
    "pdf.fonttype": 42,  # TrueType: journals reject matplotlib's default Type 3
    "svg.hashsalt": "deltaw",  # the same ids in every file, so that the same figure gives the same bytes
}


@contextmanager
def paper_style() -> Iterator[None]:
    """Draw in the style of the papers: small letters and thin lines for a page 7 inches wide, all else as matplotlib's.

    It is what ``deltaw plot`` draws with. Without it a figure function draws in the caller's style: the ``rcParams``,
    seaborn's themes and contexts. Whatever style the caller has set is back afterwards.

    Example:
        >>> with paper_style():
        ...     matplotlib.rcParams["font.size"]
        8.0
    """
    with matplotlib.style.context(_STYLE, after_reset=True):
        yield


def ink() -> str:
    """Return the colour of what is neither a method's nor a quantity's, as a line of chance."""
    return str(to_hex(rcParams["text.color"]))


def ground() -> str:
    """Return the colour behind the data, of the edges that keep points apart."""
    for name in ("axes.facecolor", "figure.facecolor"):
        *_, alpha = to_rgba(rcParams[name])
        if alpha > 0:
            return str(to_hex(rcParams[name]))
    return "#ffffff"


def is_dark() -> bool:
    """Return whether the ground is nearer to black than to white."""
    return dist(to_rgb(ground()), (0, 0, 0)) < dist(to_rgb(ground()), (1, 1, 1))


def pale() -> str:
    """Return the colour of reference lines, as full rank: the ink's on its way to the ground's."""
    red, green, blue = 0.65 * np.array(to_rgb(ink())) + 0.35 * np.array(to_rgb(ground()))
    return str(to_hex((red, green, blue)))


def small() -> float:
    """Return the size in points of the smallest letters: those at the ticks."""
    return float(FontProperties(size=rcParams["xtick.labelsize"]).get_size_in_points())


def thin(share: float = 0.75) -> float:
    """Return the width of a thin line: a share of the usual one."""
    return float(share * rcParams["lines.linewidth"])


def mark(share: float = 0.85) -> float:
    """Return the size of a marker: a share of the usual one."""
    return float(share * rcParams["lines.markersize"])


def area(share: float = 1.2) -> float:
    """Return a scattered point's size: the square of a share of a marker's."""
    return mark(share) ** 2


def inches(width: float | None, otherwise: float) -> float:
    """Return a figure's width: the one asked for, or another where it is ``None``.

    Raises:
        OptionError: It is no number above 0.

    Example:
        >>> inches(None, 5.5), inches(7, 5.5)
        (5.5, 7)
    """
    if width is None:
        return otherwise
    check_range("width", width, 0, float("inf"), "a number of inches above 0, or None")
    return width


def check_range(option: str, value: Any, low: float, high: float, choices: str) -> None:
    """Raise an `OptionError` that lists the choices, unless ``value`` is a number above low and at most high."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float | np.integer | np.floating)
        or not low < value <= high
    ):
        raise OptionError(f"{option} is {value!r}; choose {choices}")


def check_choice(option: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise an `OptionError` that lists the choices, unless ``value`` is one of them."""
    if not isinstance(value, str) or value not in choices:
        raise OptionError(f"{option} is {value!r}; choose one of {', '.join(map(repr, choices))}")
