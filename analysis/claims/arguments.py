"""What a measure of claims takes, and the check that what a pack gives is that and nothing else."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

LONGEST = 200  # characters of a name in a pack

REQUIRED: Any = object()


class WrongArgumentError(ValueError):
    """A measure is given something that it cannot take.

    Arguments:
        key: Whose value it is.
        said: What is wrong.
    """

    def __init__(self, key: str, said: str) -> None:
        super().__init__(f"{key} {said}")
        self.key, self.said = key, said


@dataclass(frozen=True)
class Argument:
    """One argument of a measure.

    Arguments:
        check: Returns the value as the measure takes it, or raises ValueError with what is wrong.
        takes: What it takes, in words.
        default: ``REQUIRED`` where it has to be given.
    """

    check: Callable[[Any], Any]
    takes: str
    default: Any = REQUIRED


def text(default: Any = REQUIRED, takes: str = "a name") -> Argument:
    """An argument that is a name, of which nothing is known before there are runs."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or not value.strip() or len(value) > LONGEST:
            raise ValueError(f"must be a text of 1 to {LONGEST} characters, not {_short(value)}")
        return value

    return Argument(check, takes, default)


def one_of(*choices: str, default: Any = REQUIRED) -> Argument:
    """An argument that is one of some names."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}, not {_short(value)}")
        return value

    return Argument(check, " or ".join(choices), default)


def some_of(*choices: str, default: Any = REQUIRED) -> Argument:
    """An argument that is a list of some names, each once."""

    def check(value: Any) -> tuple[str, ...]:
        whole = isinstance(value, (list, tuple)) and all(isinstance(one, str) and one in choices for one in value)
        if not whole or not value or len(set(value)) < len(value):
            raise ValueError(f"must be a list of {', '.join(choices)}, each once, not {_short(value)}")
        return tuple(value)

    return Argument(check, f"a list of {', '.join(choices)}", default)


def number(default: Any = REQUIRED, *, whole: bool = False, least: float = -math.inf) -> Argument:
    """An argument that is a finite number."""
    kind = "a whole number" if whole else "a number"
    bound = "" if least == -math.inf else f" of at least {least:g}"

    def check(value: Any) -> float:
        fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not fits or not abs(value) <= 1e12 or value < least:
            raise ValueError(f"must be {kind}{bound}, not {_short(value)}")
        return int(value) if whole else float(value)

    return Argument(check, kind + bound, default)


def flag(default: bool) -> Argument:
    """An argument that is true or false."""

    def check(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError(f"must be true or false, not {_short(value)}")
        return value

    return Argument(check, "true or false", default)


def table_of(**arguments: Argument) -> Argument:
    """An argument that is a table of others."""

    def check(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise ValueError(f"must be a table with {', '.join(arguments)}, not {_short(value)}")
        return checked(arguments, value)

    inner = "; ".join(f"{name}: {argument.takes}" for name, argument in arguments.items())
    return Argument(check, f"a table ({inner})")


def checked(arguments: Mapping[str, Argument], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is given as the measure takes it, with the defaults.

    Raises:
        WrongArgumentError: One is unknown, missing, or of another kind.

    Example:
        >>> checked({"rank": number(8, whole=True, least=1), "method": text()}, {"method": "lora"})
        {'rank': 8, 'method': 'lora'}
    """
    for key in given:
        if key not in arguments:
            raise WrongArgumentError(str(key), f"is not known here; there are {', '.join(arguments)}")
    found = {}
    for key, argument in arguments.items():
        if key not in given:
            if argument.default is REQUIRED:
                raise WrongArgumentError(key, f"is missing; it takes {argument.takes}")
            found[key] = argument.default
            continue
        try:
            found[key] = argument.check(given[key])
        except WrongArgumentError as error:
            raise WrongArgumentError(f"{key}.{error.key}", error.said) from None
        except ValueError as error:
            raise WrongArgumentError(key, str(error)) from None
    return found


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}…"
