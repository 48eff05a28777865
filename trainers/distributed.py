"""Recording in several processes: who writes, and how a matrix that is sharded over them is put together.

Under FSDP2 and tensor parallelism a weight is a ``DTensor``, of which each process has a part. Its ``full_tensor`` is a
collective call: all processes make it, in the same order, one matrix at a time. Under DDP every process has all, and
nothing is exchanged.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from deltaw.adapters.errors import RecordError
from deltaw.adapters.sharded import full, is_sharded


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
    part: Tensor = tensor.to_local() if is_sharded(tensor) else tensor
    return part


def share(value: Any) -> Any:
    """Return the value of the process of rank 0 in all of them."""
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def together(job: Callable[[], Any], *, here: bool, shared: bool) -> Any:
    """Have something done by one process, and return what it returns.

    Arguments:
        job: What is to be done.
        here: Whether this is the process that does it.
        shared: All processes make this call: each gets the result, and where the job fails, all raise an error.

    Raises:
        RecordError: It has failed in the other process.
    """
    result, error = None, None
    if here:
        try:
            result = job()
        except Exception as caught:
            error = caught
    if shared:
        # A process that went on alone would wait for the others in the next gathering.
        text, result = share((None if error is None else str(error), result))
        if error is None and text is not None:
            raise RecordError(text)
    if error is not None:
        raise error
    return result


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
        if parameter is not None and is_sharded(parameter)
    ]
    try:
        for inside, name, parameter in spread:
            inside._parameters[name] = nn.Parameter(full(parameter.detach()), requires_grad=False)
        yield
    finally:
        for inside, name, parameter in spread:
            inside._parameters[name] = parameter
