"""``torch.compiler.disable``, without importing the compiler for it."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")
disabled_when_called: Any = vars(torch)["_disable_dynamo"]  # torch's own: imports the compiler at the first call


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """Keep a function from being compiled, whatever compiled code calls it.

    ``torch.compiler.disable`` imports ``torch._dynamo``, seconds of it, where the function is defined. As long as that
    is not there, nothing is compiled; so it is asked at the first call after somebody else has imported it. For a
    function without tensors among its arguments: the compiler looks at these before it leaves the function alone.

    Example:
        >>> @uncompiled
        ... def add(a, b):
        ...     return a + b
        >>> add(1, b=2)
        3
    """
    disabled: Callable[P, R] = disabled_when_called(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return disabled(*args, **kwargs) if "torch._dynamo" in sys.modules else function(*args, **kwargs)

    return call
