"""How many optimizer steps a parameter has been through.

A tensor's own version counter is not enough: PyTorch's fused optimizers, which Hugging Face's Trainer takes by default,
write to parameters without raising it. So every optimizer of ``torch.optim``, and every class derived from it, tells
after a step, by PyTorch's own hook, and the count is kept on the parameter. A loop that changes parameters by hand is
told by the version counter.
"""

from functools import cache
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

COUNT = "_deltaw_optimizer_steps"

Reading = tuple[int, int, int]  # the parameter's identity, its optimizer steps, its version


def read_clock(parameter: Tensor) -> Reading:
    """Return the parameter's clock, and start it where it does not run yet."""
    _listen()
    if not hasattr(parameter, COUNT):
        setattr(parameter, COUNT, 0)
    return id(parameter), getattr(parameter, COUNT), parameter._version


def steps_between(before: Reading, after: Reading) -> int:
    """Return the number of steps between two readings; 0 where they are of different parameters.

    Example:
        >>> import torch
        >>> from deltaw.adapters.clock import read_clock, steps_between
        >>> weight = torch.nn.Parameter(torch.ones(3))
        >>> optimizer, before = torch.optim.AdamW([weight], fused=True), read_clock(weight)
        >>> for _ in range(2):
        ...     weight.sum().backward()
        ...     optimizer.step()
        >>> steps_between(before, read_clock(weight))
        2
    """
    if before[0] != after[0]:
        return 0
    counted = after[1] - before[1]
    return counted if counted else int(after[2] != before[2])


@cache
def _listen() -> None:
    register_optimizer_step_post_hook(_count)


def _count(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    del args, kwargs
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if hasattr(parameter, COUNT):
                setattr(parameter, COUNT, getattr(parameter, COUNT) + 1)
