"""How the figures look: sizes for a paper 7 inches wide, and colours that colour-blind readers tell apart."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import matplotlib.style

from deltaw.adapters.errors import OptionError

Scale = Literal["linear", "log"]

BLUE, GREEN = "#0072B2", "#009E73"  # Okabe and Ito's; the papers' two colours: magnitude and direction

# One colour and marker a method, the same in every figure. Okabe and Ito's colours, less their yellow, which is too
# light for a line on white; wine and olive are Paul Tol's.
METHOD_STYLES = {
    "ft": ("#000000", "s"),
    "galore": ("#666666", "s"),
    "lora": (BLUE, "o"),
    "lora+": (BLUE, "P"),
    "rslora": ("#56B4E9", "p"),
    "lora-fa": ("#56B4E9", "v"),
    "asylora": ("#56B4E9", "^"),
    "oa": ("#56B4E9", "D"),
    "pissa": ("#332288", "o"),
    "corda": ("#332288", "X"),
    "delta-lora": (BLUE, "d"),
    "vera": ("#117733", "o"),
    "dora": (GREEN, "D"),
    "dora-row": ("#E69F00", "v"),
    "magnitude": ("#E69F00", "o"),
    "dvora": ("#117733", "D"),
    "bora": ("#CC79A7", "^"),
    "sbora-fa": ("#882255", "<"),
    "sbora-fb": ("#999933", ">"),
    "mora": ("#AA4499", "h"),
    "hira": ("#661100", "8"),
    "randlora": ("#888888", "P"),
    "dual-lora": ("#D55E00", "P"),
}
OTHER_STYLES = (("0.5", "X"), ("0.5", "d"), ("0.5", "h"), ("0.5", "8"))


def method_styles(methods: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return the colour and the marker of each method; methods that have none of their own are grey.

    Example:
        >>> method_styles(["lora", "mine"])
        {'lora': ('#0072B2', 'o'), 'mine': ('0.5', 'X')}
    """
    others = [name for name in methods if name not in METHOD_STYLES]
    return {name: METHOD_STYLES.get(name) or OTHER_STYLES[others.index(name) % len(OTHER_STYLES)] for name in methods}


PAPER_WIDTH = 7.0  # inches
SMALLEST = 7.0  # points

_STYLE: dict[str, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "figure.labelsize": 8,
    "legend.fontsize": 7.5,
    "xtick.labelsize": SMALLEST,
    "ytick.labelsize": SMALLEST,
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
    """Draw in the figures' style, whatever style the caller has set; the caller's is back afterwards."""
    with matplotlib.style.context(_STYLE, after_reset=True):
        yield


def check_choice(option: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise an `OptionError` that lists the choices, unless ``value`` is one of them."""
    if value not in choices:
        raise OptionError(f"{option} is {value!r}; choose one of {', '.join(map(repr, choices))}")
