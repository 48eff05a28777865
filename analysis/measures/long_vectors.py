"""The slow and exact way for one long vector, a block of a matrix, of which a small part at a time is widened.

``change`` takes it where the sums' error bound does not vouch for the result: here a difference of squares has twice
the digits of float64, and what the parts come to is added without a rounding (``math.fsum``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from deltaw.analysis.measures.blocks import Blocks
from deltaw.analysis.measures.built import Built
from deltaw.analysis.measures.compensated import difference_and_error

PART = 32767  # entries that are looked at together; torch splits what has more over threads


class LongChange(NamedTuple):
    """The change of one long vector, and the largest absolute value before and after; NaN where there is one."""

    magnitude: float
    direction: float
    top_before: float
    top_after: float


def long_change(before: Tensor | Built, after: Tensor | Built, blocks: Blocks, block: int) -> LongChange:
    """Return the change of one of the blocks: as `change` defines it, whatever cancels.

    Arguments:
        before, after: The matrix at two steps, (out, in).
        blocks: Its blocks.
        block: Which of them.
    """
    parts = list(_parts(before.shape, blocks, block))

    def both() -> Iterator[tuple[Tensor, Tensor]]:
        for rows, columns in parts:
            yield _entries(before, rows, columns), _entries(after, rows, columns)

    tops = torch.stack([torch.stack([a.abs().amax(), b.abs().amax()]) for a, b in both()]).amax(0)
    top_a, top_b = tops.cpu().tolist()
    if not (math.isfinite(top_a) and math.isfinite(top_b)):
        return LongChange(math.nan, math.nan, top_a, top_b)
    if top_a == top_b == 0:
        return LongChange(0.0, 0.0, 0.0, 0.0)
    # Powers of two, which are exact and keep squares within float64.
    scale_a, scale_b = (math.ldexp(1.0, max(-1022, min(1023, -math.frexp(top)[1]))) for top in (top_a, top_b))
    scale = min(scale_a, scale_b) if top_a and top_b else (scale_a if top_a else scale_b)
    squares: list[Tensor] = []
    differences: list[Tensor] = []
    for a, b in both():
        squares.append(torch.stack([(a * scale_a).square().sum(), (b * scale_b).square().sum()]))
        differences += [each[0, 0] for each in difference_and_error((a * scale)[None], (b * scale)[None])]
    norm_a, norm_b = (math.sqrt(math.fsum(of)) for of in zip(*torch.stack(squares).cpu().tolist(), strict=True))
    total = norm_a * (scale / scale_a) + norm_b * (scale / scale_b)
    magnitude = abs(math.fsum(torch.stack(differences).cpu().tolist())) / total / scale
    if not (top_a and top_b):
        return LongChange(magnitude, math.nan, top_a, top_b)
    apart = [(a * scale_a / norm_a - b * scale_b / norm_b).square().sum() for a, b in both()]
    return LongChange(magnitude, min(2.0, math.fsum(torch.stack(apart).cpu().tolist()) / 2), top_a, top_b)


def _parts(shape: tuple[int, ...], blocks: Blocks, block: int) -> Iterator[tuple[slice, slice]]:
    """Yield a block's parts: its rows and columns, a few at a time."""
    start, stop = blocks.bounds[block]
    (top, bottom), (left, right) = (
        ((start, stop), (0, shape[1])) if blocks.side == "row" else ((0, shape[0]), (start, stop))
    )
    wide = min(PART, right - left)
    high = max(1, PART // wide)
    for column in range(left, right, wide):
        for row in range(top, bottom, high):
            yield slice(row, min(row + high, bottom)), slice(column, min(column + wide, right))


def _entries(matrix: Tensor | Built, rows: slice, columns: slice) -> Tensor:
    found = matrix.part(rows, columns) if isinstance(matrix, Built) else matrix[rows, columns]
    return found.to(torch.float64).flatten()
