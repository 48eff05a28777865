"""Tensors of which each process has a part: FSDP2's and tensor parallelism's ``DTensor``."""

from typing import Any

from torch import Tensor


def is_sharded(tensor: Any) -> bool:
    """Whether it is a ``DTensor``; told by what it can do, because torch 2.4 and 2.5 keep the class elsewhere."""
    return hasattr(tensor, "full_tensor")


def full(tensor: Any) -> Tensor:
    """Return the tensor with all its parts; for a ``DTensor`` all processes have to call this together."""
    whole: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor
    return whole
