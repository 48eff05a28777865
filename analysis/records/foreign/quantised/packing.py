"""Numbers of few bits out of the integers that hold them, and the values that 4-bit floats stand for."""

import torch
from torch import Tensor

# E2M1, by code: the sign is the highest bit (OCP Microscaling Formats 1.0, 5.3.3)
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where each of eight numbers of 4 bits stands in AWQ's word


def unpacked(words: Tensor, bits: int, count: int) -> Tensor:
    """Return the first ``count`` numbers of each row, as whole numbers from 0.

    A row of 32-bit words is one stream of bits, the lowest first: number i begins at bit i·bits, also where it runs
    over into the next word (3 bits).

    Arguments:
        words: Whole numbers of 32 bits, (rows, words).
        bits: Of each number, 1 to 8.
        count: How many are wanted, at most as many as there are.

    Example:
        >>> unpacked(torch.tensor([[0x4321]], dtype=torch.int32), 4, 3).tolist()
        [[1, 2, 3]]
    """
    begin = torch.arange(count) * bits
    at, shift = begin // 32, begin % 32
    wide = words.to(torch.int64) & 0xFFFFFFFF
    found = wide[:, at] >> shift
    over = shift + bits > 32
    if bool(over.any()):
        found[:, over] |= wide[:, at[over] + 1] << (32 - shift[over])
    return found & ((1 << bits) - 1)


def nibbles(packed: Tensor, *, high_first: bool) -> Tensor:
    """Return the two numbers of 4 bits in each byte, one after the other, (…, 2·n) for bytes (…, n)."""
    high, low = (packed >> 4).long(), (packed & 15).long()
    return torch.stack((high, low) if high_first else (low, high), dim=-1).flatten(-2)
