"""Singular values from the Gram matrix A Aᵀ of the smaller side, with a bound on what that costs in digits.

A Aᵀ has the eigenvalues σ². In float64 they come many times faster than A's singular values, but with an absolute error
that drowns the small ones:

    |λ̂_i − σ_i²| ≤ β = (4√m + s·√(b + ⌈n/b⌉))·eps·σ₁²,        |σ̂_i − σ_i| ≤ β/σ̂_i

for A (m, n), m ≤ n, summed in blocks of b columns, with s = ‖A‖_F²/σ₁², the stable rank.

The second term is the sums': an entry ⟨a_i, a_j⟩ passes b + ⌈n/b⌉ roundings, whatever the order within a block, each of
at most u·‖a_i‖‖a_j‖ with u = eps/2. Taken as independent and of mean zero, as in Higham, Mary 2019, they add up to
√(b + ⌈n/b⌉)·u·‖a_i‖‖a_j‖ in the root mean square, and over all entries, in the Frobenius norm, to that with ‖A‖_F²; β
has twice as much. The first is the eigenvalues': they are those of a matrix within p(m)·eps·‖A Aᵀ‖₂ of the given one
(LAPACK Users' Guide, section 4.7, which takes p = 1), an error of a few eps for each of m reflections, so 4√m in the
same model. By Weyl's theorem no eigenvalue moves by more than both together. In practice the error is a tenth of β or
less.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from deltaw.analysis.measures.threads import one_thread, parts_of, side_by_side

EPS = torch.finfo(torch.float64).eps
BLOCK = 256  # columns summed at once, and rows of the lower triangle made at once
_PANEL = 128  # columns that Cholesky's method does at once


@dataclass(frozen=True, eq=False)
class Gram:
    """A Aᵀ or AᵀA, the smaller of the two, of A divided by a power of two.

    Arguments:
        lower: (m, m) float64; only the lower triangle is filled.
        scale: The power of two: A = scale·(what the matrix is made of). No square over- or underflows.
        inner: n, over how many products an entry is a sum.
    """

    lower: Tensor
    scale: float
    inner: int


def gram(update: Tensor) -> Gram:
    """Return the Gram matrix of the smaller side; blocks of the update are widened to float64, never all of it.

    Arguments:
        update: (out, in), any floating dtype, finite.
    """
    wide = update if update.shape[0] <= update.shape[1] else update.T  # (m, n)
    m, n = wide.shape
    scale = power_of_two(update)
    lower = torch.zeros(m, m, dtype=torch.float64, device=update.device)
    for block in _blocks(wide, scale):  # (m, b)

        def add(start: int, block: Tensor = block) -> None:
            lower[start:, start : start + BLOCK].addmm_(block[start:], block[start : start + BLOCK].T)

        side_by_side(add, range(0, m, BLOCK), lower)
    return Gram(lower, scale, n)


def power_of_two(update: Tensor) -> float:
    """Return the power of two by which the largest entry comes into [1, 2); 1 for zeros."""
    ends = side_by_side(torch.aminmax, parts_of(update), update)
    largest = max(abs(float(bound)) for both in ends for bound in both)
    return 2.0 ** (math.frexp(largest)[1] - 1) if largest > 0 else 1.0


def _blocks(wide: Tensor, scale: float) -> Iterator[Tensor]:
    """Yield the columns of wide/scale by blocks, (m, ≤ BLOCK) in float64."""
    for start in range(0, wide.shape[1], BLOCK):
        yield wide[:, start : start + BLOCK].double() / scale


def squares(found: Gram) -> tuple[Tensor, float]:
    """Return λ̂, (m,) descending, the squares of the singular values of A/scale, and the bound β of their error."""
    with one_thread():
        values = torch.linalg.eigvalsh(found.lower, UPLO="L").flip(0).clamp(min=0).cpu()
        trace = float(found.lower.diagonal().sum())
    return values, error_bound(values, trace, found.inner)


def error_bound(values: Tensor, trace: float, inner: int) -> float:
    """Return β, how far off the eigenvalues λ̂ (m,) of a Gram matrix of this trace may be."""
    sums = math.sqrt(BLOCK + math.ceil(inner / BLOCK))
    return EPS * (4 * math.sqrt(len(values)) * float(values[0]) + sums * trace)


def cholesky(lower: Tensor) -> Tensor | None:
    """Return L with L Lᵀ = G, from G's lower triangle, or ``None`` where rounding left G no such factor.

    By columns of blocks: what LAPACK's routine does, with the products on as many threads as torch has.

    Arguments:
        lower: (m, m) float64; what is above the diagonal does not matter, and is left in the place of zeros.
    """
    lower = lower.clone()
    m = len(lower)
    with one_thread():
        for start in range(0, m, _PANEL):
            end = min(start + _PANEL, m)
            block, failed = torch.linalg.cholesky_ex(lower[start:end, start:end])
            if failed:
                return None
            lower[start:end, start:end] = block
            below = torch.linalg.solve_triangular(block, lower[end:, start:end].mT, upper=False).mT
            lower[end:, start:end] = below

            def subtract(first: int, below: Tensor = below, end: int = end) -> None:
                rows = below[first : first + BLOCK]
                lower[end + first :, end + first : end + first + BLOCK].addmm_(below[first:], rows.T, alpha=-1)

            side_by_side(subtract, range(0, m - end, BLOCK), lower)
    return lower
