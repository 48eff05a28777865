"""A function that is known by its path: its docstring and defaults are read without importing its module."""

import ast
import inspect
from collections.abc import Callable
from functools import cache, cached_property
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from deltaw.adapters.errors import OptionError

REQUIRED = inspect.Parameter.empty


class Function:
    """A function, or the path of one, "package.module:function", which is imported when it is loaded.

    Arguments:
        name: What it is called in messages.
        given: The function or its path.

    Raises:
        OptionError: It is neither.

    Example:
        >>> function = Function("draw", "deltaw.analysis.figures.kinds.rank:rank")
        >>> function.defaults["scale"], function.doc.split(",")[0]
        ('log', 'Draw the rank of ΔW by layer at the last recorded step')
    """

    def __init__(self, name: str, given: Callable[..., Any] | str) -> None:
        path = isinstance(given, str) and all(part.replace(".", "_").isidentifier() for part in given.split(":", 1))
        if not callable(given) and not (path and ":" in given):
            raise OptionError(f'{name} is {given!r}; pass a function, or its path as "package.module:function"')
        self.name, self.given = name, given

    def __repr__(self) -> str:
        return self.given if isinstance(self.given, str) else getattr(self.given, "__name__", repr(self.given))

    def load(self) -> Callable[..., Any]:
        """Return the function; import it if need be.

        Raises:
            OptionError: There is no such function.
        """
        if not isinstance(self.given, str):
            return self.given
        module, _, function = self.given.partition(":")
        try:
            found: Callable[..., Any] = getattr(import_module(module), function)
        except (ModuleNotFoundError, AttributeError) as error:
            raise OptionError(f"{self.name} is {self.given!r}, which cannot be imported: {error}") from None
        return found

    @cached_property
    def doc(self) -> str:
        """The docstring without its indent; "" where there is none."""
        node = self._node()
        return (inspect.getdoc(self.load()) if node is None else ast.get_docstring(node)) or ""

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """The default of each argument; ``REQUIRED`` where it has none."""
        node = self._node()
        if node is not None:
            try:
                return _defaults(node.args)
            except ValueError:
                pass  # a default is no plain value: only the module knows it
        return {name: found.default for name, found in inspect.signature(self.load()).parameters.items()}

    def _node(self) -> ast.FunctionDef | None:
        """Return the function's definition in its source; ``None`` where it must be imported to be known."""
        if not isinstance(self.given, str):
            return None
        module, _, function = self.given.partition(":")
        return _functions(module).get(function)


@cache
def _functions(module: str) -> dict[str, ast.FunctionDef]:
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:
        return {}  # `load` says so
    source = getattr(spec and spec.loader, "get_source", lambda _: None)(module)
    return {node.name: node for node in ast.parse(source or "").body if isinstance(node, ast.FunctionDef)}


def _defaults(arguments: ast.arguments) -> dict[str, Any]:
    """Return the defaults by argument; raise a ``ValueError`` where one is no plain value."""
    positional = [*arguments.posonlyargs, *arguments.args]
    given: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    names = [argument.arg for argument in (*positional, *arguments.kwonlyargs)]
    values = [*given, *arguments.defaults, *arguments.kw_defaults]
    return {
        name: REQUIRED if value is None else ast.literal_eval(value) for name, value in zip(names, values, strict=True)
    }
