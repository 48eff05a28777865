"""Names and titles that have to fit: how wide a text is, and the text in lines or without its middle."""

import warnings
from textwrap import wrap

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

_LINES = 3  # of a title
_ESCAPED, _DOLLAR = r"\$", "\0"  # an escaped dollar is one letter, and stays whole


def text_width(text: str, font: FontProperties) -> float:
    """Return how wide a text is, in points.

    Example:
        >>> text_width("", FontProperties(size=8)), 30 < text_width("direction", FontProperties(size=8)) < 45
        (0.0, True)
    """
    math = "$" in text.replace(_ESCAPED, "")
    shown = text if math else text.replace(_ESCAPED, "$")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a letter that the font has not: matplotlib says so when it draws it
        widths = [
            text_to_path.get_text_width_height_descent(line, font, ismath=math)[0] for line in shown.split("\n") if line
        ]
    return float(max(widths, default=0.0))


def in_lines(text: str, room: float, font: FontProperties) -> list[str]:
    """Return a title in at most three lines that are no wider than so many points; the rest is cut.

    Example:
        >>> in_lines("(a) a method with a long name", 60, FontProperties(size=8))
        ['(a) a method', 'with a long', 'name']
    """
    plain = text.replace(_ESCAPED, _DOLLAR)
    if text_width(text, font) <= room or "$" in plain:  # a formula is whole
        return [text]
    lines: list[str] = []
    for letters in range(len(plain) - 1, 5, -1):
        lines = wrap(plain, letters, break_on_hyphens=False, max_lines=_LINES, placeholder="…")
        lines = [line.replace(_DOLLAR, _ESCAPED) for line in lines]
        if max((text_width(line, font) for line in lines), default=0.0) <= room:
            break
    return lines or [text]


def cut(text: str, longest: int) -> str:
    """Return a name without its middle where it has more letters.

    Example:
        >>> cut("a-very-long-name-of-a-method", 15)
        'a-very-…-method'
    """
    plain = text.replace(_ESCAPED, _DOLLAR)
    if "$" in plain or len(plain) <= longest:
        return text
    half = (longest - 1) // 2
    return f"{plain[:half]}…{plain[len(plain) - (longest - 1 - half) :]}".replace(_DOLLAR, _ESCAPED)


def fitted(text: str, room: float, font: FontProperties) -> str:
    """Return a name without its middle where it is wider than so many points.

    Example:
        >>> fitted("LoRA", 60, FontProperties(size=8)), fitted("a-long-name-of-a-method", 50, FontProperties(size=8))
        ('LoRA', 'a-lo…ethod')
    """
    letters = len(text)
    while letters > 5 and text_width(text, font) > room:
        letters -= 1
        text = cut(text, letters)
    return text
