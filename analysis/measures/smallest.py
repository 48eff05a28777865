"""The smallest singular values of A, which its Gram matrix cannot tell, from A itself.

Cholesky's factor of the Gram matrix G, as exact as G is, still points the way: a block Krylov method with G⁻¹ finds V,
the span of the c smallest singular vectors, to about β over the next eigenvalue. Then they are measured without
squares: with V orthonormal, the singular values τ_i of AᵀV, smallest first, bracket those of A,

    τ_i² − ‖E‖²/(ρ − τ_i²) ≤ σ_i² ≤ τ_i²,        E = GV − V(VᵀGV)

computed as A(AᵀV). Here ρ is at most the least eigenvalue of G on the complement of V: in the basis of V and its
complement G is diag(VᵀGV, M) but for E, so the two spectra differ by ‖E‖ (Weyl). The next eigenvalue λ̂ of G is known to
β, so where all τ² are below ρ = λ̂ − β − 2‖E‖, no eigenvalue of M is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deltaw.analysis.measures.gram import Gram, cholesky
from deltaw.analysis.measures.krylov import WIDTH, BlockKrylov, random_rows
from deltaw.analysis.measures.thin import times_thin
from deltaw.analysis.measures.threads import one_thread

_MOST = 32  # singular values at most
_STEPS = 6  # products with G⁻¹ beyond those that fill the basis
AGREE = 1e-4  # relative, of σ²


def smallest(update: Tensor, found: Gram, values: Tensor, bound: float, count: int) -> Tensor | None:
    """Return the ``count`` smallest singular values of A/scale, descending, or ``None`` where they are not certain.

    Arguments:
        update: A, (out, in).
        found: Its Gram matrix.
        values, bound: λ̂ descending and β, from `squares`.
        count: How many.
    """
    steps = -(-count // WIDTH) + _STEPS
    if not 0 < count <= _MOST or 2 * steps * WIDTH > len(values):
        return None
    wide = (update if update.shape[0] <= update.shape[1] else update.T).double()  # (m, n)
    scale = found.scale
    if not 1e-100 < scale < 1e100:
        wide, scale = wide / scale, 1.0
    with one_thread():
        lower = cholesky(found.lower)
        if lower is None:
            return None

        def product(x: Tensor) -> Tensor:  # cholesky_solve would copy the triangle each time
            half = torch.linalg.solve_triangular(lower, x.T, upper=False)
            full: Tensor = torch.linalg.solve_triangular(lower.mT, half, upper=True)
            return full.T

        krylov = BlockKrylov(product, random_rows(WIDTH, len(values), wide).double(), steps)
        for _ in range(steps):
            krylov.grow()
        vectors = torch.linalg.qr(krylov.vectors(krylov.ritz()[1][:, :count]).T).Q  # (m, c)
        image = times_thin(wide.T, vectors) / scale  # (n, c)
        tau: Tensor = torch.linalg.svdvals(torch.linalg.qr(image, mode="r").R).flip(0)  # smallest first
        again = times_thin(wide, image) / scale
        residual = float(torch.linalg.matrix_norm(again - vectors @ (vectors.T @ again)))
    rho = float(values[-count - 1]) - bound - 2 * residual
    squares = tau.square()
    if not float(squares[-1]) < rho or bool((residual**2 / (rho - squares) > AGREE * squares).any()):
        return None
    return tau.flip(0).cpu()
