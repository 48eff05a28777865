"""The slower ways for the vectors that the sums of ``change`` do not settle: these alone, scaled, in more digits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from deltaw.analysis.measures.blocks import Axis, Blocks
from deltaw.analysis.measures.built import Built, rows_of
from deltaw.analysis.measures.compensated import difference_of_squares
from deltaw.analysis.measures.long_vectors import long_change

_AGAIN = 32767  # elements in a block of vectors done again; as in ``sums``, torch splits what has more


def rows_again(
    before: Tensor | Built,
    after: Tensor | Built,
    axis: Axis,
    settled: tuple[Tensor, Tensor],
    magnitude: Tensor,
    direction: Tensor,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Measure the rows or columns that are not settled; yield indices and the largest absolute values of both steps."""
    for index, a, b in _vectors(before, after, axis, ~settled[0]):
        magnitude[index] = _magnitude(a, b)
    for index, a, b in _vectors(before, after, axis, ~settled[1]):
        direction[index] = _direction(a, b)  # all with zeros, NaN or infinity are among them
        yield index, a.top, b.top


def blocks_again(
    before: Tensor | Built,
    after: Tensor | Built,
    blocks: Blocks,
    settled: tuple[Tensor, Tensor],
    magnitude: Tensor,
    direction: Tensor,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Measure the blocks that are not settled; yield as `rows_again`."""
    unsettled = ~(settled[0] & settled[1])
    for block in unsettled.nonzero()[:, 0].cpu().tolist():
        known = long_change(before, after, blocks, block)
        if not bool(settled[0][block]):
            magnitude[block] = known.magnitude
        if not bool(settled[1][block]):
            direction[block] = known.direction
            like = direction[:1]
            tops = torch.full_like(like, known.top_before), torch.full_like(like, known.top_after)
            yield torch.full_like(like, block, dtype=torch.long), *tops


class _Scaled(NamedTuple):
    """Vectors times a power of two each, which is exact and keeps squares within float64."""

    vectors: Tensor  # (vectors, length), largest entry in [½, 1), or all 0
    scale: Tensor  # (vectors,), what they were multiplied by
    top: Tensor  # (vectors,), the largest absolute value before that; NaN if there is one


def _vectors(
    before: Tensor | Built, after: Tensor | Built, axis: Axis, wanted: Tensor
) -> Iterator[tuple[Tensor, _Scaled, _Scaled]]:
    """Yield the wanted vectors, a block at a time, with their indices."""
    if axis == "column":
        before, after = _turned(before), _turned(after)
    places, block = wanted.nonzero()[:, 0], max(1, _AGAIN // before.shape[1])
    for start in range(0, len(places), block):
        index = places[start : start + block]
        yield index, _scaled(_take(before, index)), _scaled(_take(after, index))


def _take(matrix: Tensor | Built, index: Tensor) -> Tensor:
    return matrix.take(index) if isinstance(matrix, Built) else rows_of(matrix, index)


def _turned(matrix: Tensor | Built) -> Tensor | Built:
    return matrix.transposed() if isinstance(matrix, Built) else matrix.T


def _scaled(vectors: Tensor) -> _Scaled:
    top = vectors.abs().amax(1)
    exponent = torch.frexp(top).exponent.long()
    scale = ((1023 - exponent).clamp(1, 2046) << 52).view(torch.float64)  # 2^−exponent from the bits, within float64
    return _Scaled(vectors * scale[:, None], scale, top)


def _magnitude(a: _Scaled, b: _Scaled) -> Tensor:
    """Return |‖b_i‖ − ‖a_i‖| for every row i, from ‖b‖² − ‖a‖² summed in twice the digits."""
    scale = torch.minimum(a.scale, b.scale)
    x, y = (t.vectors * (scale / t.scale)[:, None] for t in (a, b))
    total = x.square().sum(1).sqrt() + y.square().sum(1).sqrt()
    return torch.where(total == 0, 0.0, (difference_of_squares(x, y) / total).abs() / scale)


def _direction(a: _Scaled, b: _Scaled) -> Tensor:
    """Return 1 − cos(a_i, b_i) = ½‖a_i/‖a_i‖ − b_i/‖b_i‖‖² for every row i; 0 for two zero rows, NaN for one."""
    x, y = (t.vectors / t.vectors.square().sum(1, keepdim=True).sqrt() for t in (a, b))  # 0/0 is the NaN wanted
    apart = ((x - y).square().sum(1) / 2).clamp(max=2.0)
    return torch.where((a.top == 0) & (b.top == 0), 0.0, apart)
