"""The largest singular values of A from products with thin matrices, and bounds that hold for all the others.

A block Krylov method on G = AᵀA (or A Aᵀ, the smaller): Q, an orthonormal basis of X, GX, G²X, …, X random, and the
eigenvalues θ_i of QᵀGQ, strongest first. By Cauchy's interlacing θ_i ≤ σ_i². From above, with U the first c Ritz
vectors, E = GU − UΘ their residuals, and ρ at least the norm of G on the complement of U,

    θ_i ≤ σ_i² ≤ θ_i + ‖E‖²/(θ_i − ρ)        where θ_i > ρ,

because in the basis of U and its complement G ≤ [[Θ, Eᵀ], [E, ρI]], whose eigenvalues μ > ρ are those of
Θ + EᵀE/(μ − ρ). The residuals fall quickly; ρ is a second, independent run of the same method on the complement: with p
random vectors and k products the largest Ritz value ξ has

    P(‖G‖ > ξ/(1 − ε)) ≤ (1.648 √n · exp(−√ε (2k − 1)))^p          (Kuczyński, Woźniakowski 1992, theorem 4.1; p times)

for any matrix, gap or not; ε is taken so that this is 1e-12. The random numbers are always the same ones, so are the
results.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deltaw.analysis.measures.gram import EPS
from deltaw.analysis.measures.threads import one_thread

WIDTH = 8  # p, vectors at once
CHECKED = 8  # k, products of the second run
DOUBT = 1e-12  # the probability that ρ is too small
_CONVERGED = 1e-6  # ‖E‖ of the Ritz vectors that are taken, in units of θ₁

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Leading:
    """The largest eigenvalues of G and bounds of their error.

    Arguments:
        lower: θ_1 … θ_c, (c,) descending: σ_i² is at least this,
        upper: and at most that, (c,).
    """

    lower: Tensor
    upper: Tensor


class BlockKrylov:
    """The growing basis Q of the Krylov space of G, and QᵀGQ.

    Arguments:
        product: X (n, p) ↦ G X.
        start: X, (n, p).
    """

    def __init__(self, product: Product, start: Tensor) -> None:
        self._product = product
        self._blocks = [torch.linalg.qr(start).Q]
        self._images: list[Tensor] = []  # G times each block but the last
        self._rest = torch.empty(0)

    def grow(self) -> None:
        """Multiply the last block by G and add what is new in it to the basis."""
        image = self._product(self._blocks[-1])
        self._images.append(image)
        basis = torch.cat(self._blocks, 1)
        new = image - basis @ (basis.T @ image)
        new -= basis @ (basis.T @ new)  # twice is enough (Kahan)
        block, self._rest = torch.linalg.qr(new)
        # Where G has no more directions, what is new is rounding, and points back into the basis.
        self._blocks.append(torch.linalg.qr(block - basis @ (basis.T @ block)).Q)

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return θ (d,) descending, the Ritz vectors' coordinates (d, d), and the norms of their residuals (d,)."""
        basis = torch.cat(self._blocks[:-1], 1)
        inner = basis.T @ torch.cat(self._images, 1)
        values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
        values, vectors = values.flip(0), vectors.flip(1)
        residuals = torch.linalg.vector_norm(self._rest @ vectors[-self._rest.shape[1] :], dim=0)
        return values, vectors, residuals

    def vectors(self, coordinates: Tensor) -> Tensor:
        """Return the Ritz vectors with these coordinates, (n, c)."""
        return torch.cat(self._blocks[:-1], 1) @ coordinates


def product_of(matrix: Tensor) -> tuple[Product, int]:
    """Return X ↦ G X for the smaller of AᵀA and A Aᵀ, and its size n."""
    narrow = matrix if matrix.shape[1] <= matrix.shape[0] else matrix.T
    return lambda x: narrow.T @ (narrow @ x), narrow.shape[1]


def leading(matrix: Tensor, enough: Callable[[Tensor, int], int | None], most: int) -> Leading | None:
    """Return the largest σ² of a matrix with bounds, or ``None`` where they would take more work than the whole.

    Arguments:
        matrix: A, float64, finite, its squares far from over- and underflow.
        enough: From θ (d,) and the number of those that have converged to how many are wanted; ``None`` as long as
            these do not tell, 0 to give up.
        most: The largest basis.
    """
    product, n = product_of(matrix)
    generator = torch.Generator().manual_seed(0)  # its own: the caller's random numbers stay as they are
    first, second = (torch.randn(n, WIDTH, generator=generator, dtype=torch.float64).to(matrix.device) for _ in "12")
    with one_thread():
        krylov = BlockKrylov(product, first)
        for steps in range(1, max(1, most // WIDTH) + 1):
            krylov.grow()
            if steps % 4:
                continue
            values, coordinates, residuals = krylov.ritz()
            loose = (residuals > _CONVERGED * values[0]).nonzero()
            settled = int(loose[0]) if len(loose) else len(values)
            wanted = enough(values, settled)
            if wanted == 0:
                return None
            if wanted is not None and settled > wanted:
                taken = krylov.vectors(coordinates[:, :settled])
                return _bounded(product, taken, second, wanted)
    return None


def _bounded(product: Product, taken: Tensor, start: Tensor, wanted: int) -> Leading | None:
    """Return the bounds of the first eigenvalues, with the Ritz vectors (n, c) taken out for ρ."""
    taken = torch.linalg.qr(taken).Q
    image = product(taken)
    inner = taken.T @ image
    values = torch.linalg.eigvalsh((inner + inner.T) / 2).flip(0)
    residual = float(torch.linalg.matrix_norm(image - taken @ inner))  # Frobenius, at least ‖E‖₂

    def outside(x: Tensor) -> Tensor:
        return x - taken @ (taken.T @ x)

    check = BlockKrylov(lambda x: outside(product(outside(x))), outside(start))
    for _ in range(CHECKED):
        check.grow()
    found = float(check.ritz()[0][0])
    rho = found / (1 - _shortfall(len(taken)))
    rounding = len(taken) * EPS * float(values[0])
    lower = values[:wanted]
    if float(lower[-1]) <= rho + rounding:
        return None
    return Leading(lower.cpu(), (lower + (residual + rounding) ** 2 / (lower - rho) + rounding).cpu())


def _shortfall(n: int) -> float:
    """Return ε: how much of ‖G‖ the second run may miss, but for a probability of ``DOUBT``."""
    return min(0.99, (math.log(1.648 * math.sqrt(n) / DOUBT ** (1 / WIDTH)) / (2 * CHECKED - 1)) ** 2)
