"""The slower ways for the vectors that the sums of ``change`` do not settle: these alone, scaled, in more digits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from deltaw.adapters.method import ScaledLowRank
from deltaw.analysis.measures.blocks import Axis, Blocks
from deltaw.analysis.measures.built import Built, built_sums, rows_of
from deltaw.analysis.measures.compensated import difference_of_squares
from deltaw.analysis.measures.long_vectors import long_change
from deltaw.analysis.measures.sums import Side, Sums

_MANY = 64  # vectors of matrices that are not there from which one more pass over W₀ is faster than they alone
_SQUARES = (1e-200, 1e200)  # within which squares have all their digits
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


def directions_together(
    pairs: Sequence[tuple[Tensor | Built, Tensor | Built]], axis: Axis, found: Sums, settled: Tensor, direction: Tensor
) -> None:
    """Measure the rows or columns of built matrices that are not settled in one pass over W₀, where they are many.

    With the factors of ρ or γ over the norms, the vectors are built as unit ones, and 1 − cos is half of ‖b − a‖²:
    where a method rescales W₀ and hardly turns it, no vector's sums are enough. The norms need not be exact, as
    an error of ε in one of them moves 1 − cos by ε²/2 and by ε times itself. They are of the pair's own sums, so that a
    pair does not depend on the others.

    Arguments:
        pairs: The matrix at two steps, each.
        axis: "row" or "column".
        found: The sums of all pairs, (pairs, vectors).
        settled, direction: Of all pairs, (pairs, vectors); both are written.
    """
    first = next((matrix for pair in pairs for matrix in pair if isinstance(matrix, Built)), None)
    if first is None or first.base.device.type != "cpu":
        return
    squares = torch.stack([found.aa, found.aa + (2 * found.ad + found.dd)], dim=1)  # (pairs, 2, vectors)
    sure = ~settled & (squares > _SQUARES[0]).all(1) & (squares < _SQUARES[1]).all(1)  # not zero, NaN or infinite
    sure &= squares[:, 1] > 1e-4 * squares[:, 0]  # else ‖b‖² has not enough digits
    chosen = [number for number, many in enumerate(sure.sum(1).tolist()) if many >= _MANY]
    if not chosen:
        return
    side: Side = "row" if axis == "row" else "column"
    key = "rho" if axis == "row" else "gamma"
    units = []
    for number in chosen:
        for matrix, square in zip(pairs[number], squares[number], strict=True):
            form = matrix.form if isinstance(matrix, Built) else _of_base(first.form)
            norm = square.where(sure[number], 1.0).sqrt()
            units.append(form._replace(**{key: getattr(form, key) / norm}))
    apart = built_sums(first.base, units, [(2 * k, 2 * k + 1) for k in range(len(chosen))])[side].dd / 2
    direction[chosen] = torch.where(sure[chosen], apart.clamp(max=2.0), direction[chosen])
    settled[chosen] |= sure[chosen]


def _of_base(like: ScaledLowRank) -> ScaledLowRank:
    """Return W₀ in the form of W'."""
    rho, gamma, U, V = like
    return ScaledLowRank(torch.ones_like(rho), torch.ones_like(gamma), U[:, :0], V[:0])


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
