"""The leading singular vectors of a large matrix without decomposing it, and a bound on how far they are off.

The block Krylov method of `deltaw.analysis.measures.krylov` leaves an orthonormal basis of c Ritz vectors of G = AᵀA,
or of A Aᵀ, the smaller, and ρ, a bound on G outside of their span. With Θ and the residuals E of these Ritz vectors,
and for any t above ρ, G has no more eigenvalues above t than Θ + EᵀE/(t − ρ) has, by the inertia of
[[Θ, Eᵀ], [E, ρI]] − t I. Where these are k, all of G's but the first k are at most t. Then the span of the first k Ritz
vectors, of that basis or of a better one, lies from that of the first k singular vectors by at most

    sin θ ≤ ‖E_k‖ / (θ_k − t)                                                               (Davis, Kahan 1970)

They are handed on where this is at most 1e-7. Else, as where σ_k and σ_{k+1} nearly agree and the span itself is hardly
determined, there is nothing, and the caller decomposes A.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deltaw.analysis.measures.gram import EPS
from deltaw.analysis.measures.krylov import leading, product_of
from deltaw.analysis.measures.leading import LARGE
from deltaw.analysis.measures.matrix import finite
from deltaw.analysis.measures.sizes import squared_norm
from deltaw.analysis.measures.thin import times_thin
from deltaw.analysis.measures.threads import one_thread, parts_of, side_by_side

CERTAIN = 1e-7  # sin θ
_STEPS = 3  # of subspace iteration in float64, each a product of A with c vectors
_BASIS = 6  # the largest basis is this part of the smaller side


@torch.no_grad()
def strongest(matrix: Tensor, count: int) -> tuple[Tensor, Tensor] | None:
    """Return the ``count`` leading left (out, k) and right (in, k) singular vectors, or ``None``, see above.

    The columns are orthonormal, strongest first, in float64 on the CPU; their signs are arbitrary.

    Arguments:
        matrix: A (out, in), of any floating dtype.
        count: k, at most the rank.

    Raises:
        NonFiniteError: NaN or infinity in A.
    """
    dense = finite("update", matrix)
    most = min(dense.shape) // _BASIS
    if min(dense.shape) < LARGE or count > most // 2:
        return None
    whole, scale = squared_norm(dense)
    if whole == 0:
        return None
    scaled = dense if scale == 1.0 else dense.double() / scale
    found = leading(scaled, lambda values, settled: count, most, whole)
    if found is None:
        return None
    with one_thread():
        basis, (exact, n) = found.vectors, product_of(scaled)
        limit: float | None = None  # t
        for _ in range(_STEPS):
            image = exact(basis)
            inner = basis @ image.T
            values, turned = torch.linalg.eigh((inner + inner.T) / 2)
            values, turned = values.flip(0), turned.flip(1)
            residual = turned.T @ (image - inner @ basis)  # Eᵀ (c, n)
            rounding = n * EPS * float(values[0])
            limit = _limit(values, residual, found.rest, count, rounding) if limit is None else limit
            if limit is None:
                return None
            least = float(values[count - 1])
            off = float(torch.linalg.matrix_norm(residual[:count], 2)) + rounding
            if off <= CERTAIN * (least - limit):
                return _both_sides(scaled, (turned.T @ basis)[:count])
            basis = torch.linalg.qr(image.T).Q.T
    return None


def _limit(values: Tensor, residual: Tensor, rest: float, count: int, rounding: float) -> float | None:
    """Return t, halfway between θ_k and what follows, where surely no more than k eigenvalues are above it."""
    least = float(values[count - 1])
    following = max(rest, float(values[count]) if count < len(values) else 0.0)
    limit = (least + following) / 2
    if limit - rest <= rounding or least - limit <= rounding:
        return None
    above = torch.linalg.eigvalsh(torch.diag(values) + residual @ residual.T / (limit - rest)) > limit - rounding
    return limit if int(above.sum()) == count else None


def _both_sides(matrix: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return the left and right vectors from those of the smaller side, (k, n): A x = σ y."""
    tall = matrix.shape[1] <= matrix.shape[0]
    narrow = matrix if tall else matrix.T
    image = torch.cat(side_by_side(lambda rows: times_thin(rows.double(), vectors.T), parts_of(narrow), matrix))
    other, triangle = torch.linalg.qr(image)
    other = other * triangle.diagonal().sign()
    sides = (other.cpu(), vectors.T.cpu())
    return sides if tall else (sides[1], sides[0])
