"""Recording in several processes: who writes, and how a matrix that is spread over them is put together.

Under FSDP2 and tensor parallelism a weight is a ``DTensor``, of which each process has a part. Its ``full_tensor`` is a
collective call: all processes make it, in the same order, one matrix at a time. Under DDP every process has all, and
nothing is exchanged.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from deltaw.adapters.sharded import full, is_spread


def is_writer() -> bool:
    """Whether this is the process that writes: the only one, or the one of rank 0.

    Example:
        >>> is_writer()
        True
    """
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0


def local(tensor: Any) -> Tensor:
    """Return the part that this process has, whose memory is a real one."""
    part: Tensor = tensor.to_local() if is_spread(tensor) else tensor
    return part


def share(value: Any) -> Any:
    """Return the value of the process of rank 0 in all of them."""
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def reshard(model: nn.Module) -> None:
    """Give back what FSDP2 keeps together after a forward pass without a backward pass.

    It would be read in the dtype of mixed precision, in which it is kept for the forward pass alone.
    """
    for module in model.modules():
        if any(c.__name__ == "FSDPModule" for c in type(module).__mro__):
            getattr(module, "reshard")()  # noqa: B009 - the class is not in every torch


@contextlib.contextmanager
def whole_parameters(module: nn.Module) -> Iterator[None]:
    """Put the full tensors in the place of a module's distributed parameters while the block runs."""
    spread = [
        (inside, name, parameter)
        for inside in module.modules()
        for name, parameter in inside._parameters.items()
        if parameter is not None and is_spread(parameter)
    ]
    try:
        for inside, name, parameter in spread:
            inside._parameters[name] = nn.Parameter(full(parameter.detach()), requires_grad=False)
        yield
    finally:
        for inside, name, parameter in spread:
            inside._parameters[name] = parameter
