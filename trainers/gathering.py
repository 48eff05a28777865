"""Weights that no module holds between two steps: FSDP1's flat parameters, and those of DeepSpeed's ZeRO stage 3.

FSDP1 (``FullyShardedDataParallel``) lays the parameters of a unit end to end and gives each process a piece; ZeRO-3
does so with every parameter. Both have a call by which all processes put them back into the modules for a while:
``summon_full_params`` of a unit, ``GatheredParameters`` of a list. What is put back here is never more than the units
that hold one layer, as in a forward pass.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any, Protocol, TypeVar

from torch import nn

from deltaw.adapters.errors import RecordError
from deltaw.adapters.sharded import is_sharded

FSDP1 = "FullyShardedDataParallel"
# What puts a module into another below the model, so that its name and its class are hidden.
INNER = {FSDP1: "_fsdp_wrapped_module", "CheckpointWrapper": "_checkpoint_wrapped_module"}


class Holds(Protocol):
    """A recorded layer."""

    @property
    def module(self) -> nn.Module:
        """Its module."""


L = TypeVar("L", bound=Holds)


def is_cut(model: nn.Module) -> bool:
    """Whether some weights are in no module until all processes gather them together.

    Example:
        >>> is_cut(nn.Linear(2, 2))
        False
    """
    return any(type(m).__name__ == FSDP1 for m in model.modules()) or any(_of_zero(p) for p in model.parameters())


def has_parts(module: nn.Module) -> bool:
    """Whether each process has a part of the weights, so that all have to make a record together."""
    return any(is_sharded(p) for p in module.parameters()) or is_cut(module)


class Gathering:
    """Puts a model's layers into the state of one process, one at a time; does nothing where they are in it.

    All processes make the same calls.

    Arguments:
        model: The model with all that it is wrapped into.
    """

    def __init__(self, model: nn.Module) -> None:
        self.cut = is_cut(model)
        self._owner: dict[int, nn.Module] = {}  # by id of a module: FSDP1's unit that has its parameters
        self._roots = list(_outermost(model))
        self._visit(model, None)
        self._inner = [
            (parent, name, module)
            for parent in model.modules()
            for name, module in parent._modules.items()
            if module is not None and type(module).__name__ in INNER and type(parent).__name__ not in INNER
        ]
        self._begun = False

    @contextlib.contextmanager
    def plain(self) -> Iterator[None]:
        """Take out what is between a module and its parent, so that names and classes are those of the plain model."""
        self._begin()
        for parent, name, module in self._inner:
            parent._modules[name] = _inside(module)
        try:
            yield
        finally:
            for parent, name, module in self._inner:
                parent._modules[name] = module

    @contextlib.contextmanager
    def whole(self, module: nn.Module) -> Iterator[None]:
        """Have all weights of a module in it while the block runs; within ``plain``."""
        with ExitStack() as stack:
            for unit in self._units(module).values():
                stack.enter_context(unit())
            yield

    def walk(self, layers: Mapping[str, L]) -> Generator[tuple[str, L]]:
        """Yield the layers, each with all its weights in it until the next one is asked for.

        A unit of FSDP1 that holds several layers in a row is gathered once.
        """
        opened: dict[int, AbstractContextManager[None]] = {}
        with self.plain():
            try:
                for name, layer in layers.items():
                    wanted = self._units(layer.module)
                    for key in [key for key in opened if key not in wanted]:
                        opened.pop(key).__exit__(None, None, None)
                    for key in [key for key in wanted if key not in opened]:
                        context = wanted[key]()
                        context.__enter__()
                        opened[key] = context
                    yield name, layer
            finally:
                for context in opened.values():
                    context.__exit__(None, None, None)

    def _begin(self) -> None:
        """Let FSDP1 learn which unit is outermost, which the first one that is asked for its weights else becomes."""
        if not self._begun:
            for root in self._roots:
                with _summoned(root):
                    pass
        self._begun = True

    def _visit(self, module: nn.Module, unit: nn.Module | None) -> None:
        unit = module if type(module).__name__ == FSDP1 else unit
        if unit is not None:
            self._owner[id(module)] = unit
        for child in module.children():
            self._visit(child, unit)

    def _units(self, module: nn.Module) -> dict[int, Callable[[], AbstractContextManager[None]]]:
        """What has to be opened for a module, by an identity: FSDP1's units, and its own parameters under ZeRO-3."""
        if not self.cut:
            return {}
        units = [unit for inside in module.modules() if (unit := self._owner.get(id(inside))) is not None]
        found: dict[int, Callable[[], AbstractContextManager[None]]] = {
            id(unit): partial(_summoned, unit) for unit in units
        }
        parts = [p for p in module.parameters() if hasattr(p, "ds_id")]
        if parts:
            found[id(module)] = lambda: _gathered(parts)
        return found


def _inside(module: nn.Module) -> nn.Module:
    while type(module).__name__ in INNER:
        module = getattr(module, INNER[type(module).__name__])
    return module


def _outermost(module: nn.Module) -> Iterator[nn.Module]:
    if type(module).__name__ == FSDP1:
        yield module
        return
    for child in module.children():
        yield from _outermost(child)


def _summoned(unit: Any) -> AbstractContextManager[None]:
    """One unit of FSDP1 without those inside, in the precision in which it trains; what is done to it is dropped."""
    context: AbstractContextManager[None] = type(unit).summon_full_params(unit, recurse=False, writeback=False)
    return context


def _gathered(parameters: list[nn.Parameter]) -> AbstractContextManager[None]:
    """Some parameters under ZeRO-3; with no ``modifier_rank`` what is done to them is dropped.

    Raises:
        RecordError: DeepSpeed is not there.
    """
    try:
        import deepspeed
    except ImportError:
        raise RecordError(
            "the weights are cut up by DeepSpeed's ZeRO stage 3, and deepspeed, which puts them together, cannot be "
            "imported here; record with stage 2 or FSDP"
        ) from None
    context: AbstractContextManager[None] = deepspeed.zero.GatheredParameters(parameters)
    return context


def _of_zero(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_id") and parameter.numel() == 0
