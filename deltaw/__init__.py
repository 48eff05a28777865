"""deltaw shows how fine-tuning moves weights: what a person types first, handed on lazily.

``import deltaw`` loads neither torch nor pandas; a name is imported when it is asked for. What each name is stands in
``__init__.pyi``, where type checkers read it, too.

Example:
    >>> import deltaw, torch
    >>> deltaw.change(torch.eye(3), 2 * torch.eye(3), axis="row").delta_m
    1.0
"""

from typing import Any

import lazy_loader

_attribute, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("deltaw")
    return _attribute(name)
