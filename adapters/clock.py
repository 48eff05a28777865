"""How many optimizer steps a layer has been through.

Every optimizer of ``torch.optim``, and every class derived from it, calls PyTorch's own hooks before and after a step.
After it, each counter looks up the parameter that its layer has at that moment, and counts the step where that one is
the optimizer's. Nothing is kept on a parameter: FSDP2 and tensor parallelism put others in the place
of those that the layer was made with, and FSDP2 yet others while a forward pass runs.

A tensor's own version counter is not enough: PyTorch's fused optimizers, which Hugging Face's Trainer takes by default,
write to parameters without raising it. It is what tells of a loop that changes parameters by hand.
"""

import sys
import weakref
from collections.abc import Sequence
from functools import cache
from itertools import count
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from deltaw.adapters.uncompiled import uncompiled


class Counted(Protocol):
    """A layer that goes by the count of its steps."""

    _parameters: dict[str, nn.Parameter | None]  # of ``nn.Module``: those that are registered now

    def observe(self) -> None:
        """Take note of the steps made."""

    def tensor(self, name: str) -> Tensor:
        """Return one of the tensors that it uses."""


class StepCounter:
    """The count of the optimizer steps that one layer has been through and has not asked for yet.

    It has no reference to the layer that would keep it alive. A copy of a layer calls ``follow`` for its own copy.

    Arguments:
        layer: The layer.
        names: Of its trainable parameters.

    Example:
        >>> class Layer(torch.nn.Linear):
        ...     def observe(self):
        ...         pass
        ...     def tensor(self, name):
        ...         return getattr(self, name)
        >>> layer = Layer(2, 3)
        >>> counter = StepCounter(layer, ["weight"])
        >>> optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
        >>> for _ in range(2):
        ...     layer(torch.ones(1, 2)).sum().backward()
        ...     optimizer.step()
        >>> counter.taken(), counter.taken()
        (2, 0)
    """

    def __init__(self, layer: Counted, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._untaken = 0  # steps that were not asked for yet
        self._has_optimizer = False
        self._read: Seen | None = None  # the parameter at the last pass that can lead to a step
        self.follow(layer)

    def follow(self, layer: Counted) -> None:
        """Be notified of every optimizer step from now on, for as long as the layer lives."""
        self._layer: weakref.ref[Counted] | None = weakref.ref(layer)
        _listen()
        _NOTIFIED[self] = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_layer": None}  # a weak reference can be neither copied nor written

    @uncompiled
    def taken(self) -> int:
        """Return how many optimizer steps the layer's parameters went through since the last call.

        As long as no optimizer has made one, a change by hand counts: one between two looks, after a forward pass with
        gradients. What changes parameters before the training begins, such as loading or DDP's first broadcast, is no
        step.

        Never compiled: compiled code takes the count for a constant, and would not see a step.
        """
        untaken, self._untaken = self._untaken, 0
        layer = self._followed()
        if self._has_optimizer or layer is None:
            return untaken
        first = layer.tensor(self._names[0])
        changed = self._read is not None and self._read.changed(first)
        if torch.is_grad_enabled():
            self._read = Seen(first)
        elif changed:
            self._read = None
        return int(changed)

    def loaded(self) -> None:
        """Take note that the parameters were written to by loading, which is no step."""
        self._read = None

    def parameter(self) -> Tensor | None:
        """Return the parameter whose optimizer's steps count: the layer's first that is trained."""
        layer = self._followed()
        parameters = () if layer is None else (layer._parameters.get(name) for name in self._names)
        return next((p for p in parameters if p is not None and p.requires_grad), None)

    def stepped(self) -> None:
        """Count a step, at once: now the parameters are what the step has made of them, and whole in precision."""
        self._has_optimizer = True
        self._untaken += 1
        if (layer := self._followed()) is not None:
            layer.observe()

    def _followed(self) -> Counted | None:
        return None if self._layer is None else self._layer()


_TIME = count(1)
_NOTIFIED: WeakKeyDictionary[StepCounter, int] = WeakKeyDictionary()  # when each was last notified of a step
_BEGUN: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()  # when each began the step that it is in


class Seen:
    """A parameter as it was seen, which it does not keep alive.

    Its ``id`` would not do: FSDP2 makes parameters anew for each forward, and Python gives an id out again.
    """

    def __init__(self, parameter: Tensor) -> None:
        self._parameter: weakref.ref[Tensor] | None = weakref.ref(parameter)
        self._version = _version(parameter)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_parameter": None}  # a copy has other parameters

    def changed(self, parameter: Tensor) -> bool:
        """Return whether this is the same parameter, and was written to since."""
        same = self._parameter is not None and self._parameter() is parameter
        return same and _version(parameter) != self._version


def _version(parameter: Tensor) -> int:
    return -1 if parameter.is_inference() else parameter._version


@cache
def _listen() -> None:
    register_optimizer_step_pre_hook(_begin)
    register_optimizer_step_post_hook(_end)


@uncompiled
def _begin(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    del args, kwargs
    _BEGUN[optimizer] = next(_TIME)


@uncompiled
def _end(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Tell each layer once, however many optimizers and overridden ``step`` functions call one another in a step."""
    del args, kwargs
    begun = _BEGUN.pop(optimizer, None)
    if begun is None or not _NOTIFIED or _is_skipped(optimizer) or _only_makes_state():
        return
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for counter, notified in list(_NOTIFIED.items()):
        if notified < begun and id(counter.parameter()) in stepped:
            _NOTIFIED[counter] = next(_TIME)
            counter.stepped()


def _is_skipped(optimizer: Optimizer) -> bool:
    """Whether float16's ``GradScaler`` has made it no step: a fused optimizer is called all the same."""
    found = getattr(optimizer, "found_inf", None)
    return isinstance(found, Tensor) and bool(found)


def _only_makes_state() -> bool:
    """Whether ``torch.distributed.checkpoint`` calls, which makes a step at rate 0 where an optimizer has no state yet.

    Seen from the parameters it may be a step: the first one of a warm-up is at rate 0, too. PyTorch has no hook
    for it, and calls the optimizer's as for any step; so the callers are looked at, where that module is loaded at all.
    """
    making = getattr(sys.modules.get("torch.distributed.checkpoint.state_dict"), "_init_optim_state", None)
    if making is None:
        return False
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code is making.__code__:
            return True
    return False
