"""The leading singular subspaces of a large matrix, and of one near to it, from products with thin matrices alone.

Cold, of W₀: the block Krylov method of `deltaw.analysis.measures.krylov` leaves X₀, an orthonormal basis that holds
about twice the k directions, and ρ₀ ≥ ‖W₀(I − X₀X₀ᵀ)‖₂². Warm, of W': a basis B that starts with W₀'s, so that what
W' has outside of it is bounded without another search:

    W' = diag(ρ)(W₀ + U V)diag(γ):   B ⊇ [γX₀, γVᵀ],   ‖W'(I − BBᵀ)‖₂ ≤ max|ρ| √ρ₀ max|γ|, however large U V is
    W' a matrix:                     B ⊇ X₀,           ‖W'(I − BBᵀ)‖₂ ≤ √ρ₀ + ‖W' − W₀‖₂

Then B grows by the residuals of its first k + 1 Ritz vectors. W'B = Q R and R = P S Zᵀ give the pairs u = Q p,
v = B z, for which W' v = s u to the last digits, and E = W'ᵀu − s v is what is missing. With E for all of them in units
of W'ᵀW', σ²_{k+1} ≤ α² = λ_{k+1}(S² + EᵀE/(s²_{k+1} − ‖W'(I − BBᵀ)‖₂²)), as in `krylov`, and both subspaces are off by

    sin θ ≤ (‖E_k‖₂ + 4√m·eps·s₁) / (s_k − α)                                               (Wedin 1972)

whose second term is the rounding of the products, taken as that of the decomposition in
`deltaw.analysis.measures.principal`. So the bound comes down to twice that of the singular value decomposition.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deltaw.analysis.measures.gram import EPS
from deltaw.analysis.measures.krylov import leading, norm_at_most
from deltaw.analysis.measures.leading import LARGE
from deltaw.analysis.measures.product import Product
from deltaw.analysis.measures.sizes import squared_norm
from deltaw.analysis.measures.threads import one_thread

AGREE = 1e-6  # relative: of σ²_{k+1} in units of the gap
_LOOSE = 1e-7  # sin θ up to which W₀'s subspaces are handed on
_BASIS = 4  # the search's largest basis is this part of the smaller side
_GROWN = 3  # and B's largest this
_STEPS = 24

Fine = Callable[[Tensor, Tensor], float]


@dataclass(frozen=True, eq=False)
class Block:
    """The leading k directions of a matrix W (out, in), and where to start for one near to it.

    Arguments:
        left, right: u_1 … u_k (out, k) and v_1 … v_k (in, k), orthonormal columns, float64 on the matrix' device.
        values: σ_1 … σ_{k+1}, descending, float64 on the CPU.
        errors: (k + 1,), how far off each σ may be.
        turned: The largest sine by which either subspace may be off.
        settled: Whether that is no more than twice what rounding leaves the whole decomposition.
        start: X₀ (c, n), orthonormal rows on the smaller side, with
        rest: at least ‖W(I − X₀ᵀX₀)‖₂.
    """

    left: Tensor
    right: Tensor
    values: Tensor
    errors: Tensor
    turned: float
    settled: bool
    start: Tensor
    rest: float


@torch.no_grad()
def principal_block(matrix: Tensor, k: int) -> Block | None:
    """Return the leading k directions of W₀, or ``None`` where it is small, or the bounds need too large a basis.

    Arguments:
        matrix: W₀ (out, in) in float64, finite.
        k: How many.
    """
    size = min(matrix.shape)
    most = size // _BASIS
    wanted = min(2 * k, most // 2)
    if size < LARGE or wanted <= k:
        return None
    whole, scale = squared_norm(matrix)
    if whole == 0 or scale != 1.0:
        return None
    found = leading(matrix, lambda values, settled: wanted, most, whole)
    if found is None:
        return None
    wide = matrix.shape[0] < matrix.shape[1]
    product = Product(matrix.T if wide else matrix)
    start = _orthonormal(found.vectors)
    made = _search(product, start, math.sqrt(found.rest), k, lambda left, right: 0.0)
    return None if made is None or made.turned > _LOOSE else _sides(made, wide)


@torch.no_grad()
def near_block(base: Block, before: Tensor, after: Product, agree: float) -> Block | None:
    """Return the leading k directions of W', started from W₀'s; ``None`` where the bound is not met.

    It is met where both subspaces are right to ``agree`` of the angle by which either is turned against W₀'s, or both
    matrices' to what rounding leaves.

    Arguments:
        base: Of W₀.
        before: W₀ (out, in) in float64.
        after: W'.
        agree: Relative, of the angle.
    """
    wide = before.shape[0] < before.shape[1]
    product = after.turned_over if wide else after
    first = (base.right, base.left) if wide else (base.left, base.right)
    if product.form is None:
        start, size = base.start, 0.0
        rest = base.rest + norm_at_most(after.matrix - before)
    else:
        with one_thread():
            rho, gamma, U, V = product.form
            start = _orthonormal(torch.cat([base.start, V]) * gamma)
            scale = float(rho.abs().max()) * float(gamma.abs().max())
            product_size = float(torch.linalg.matrix_norm(U, 2)) * float(torch.linalg.matrix_norm(V, 2))
            size = scale * (float(base.values[0]) + product_size)
        rest = scale * base.rest

    def fine(left: Tensor, right: Tensor) -> float:
        sines = [
            float(torch.linalg.matrix_norm(new.T - old @ (old.T @ new.T), 2))
            for old, new in zip(first, (left, right), strict=True)
        ]
        return 0.9 * agree * min(sines) - base.turned

    made = _search(product, start, rest, base.left.shape[1], fine, size)
    if made is None or not (made.turned <= fine(made.left.T, made.right.T) or (made.settled and base.settled)):
        return None
    return _sides(made, wide)


def _sides(found: Block, wide: bool) -> Block:
    """Return what was found of Wᵀ as that of W."""
    if not wide:
        return found
    left, right = found.right, found.left
    return Block(left, right, found.values, found.errors, found.turned, found.settled, found.start, found.rest)


def _search(product: Product, start: Tensor, rest: float, k: int, fine: Fine, size: float = 0.0) -> Block | None:
    """Return the leading directions of W (m, n), n ≤ m, once their sine is ``fine`` or settled, or after some steps.

    Arguments:
        product: W.
        start: B (c, n), orthonormal rows.
        rest: At least ‖W(I − BᵀB)‖₂.
        k: How many.
        fine: From u_1 … u_k (k, m) and v_1 … v_k (k, n) to the sine that is wanted.
        size: What the products add up to at most, where that is more than σ₁.
    """
    n = start.shape[1]
    found: Block | None = None
    basis, image = start, product.times(start)
    squared = product.back(image)  # WᵀW B
    with one_thread():
        for _ in range(_STEPS):
            if len(basis) + k + 1 > n // _GROWN:
                break
            q, triangle = torch.linalg.qr(image.T)
            p, sigma, z = torch.linalg.svd(triangle)
            ritz = z @ basis
            residual = z @ squared - (sigma**2)[:, None] * ritz
            rounding = 4 * math.sqrt(n) * EPS * max(float(sigma[0]), size)
            after = _following(sigma, residual, rest, k)
            if after is None:
                return None
            left, right = (q @ p[:, :k]).T, ritz[:k]
            off = float(torch.linalg.matrix_norm(product.back(left) - sigma[:k, None] * right, 2))
            apart = float(sigma[k - 1]) - after - rounding
            known = after**2 - float(sigma[k]) ** 2 <= AGREE * (float(sigma[k - 1]) ** 2 - after**2)
            if apart > 0 and known:
                turned, settled = (off + rounding) / apart, off <= rounding
                errors = torch.full((k + 1,), off + rounding, dtype=torch.float64)
                errors[k] = after - float(sigma[k]) + rounding
                values = sigma[: k + 1].cpu()
                found = Block(left.T, right.T, values, errors, turned, settled, start, rest)
                if settled or turned <= fine(left, right):
                    return found
            new = _new_directions(residual[: k + 1], basis)
            moved = product.times(new)
            basis, image = torch.cat([basis, new]), torch.cat([image, moved])
            squared = torch.cat([squared, product.back(moved)])
    return found


def _following(sigma: Tensor, residual: Tensor, rest: float, k: int) -> float | None:
    """Return α ≥ σ_{k+1}, ``None`` where what is outside of the basis may be as large."""
    squares = sigma**2
    room = float(squares[k]) - rest**2 if k < len(squares) else 0.0
    if room <= len(squares) * EPS * float(squares[0]):
        return None
    upper = torch.linalg.eigvalsh(torch.diag(squares) + residual @ residual.T / room).flip(0)
    return math.sqrt(float(upper[k]))


def _new_directions(residual: Tensor, basis: Tensor) -> Tensor:
    """Return what of the residuals (p, n) is not in the basis (d, n), as orthonormal rows."""
    for _ in range(2):  # twice is enough (Kahan)
        residual = residual - (residual @ basis.T) @ basis
    new = _orthonormal(residual)
    # Of residuals that are rounding, the directions are so as well, and point back into the basis.
    return _orthonormal(new - (new @ basis.T) @ basis)


def _orthonormal(rows: Tensor) -> Tensor:
    with one_thread():
        basis: Tensor = torch.linalg.qr(rows.T).Q
    return basis.T
