"""The singular values of a product of factors, ΔW = s·U V, from r × r matrices.

With U = Q_u R_u and Vᵀ = Q_v R_v,

    s·U V = Q_u (s·R_u R_vᵀ) Q_vᵀ,

and the r×r core s·R_u R_vᵀ has ΔW's singular values. The triangles come from the cheapest of three ways that is exact:

1. Cholesky's R₁ᵀR₁ = XᵀX + E. As R₁ᵀR₁ = Rᵀ(I + R⁻ᵀ E R⁻¹)R, each triangle moves the core's singular values by a
   relative η/2 at most, the small ones too, with η = ‖R⁻ᵀ E R⁻¹‖₂. With the norms of X's columns taken out, E is at
   most (b + ⌈n/b⌉ + r + 1)·(eps/2) in every entry (sums over blocks of b rows, and Cholesky's own: Higham 2002,
   sections 3.1 and 10.3), so

       η ≤ r·(b + ⌈n/b⌉ + r + 1)·(eps/2)·‖R̂⁻¹‖_F²        with R̂ that of X with columns of norm 1.

   Taken where this is at most 1e-8, that is up to a condition of some 100. In practice the error is a thousandth of it.
2. The same again on Q₁ = X R₁⁻¹ (Cholesky QR 2, Yamamoto et al. 2015): R₁ may lose half of the digits; as X = Q₁ R₁
   still holds to rounding, R₂R₁ loses none where Q₁ is well-conditioned, and that is looked at.
3. Householder's QR.

The factors are read once, a few thousand rows at a time, and nothing as large as they are is set aside: each block is
widened where it stays in the cache. XᵀX tells what else is asked of X: a NaN or infinity is one in its diagonal.
"""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

from deltaw.adapters.errors import NonFiniteError, OptionError, ShapeError
from deltaw.analysis.measures.gram import EPS
from deltaw.analysis.measures.matrix import finite, matrix
from deltaw.analysis.measures.routes import Found
from deltaw.analysis.measures.threads import one_thread, side_by_side

AGREE = 1e-8  # η up to which one Cholesky is enough
_SUMMED = 512  # b, rows whose products are one sum
_APART = 8  # rows a large power of two apart would push each other out of the innermost cache
_WIDENED = 2**16  # entries that are widened to float64 at once: they stay in the cache
_ALONE = 2**18  # entries that a thread does before it takes more
_kept = threading.local()


def two_factors(factors: object) -> tuple[Tensor, Tensor]:
    """Return U and V as tensors.

    Raises:
        OptionError: They are no pair of matrices.
    """
    if not isinstance(factors, tuple | list) or len(factors) != 2:
        raise OptionError(f"factors is a {type(factors).__name__}; pass a pair (U, V), (out, r) and (r, in)")
    return matrix("factors[0]", factors[0]), matrix("factors[1]", factors[1])


def of_factors(left: Tensor, right: Tensor, scaling: float = 1.0) -> tuple[Found, Tensor, Tensor]:
    """Return the singular values of s·U V, and which rows and columns of it are zero.

    Arguments:
        left, right: U (out, r) and V (r, in), any floating dtypes.
        scaling: s.

    Raises:
        ShapeError: The two do not fit.
        NonFiniteError: NaN or infinity in one of them, or in their product.
    """
    if left.shape[1] != right.shape[0]:
        raise ShapeError(f"factors have shapes {tuple(left.shape)} and {tuple(right.shape)}; pass (out, r) and (r, in)")
    left, right = _readable(left), _readable(right)
    of_left, of_right = grams(left, right.T)
    with one_thread():
        r_u, u_full = triangle(left, of_left, "factors[0]")  # (≤ r, r)
        r_v, v_full = triangle(right.T, of_right, "factors[1]")
        r_v = r_v.to(r_u.device)
        size = max(left.shape[0], right.shape[1])
        core = scaling * (r_u @ r_v.T)
        if not bool(core.isfinite().all()):
            raise NonFiniteError("factors: their product exceeds float64; scale them down")
        values = torch.linalg.svdvals(core).cpu()
        u_norms, v_norms = (torch.linalg.vector_norm(r, dim=0) for r in (r_u, r_v))  # (r,), those of u and vᵀ too
        terms = abs(scaling) * float(u_norms @ v_norms)
        tolerance = EPS * max(size * float(values[0]), left.shape[1] * terms)
        rows = _zero_rows(left, None if v_full and scaling else scaling * r_v, size)
        columns = _zero_rows(right.T, None if u_full and scaling else scaling * r_u, size)
    return Found(values, tolerance, "factors"), rows, columns


def _readable(factor: Tensor) -> Tensor:
    return (factor.cpu() if factor.device.type == "mps" else factor).detach()  # mps has no float64


