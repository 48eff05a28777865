"""Checks of what the recorder is given: each error says what to pass."""

import inspect
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from deltaw.adapters.checks import whole_number
from deltaw.adapters.errors import OptionError

NARROWER = (torch.float32, torch.bfloat16, torch.float16)


def checked_path(path: Any) -> Path:
    """Return a path, or raise an OptionError that says what to pass."""
    if not isinstance(path, (str, os.PathLike)) or not str(path):
        raise OptionError(f"path must be the run folder, a string or a Path, such as 'runs/bora', not {path!r}")
    return Path(path)


def checked_patterns(name: str, patterns: Any) -> list[str] | None:
    """Return glob patterns as a list, one of a single text."""
    if patterns is None:
        return None
    given = [patterns] if isinstance(patterns, str) else list(patterns) if isinstance(patterns, Iterable) else [None]
    found = [pattern for pattern in given if isinstance(pattern, str)]
    if len(found) < len(given):
        raise OptionError(f"{name} must be glob patterns, such as ['*.query', '*.value'], not {patterns!r}")
    return found


def number(name: str, value: Any) -> float:
    """Return the value of a scalar, also of a tensor of one entry."""
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise OptionError(f"the scalar {name} must be one number, not {value!r}") from None


def checked_numbers(
    keep: int | None, total_steps: int | None, max_bytes: int | None, background: int
) -> tuple[int | None, int | None, int | None, int]:
    """Return the recorder's whole numbers, which NumPy's may be."""
    given = {"keep": (keep, 2), "total_steps": (total_steps, 0), "max_bytes": (max_bytes, 1)}
    numbers = {
        name: None if value is None else whole_number(name, value, least) for name, (value, least) in given.items()
    }
    if max_bytes is not None and total_steps is None and keep is None:
        raise OptionError("max_bytes needs to know how many checkpoints there will be; pass total_steps or keep")
    return numbers["keep"], numbers["total_steps"], numbers["max_bytes"], whole_number("background", background, 0)


def check_options(dtype: Any, method: Any, info: Any, log: Any) -> None:
    """Raise where another option cannot be used."""
    if dtype is not None and dtype not in NARROWER:
        raise OptionError(f"dtype must be one of {', '.join(map(str, NARROWER))}, not {dtype!r}")
    if method is not None and not isinstance(method, str):
        raise OptionError(f"method must be the name of the method, such as 'bora', not {method!r}")
    if log is not None and not callable(log):
        raise OptionError(f"log must be a function of the numbers and the step, such as wandb.log, not {log!r}")
    try:
        json.dumps(dict(info or {}))
    except (TypeError, ValueError):
        raise OptionError(f"info must be a mapping of plain values (text, numbers, lists), not {info!r}") from None


def check_names(options: Mapping[str, Any], of: Callable[..., Any]) -> None:
    """Raise where a function has no such option.

    Example:
        >>> check_names({"kep": 3}, lambda *, keep, live: None)
        Traceback (most recent call last):
        deltaw.adapters.errors.OptionError: there is no option 'kep'; choose from keep, live
    """
    kinds = inspect.signature(of).parameters.values()
    known = [parameter.name for parameter in kinds if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            raise OptionError(f"there is no option {name!r}; choose from {', '.join(known)}")
