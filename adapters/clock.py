"""How many optimizer steps a layer has been through.

Every optimizer of ``torch.optim``, and every class derived from it, tells before and after a step, by PyTorch's own
hooks. After it, each layer that counts is asked for the parameter that it has at that moment, and hears of the step
where that one is the optimizer's. Nothing is kept on a parameter: FSDP2 and tensor parallelism put others in the place
of those that the layer was made with, and FSDP2 yet others while a forward pass runs.

A tensor's own version counter is not enough: PyTorch's fused optimizers, which Hugging Face's Trainer takes by default,
write to parameters without raising it. It is what tells of a loop that changes parameters by hand.
"""

import sys
from functools import cache
from itertools import count
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook


class Counting(Protocol):
    """What counts the steps of the optimizer of one of its parameters."""

    def counted_parameter(self) -> Tensor | None:
        """Return the parameter, as it is registered now."""

    def optimizer_stepped(self) -> None:
        """Hear that an optimizer has stepped it."""


_TIME = count(1)
_HEARD: WeakKeyDictionary[Counting, int] = WeakKeyDictionary()  # when each last heard of a step
_BEGUN: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()  # when each began the step that it is in


def follow(counting: Counting) -> None:
    """Tell it of every optimizer step from now on, for as long as it lives.

    Example:
        >>> import torch
        >>> from deltaw.adapters.clock import follow
        >>> class Counter:
        ...     weight, steps = torch.nn.Parameter(torch.ones(3)), 0
        ...     def counted_parameter(self):
        ...         return self.weight
        ...     def optimizer_stepped(self):
        ...         self.steps += 1
        >>> counter = Counter()
        >>> follow(counter)
        >>> optimizer = torch.optim.AdamW([counter.weight], fused=True)
        >>> for _ in range(2):
        ...     counter.weight.sum().backward()
        ...     optimizer.step()
        >>> counter.steps
        2
    """
    _listen()
    _HEARD[counting] = 0


def version(parameter: Tensor) -> tuple[int, int]:
    """Return the parameter's identity, and a number that differs once it was changed by hand."""
    return id(parameter), -1 if parameter.is_inference() else parameter._version


@cache
def _listen() -> None:
    register_optimizer_step_pre_hook(_begin)
    register_optimizer_step_post_hook(_end)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _begin(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    del args, kwargs
    _BEGUN[optimizer] = next(_TIME)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _end(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Tell each layer once, however many optimizers and overridden ``step`` functions call one another in a step."""
    del args, kwargs
    begun = _BEGUN.pop(optimizer, None)
    if begun is None or not _HEARD or _is_skipped(optimizer) or _only_makes_state():
        return
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for counting, heard in list(_HEARD.items()):
        if heard < begun and id(counting.counted_parameter()) in stepped:
            _HEARD[counting] = next(_TIME)
            counting.optimizer_stepped()


def _is_skipped(optimizer: Optimizer) -> bool:
    """Whether float16's ``GradScaler`` has made it no step: a fused optimizer is called all the same."""
    found = getattr(optimizer, "found_inf", None)
    return isinstance(found, Tensor) and bool(found)


def _only_makes_state() -> bool:
    """Whether ``torch.distributed.checkpoint`` calls, which makes a step at rate 0 where an optimizer has no state yet.

    Seen from the parameters it may be a step: the first one of a warm-up is at rate 0, too.
    """
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_name == "_init_optim_state":
            return True
    return False
