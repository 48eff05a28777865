"""What a pass over an update tells, without any singular value: ‖ΔW‖_F, and which rows and columns are zero."""

from __future__ import annotations

import torch
from torch import Tensor

from deltaw.analysis.measures.gram import power_of_two
from deltaw.analysis.measures.threads import parts_of, side_by_side

_LOOKED = 16  # rows whose entries are looked at, at first, for a column that is not zero


def squared_norm(update: Tensor) -> tuple[float, float]:
    """Return ‖ΔW/s‖_F², and s: 1, or a power of two where the squares would over- or underflow.

    Arguments:
        update: (out, in), finite, of any floating dtype.
    """

    def summed(scale: float = 1.0) -> float:
        def squared(rows: Tensor) -> float:
            rows = rows if scale == 1.0 else rows.double() / scale
            norm = float(torch.linalg.vector_norm(rows, dtype=torch.float64))
            return norm * norm

        return sum(side_by_side(squared, parts_of(update), update))

    whole = summed()
    if not 1e-180 < whole < 1e180:  # only then the squares of some entries may have over- or underflown
        scale = power_of_two(update)
        if not 1e-100 < scale < 1e100:
            return summed(scale), scale
    return whole, 1.0


def zero_shares(update: Tensor) -> tuple[float, float]:
    """Return which shares of the rows and of the columns are exactly zero.

    A vector is done with at its first entry that is not zero, which for most is one of the first few.
    """
    return _zero_share(update), _zero_share(update.T)


def _zero_share(vectors: Tensor) -> float:
    left = torch.arange(len(vectors), device=vectors.device)  # those of which only zeros have been seen
    start, count = 0, _LOOKED
    while len(left) and start < vectors.shape[1]:
        seen = vectors[:, start : start + count] if len(left) == len(vectors) else vectors[left, start : start + count]
        left = left[(seen == 0).all(1)]
        start, count = start + count, 4 * count
    return len(left) / len(vectors)
