"""Weights rounded to 4 bits, as bitsandbytes stores them for QLoRA."""

from typing import Literal, TypeAlias

import torch
from torch import Tensor

FourBits: TypeAlias = Literal["nf4", "fp4"]
BLOCK = 64  # numbers that share one scale

# The sixteen values between −1 and 1. NF4: quantiles of a normal distribution (Dettmers et al. 2023, appendix E).
CODES: dict[FourBits, tuple[float, ...]] = {
    "nf4": (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ),
    "fp4": (
        -1.0, -0.6666666667, -0.5, -0.3333333333, -0.25, -0.1666666667, -0.00520833333, 0.0,
        0.00520833333, 0.1666666667, 0.25, 0.3333333333, 0.5, 0.6666666667, 1.0,
    ),
}  # fmt: skip


def rounded_to_four_bits(weight: Tensor, kind: FourBits) -> Tensor:
    r"""Return what is left of a matrix that is stored in 4 bits: c·a, a = max|w| of its block of 64 numbers.

    Blocks go through the rows' ends; c is the code nearest to w/a. The scales are kept in float32: what bitsandbytes'
    double quantisation rounds of them is not in it (about a thousandth of a scale).

    Arguments:
        weight: (out, in).
        kind: "nf4" or "fp4".

    Returns:
        The rounded matrix, float64.

    Example:
        >>> rounded_to_four_bits(torch.tensor([[2.0, 0.1, -1.0]]), "nf4").tolist()
        [[2.0, 0.15916059911251068, -1.0501461029052734]]
    """
    flat = weight.detach().float().flatten()
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scales = padded.abs().amax(1, keepdim=True)
    codes = torch.tensor(CODES[kind], dtype=torch.float32)
    # Where two codes are as near, bitsandbytes takes the lower.
    borders = (codes[1:].double() + codes[:-1].double()) / 2
    found = torch.bucketize((padded / scales.clamp_min(1e-38)).double(), borders)
    return (codes[found].double() * scales.double()).flatten()[: len(flat)].view(weight.shape)
