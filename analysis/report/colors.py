"""A colour and a line for every run: the method's own as in the figures, and told apart where runs share a method."""

from collections.abc import Sequence

from matplotlib.colors import to_hex

from deltaw.analysis.figures.drawing.style import method_styles

# Okabe and Ito's, black and yellow aside, then four of Tol's that can be told from them.
_SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#332288", "#882255", "#999933", "#666666")
LINES = ("solid", "dashed", "dotted", "dashdot")


def run_styles(methods: Sequence[str]) -> list[tuple[str, str]]:
    """Return the colour and the line of each run, by the runs' methods.

    Where all are of one method the runs have colours of their own. Else runs of a method share its colour, and the
    lines differ.

    Example:
        >>> run_styles(["lora", "ft", "lora"])
        [('#0072b2', 'solid'), ('#000000', 'solid'), ('#0072b2', 'dashed')]
        >>> run_styles(["lora", "lora"])
        [('#0072B2', 'solid'), ('#D55E00', 'solid')]
    """
    if len(set(methods)) == 1 and len(methods) > 1:
        return [
            (_SERIES[number % len(_SERIES)], LINES[number // len(_SERIES) % len(LINES)])
            for number in range(len(methods))
        ]
    styles = method_styles(methods)
    before = [list(methods[:place]).count(method) for place, method in enumerate(methods)]
    return [
        (to_hex(styles[method][0]), LINES[number % len(LINES)]) for method, number in zip(methods, before, strict=True)
    ]
