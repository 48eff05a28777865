"""Checks of plain options, the same for all."""

import difflib
import inspect
import operator
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from deltaw.adapters.errors import OptionError

P = ParamSpec("P")
R = TypeVar("R")


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


def public(function: Callable[P, R]) -> Callable[P, R]:
    """Make a call with a wrong, missing or misspelt argument an OptionError that says what to pass.

    Example:
        >>> @public
        ... def times(W, *, factor=1.0):
        ...     return factor * W
        >>> times(2, factr=3)
        Traceback (most recent call last):
        deltaw.adapters.errors.OptionError: times has no argument 'factr' (did you mean 'factor'?); it takes W, factor
    """
    signature = inspect.signature(function)
    known = [name for name in signature.parameters if name not in ("self", "cls")]
    name = function.__qualname__.removesuffix(".__init__")
    collects = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())

    @wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        try:
            signature.bind(*args, **options)
        except TypeError as error:
            unknown = [] if collects else [option for option in options if option not in known]
            near = difflib.get_close_matches(unknown[0], known, n=1) if unknown else []
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            what = f"has no argument {unknown[0]!r}{hint}" if unknown else f"is called wrongly ({error})"
            raise OptionError(f"{name} {what}; it takes {', '.join(known)}") from None
        return function(*args, **options)

    return call