def triangle(tall: Tensor, gram: Tensor | None = None, name: str = "tall") -> tuple[Tensor, bool]:
    """Return R of X (n, r) = Q R, and whether X surely has full rank r, its condition being far below 1/eps.

    Arguments:
        tall: X.
        gram: XᵀX, where `grams` has made it already.
        name: Of X, for the error.

    Raises:
        NonFiniteError: NaN or infinity in X.
    """
    n, r = tall.shape
    gram = grams(tall)[0] if gram is None else gram
    trace = float(gram.diagonal().sum())
    if trace == 0 and not bool(tall.any()):
        return gram[: min(n, r)], False
    if not math.isfinite(trace):
        tall = finite(name, tall)  # or the squares alone exceed float64
    first, failed = torch.linalg.cholesky_ex(gram, upper=True)
    if not failed and _relative_error(first, n) <= AGREE:
        return first, True
    tall = tall.to(torch.float64, copy=True)  # aligned, wherever in a file it stands
    if not failed:
        if tall.is_contiguous():  # LAPACK goes by columns; asked for the transpose, torch need not copy
            q = torch.linalg.solve_triangular(first.mT, tall.mT, upper=False).mT
        else:
            q = torch.linalg.solve_triangular(first, tall, upper=True, left=False)
        gram = q.T @ q
        if bool(torch.dist(gram, torch.eye(r, dtype=gram.dtype, device=gram.device)) < 0.01):  # not if NaN
            return torch.linalg.cholesky(gram, upper=True) @ first, True
    return torch.linalg.qr(tall, mode="r").R, False


def grams(*factors: Tensor) -> list[Tensor]:
    """Return XᵀX (r, r) in float64 of each X (n, r), of any floating dtypes."""
    pieces = [
        (place, rows) for place, factor in enumerate(factors) for rows in torch.split(factor, _rows(factor, _ALONE))
    ]
    if sum(factor.numel() for factor in factors) <= _ALONE:  # handing them to a thread would take longer
        with one_thread():
            sums = [_gram(rows) for _, rows in pieces]
    else:
        elsewhere = next((factor for factor in factors if factor.device.type != "cpu"), factors[0])
        sums = side_by_side(_gram, [rows for _, rows in pieces], elsewhere)
    totals: list[Tensor] = [sums[0].new_zeros(0)] * len(factors)
    for (place, _), found in zip(pieces, sums, strict=True):
        totals[place] = totals[place] + found if len(totals[place]) else found
    return totals


def _rows(tall: Tensor, entries: int) -> int:
    """Return how many rows of X have so many entries, as a multiple of b."""
    return _SUMMED * max(1, entries // (_SUMMED * tall.shape[1]))


def _gram(tall: Tensor) -> Tensor:
    """Return XᵀX (r, r) of some rows (n, r), summed over blocks of b rows, a few blocks widened at a time."""
    n, r = tall.shape
    total = torch.zeros(r, r, dtype=torch.float64, device=tall.device)
    by_rows = tall.stride(1) == 1
    whole = n // _SUMMED * _SUMMED
    if whole:
        count = min(_rows(tall, _WIDENED), whole) // _SUMMED
        # In the order of the memory: (k, b, r), or (k, r, b) where X is the transpose of what is stored.
        blocks = tall[:whole].view(-1, _SUMMED, r)
        blocks = blocks if by_rows else blocks.mT
        height, width = blocks.shape[1:]
        wide = _scratch(count, height, width + (_APART if by_rows and r > _APART else 0), tall.device)[..., :width]
        for part in torch.split(blocks, count):
            block = wide[: len(part)].copy_(part)
            left, right = (block.mT, block) if by_rows else (block, block.mT)
            torch.addbmm(total, left, right, out=total)
    if whole < n:
        rest = tall[whole:].to(torch.float64, copy=True)  # aligned, wherever in a file it stands
        total += rest.T @ rest
    return total


def _scratch(count: int, height: int, width: int, device: torch.device) -> Tensor:
    """Return memory for blocks in float64; of this thread's own, as what is freed and taken again piles up."""
    entries = count * height * width
    if device.type != "cpu" or entries > 2 * _WIDENED:
        return torch.empty(count, height, width, dtype=torch.float64, device=device)
    if not hasattr(_kept, "scratch"):
        with torch.inference_mode(False):  # else no one could write to it outside of the caller's inference mode
            _kept.scratch = torch.empty(2 * _WIDENED, dtype=torch.float64)
    found: Tensor = _kept.scratch[:entries].view(count, height, width)
    return found


def _relative_error(upper: Tensor, n: int) -> float:
    """Return the bound on η for Cholesky's R₁ of the Gram matrix of X (n, r); NaN where R₁ is singular."""
    r = len(upper)
    norms = torch.linalg.vector_norm(upper, dim=0)
    unit = upper / norms
    inverse = torch.linalg.solve_triangular(unit, torch.eye(r, dtype=upper.dtype, device=upper.device), upper=True)
    entry = (_SUMMED + -(-n // _SUMMED) + r + 1) * EPS / 2
    return r * entry * float(inverse.square().sum())


def _zero_rows(factor: Tensor, triangle: Tensor | None, size: int) -> Tensor:
    """Return which rows of the product are zero, (n,), for its left factor X (n, r) and the other one's triangle R.

    Row i is zero iff x_i Rᵀ is, as Q has full rank; terms that cancel may leave a rounding error. Without R, for R of
    full rank: iff x_i is zero.
    """
    if triangle is None:
        zero = factor[:, 0] == 0  # few rows, as a rule none, of which the others have to be looked at
        places = zero.nonzero()[:, 0]
        if len(places):
            zero[places] = ~(factor[places] != 0).any(1)
        return zero
    wide = factor.to(triangle.device).double()
    bound: Tensor = wide.abs() @ torch.linalg.vector_norm(triangle, dim=0)
    norms: Tensor = torch.linalg.vector_norm(wide @ triangle.T, dim=1)
    return norms <= size * EPS * bound
