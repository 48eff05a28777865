"""Checks of plain options, the same for all."""

import operator
from typing import Any

from deltaw.adapters.errors import OptionError


def whole_number(name: str, value: Any, least: int, *, also: str = "") -> int:
    """Return the value as an int; NumPy's integers are taken, True, 2.0 and "2" are not.

    Arguments:
        name: Of the option, for the message.
        value: What was given.
        least: The smallest number that is allowed.
        also: What else is allowed there, for the message: "None".

    Raises:
        OptionError: It is no whole number, or too small.

    Example:
        >>> whole_number("rank", 8, 1)
        8
        >>> whole_number("rank", True, 1)
        Traceback (most recent call last):
        deltaw.adapters.errors.OptionError: rank must be a whole number of at least 1, not True
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    truth = isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")  # of Python, NumPy or torch
    if truth or number < least:
        either = f"{also} or " if also else ""
        raise OptionError(f"{name} must be {either}a whole number of at least {least}, not {value!r}")
    return number
