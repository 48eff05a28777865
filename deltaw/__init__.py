"""deltaw shows how fine-tuning moves weights: what a person types first, handed on lazily.

``import deltaw`` loads neither torch nor pandas; a name is imported when it is asked for. What each name is stands in
``__init__.pyi``, where type checkers read it, too.

Example:
    >>> import deltaw, numpy
    >>> deltaw.change(numpy.eye(3), 2 * numpy.eye(3), axis="row").delta_m
    1.0
"""

from typing import Any

import lazy_loader

_attribute, _, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("deltaw")
    return _attribute(name)
