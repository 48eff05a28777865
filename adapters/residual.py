"""The residual that PiSSA and CorDA train on: W₀ less the part of it that A and B start as."""

import torch
from torch import Tensor

from deltaw.adapters.linear.blocks import row_blocks

PRECISE = (torch.float32, torch.float64)  # rounded to less, a residual would be a coarse one


def residual_of(base: Tensor, U: Tensor, V: Tensor) -> Tensor:
    """Return W₀ − U V (out, in), summed in float64 a block of rows at a time, and rounded once.

    Arguments:
        base: W₀ (out, in), float32 or float64.
        U, V: (out, r) and (r, in), of any dtype.

    Example:
        >>> residual_of(torch.eye(2), torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0, 0.5]])).tolist()
        [[0.0, -0.5], [0.0, 1.0]]
    """
    device = torch.device("cpu") if base.device.type == "mps" else base.device  # Apple's GPUs have no float64
    left, right = U.to(device, torch.float64), V.to(device, torch.float64)
    result = torch.empty_like(base)
    for rows, block in row_blocks(base):
        result[rows] = block.to(device, torch.float64).addmm(left[rows], right, alpha=-1)
    return result
