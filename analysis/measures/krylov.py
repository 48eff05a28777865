"""The largest singular values of A from products with thin matrices, and bounds that hold for all the others.

A block Krylov method on G = AᵀA (or A Aᵀ, the smaller): Q, an orthonormal basis of X, GX, G²X, …, X random, and the
eigenvalues θ_i of QᵀGQ, strongest first. By Cauchy's interlacing θ_i ≤ σ_i². From above, with U the first c Ritz
vectors, Θ = UᵀGU, E = GU − UΘ their residuals, and ρ at least the norm of G on the complement of U,

    θ_i ≤ σ_i² ≤ λ_i(Θ + EᵀE/(θ_k − ρ))        for i ≤ k, where θ_k > ρ,

because in the basis of U and its complement G ≤ [[Θ, Eᵀ], [E, ρI]], whose eigenvalues μ > ρ are those of
Θ + EᵀE/(μ − ρ). The residuals fall quickly. They count squared, so the search goes on in float32, at a third of the
time; the bounds are computed from A itself in float64, by one product, and hold for any U.

ρ is what the known trace of G leaves, ‖A‖_F² − Σθ_i, where that is small enough. Else it comes from a second,
independent run of the same method on the complement: with p random vectors and k products the largest Ritz value ξ has

    P(‖G‖ > ξ/(1 − ε)) ≤ (1.648 √n · exp(−√ε (2k − 1)))^p          (Kuczyński, Woźniakowski 1992, theorem 4.1; p times)

for any matrix, gap or not; ε is taken so that this is 1e-12. The random numbers are always the same ones, so are the
results, for any number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deltaw.analysis.measures.gram import EPS, power_of_two
from deltaw.analysis.measures.threads import one_thread, parts_of, side_by_side

WIDTH = 8  # p of the second run, vectors at once
CHECKED = 8  # k, products of the second run
DOUBT = 1e-12  # the probability that ρ is too small
SEARCH = 16  # vectors at once in the search
AGREE = 1e-6  # relative, of σ²: how close the bounds are to be
_POLISHED = 2  # steps in float64 beyond the first product, where the bounds are not as close
_CONVERGED = 1e-6  # ‖E‖ of the Ritz vectors that are taken, in units of θ₁
_EPS32 = torch.finfo(torch.float32).eps

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Leading:
    """The largest eigenvalues of G and bounds of their error.

    Arguments:
        lower: θ_1 … θ_k, (k,) descending: σ_i² is at least this,
        upper: and at most that, (k,).
        known: θ of all c Ritz vectors, (c,) descending: σ_i² is at least this.
        vectors: An orthonormal basis of the Ritz vectors' span, (c, n), as rows.
        rest: ρ, at least the norm of G on the complement of that span.
    """

    lower: Tensor
    upper: Tensor
    known: Tensor
    vectors: Tensor
    rest: float


class BlockKrylov:
    """The growing basis Q of the Krylov space of G, and QᵀGQ. Vectors are rows.

    Arguments:
        product: X (p, n) ↦ X G.
        start: X, (p, n).
        most: How often it can grow.
    """

    def __init__(self, product: Product, start: Tensor, most: int) -> None:
        p, n = start.shape
        self._product, self._width, self._size = product, p, 0
        self._basis = start.new_empty((most + 1) * p, n)
        self._basis[:p] = torch.linalg.qr(start.T).Q.T
        self._inner = start.new_zeros((most + 1) * p, (most + 1) * p, dtype=torch.float64)
        self._rest = start.new_zeros(p, p)

    def grow(self) -> None:
        """Multiply the last block by G and add what is new in it to the basis."""
        d, p = self._size, self._width
        known = self._basis[: d + p]
        new = self._product(known[d:])  # (p, n)
        inside = new @ known.T  # (p, d + p)
        new = new - inside @ known
        again = new @ known.T
        new -= again @ known  # twice is enough (Kahan)
        inside = (inside + again).double()
        self._inner[d : d + p, : d + p] = inside
        self._inner[: d + p, d : d + p] = inside.T
        self._inner[d : d + p, d : d + p] = (inside[:, d:] + inside[:, d:].T) / 2
        block, self._rest = torch.linalg.qr(new.T)
        # Where G has no more directions, what is new is rounding, and points back into the basis.
        block = block.T - (block.T @ known.T) @ known
        self._basis[d + p : d + 2 * p] = torch.linalg.qr(block.T).Q.T
        self._size += p

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return θ (d,) descending, the Ritz vectors' coordinates (d, d), and the norms of their residuals (d,)."""
        values, vectors = torch.linalg.eigh(self._inner[: self._size, : self._size])
        values, vectors = values.flip(0), vectors.flip(1)
        residuals = torch.linalg.vector_norm(self._rest.double() @ vectors[-self._width :], dim=0)
        return values, vectors, residuals

    def vectors(self, coordinates: Tensor) -> Tensor:
        """Return the Ritz vectors with these coordinates (d, c), (c, n) in float64."""
        basis = self._basis[: self._size]
        return (coordinates.T.to(basis.dtype) @ basis).double()


def product_of(matrix: Tensor, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> tuple[Product, int]:
    """Return X (p, n) ↦ X G for the smaller of AᵀA and A Aᵀ, A being matrix/scale in a dtype, and its size n."""
    narrow = matrix if matrix.shape[1] <= matrix.shape[0] else matrix.T
    n = narrow.shape[1]
    given = parts_of(narrow)
    parts = side_by_side(lambda part: (part if scale == 1.0 else part.double() / scale).to(dtype), given, matrix)

    def product(x: Tensor) -> Tensor:
        first, *others = side_by_side(lambda part: (x @ part.T) @ part, parts, x)
        for other in others:
            first += other
        return first

    return product, n


def in_float32(matrix: Tensor, norm: float) -> tuple[Product, int, float]:
    """Return X ↦ X G/s² in float32, the size n, and s: 1, or a power of two where float32 would over- or underflow.

    Arguments:
        matrix: A.
        norm: ‖A‖_F, or another number of the size of its entries.
    """
    scale = 1.0 if 1e-9 < norm < 1e9 or norm == 0 else 2.0 ** math.frexp(norm)[1]
    return *product_of(matrix, torch.float32, scale), scale


def random_rows(count: int, n: int, like: Tensor, seed: int = 0) -> Tensor:
    """Return the same random vectors each time, (count, n) in float32: the caller's random numbers stay as they are."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, n, generator=generator).to(like.device)


def leading(
    matrix: Tensor,
    enough: Callable[[Tensor, int], int | None],
    most: int,
    whole: float | None = None,
    precise: int = 1,
) -> Leading | None:
    """Return the largest σ² of a matrix with bounds, or ``None`` where they would take more work than the whole.

    Arguments:
        matrix: A, of any floating dtype, finite, its squares far from over- and underflow.
        enough: From θ (d,) and the number of those that have converged to how many are wanted; ``None`` as long as
            these do not tell, 0 to give up.
        most: The largest basis.
        whole: ‖A‖_F², if it is known.
        precise: How many are to be right to `AGREE`, if three products in float64 are enough for that.
    """
    whole = float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2 if whole is None else whole
    with one_thread():
        product, n, scale = in_float32(matrix, math.sqrt(whole))
        width = min(SEARCH, max(1, most))
        blocks = max(1, most // width)
        krylov = BlockKrylov(product, random_rows(width, n, matrix), blocks)
        for steps in range(1, blocks + 1):
            krylov.grow()
            if steps == 1 or (steps > 4 and steps % 4):
                continue
            values, coordinates, residuals = krylov.ritz()
            loose = (residuals > _CONVERGED * values[0]).nonzero()
            settled = int(loose[0]) if len(loose) else len(values)
            found = values * scale**2
            wanted = enough(found, settled)
            if wanted == 0:
                return None
            if wanted is not None and settled >= wanted and _apart(found, settled, wanted, whole, n):
                taken = krylov.vectors(coordinates[:, :settled])
                return _bounded(matrix, taken, product, scale, wanted, whole, precise)
    return None


def _apart(values: Tensor, settled: int, wanted: int, whole: float, n: int) -> bool:
    """Return whether ρ, by either of its ways, can be expected to be below what is wanted."""
    least, following = float(values[wanted - 1]), float(values[settled]) if settled < len(values) else 0.0
    return least > 2 * (whole - float(values[:settled].sum())) or least * (1 - _shortfall(n)) > following


def _bounded(
    matrix: Tensor, taken: Tensor, rough: Product, scale: float, wanted: int, whole: float, precise: int
) -> Leading | None:
    """Return the bounds of the first eigenvalues, with the Ritz vectors (c, n) taken out for ρ."""
    exact, n = product_of(matrix)
    found: Leading | None = None
    for _ in range(_POLISHED + 1):
        taken = torch.linalg.qr(taken.T).Q.T
        image = exact(taken)
        inner = taken @ image.T
        inner = (inner + inner.T) / 2
        values: Tensor = torch.linalg.eigvalsh(inner).flip(0)
        residual = image - inner @ taken  # Eᵀ
        rounding = n * EPS * float(values[0])
        rho = max(0.0, whole - float(values.sum())) + n * EPS * whole
        least = float(values[wanted - 1])
        if least <= 2 * rho:
            rho = _outside(taken, rough, whole / scale**2) * scale**2
        if least <= rho + rounding:
            return None
        upper = torch.linalg.eigvalsh(inner + residual @ residual.T / (least - rho)).flip(0)[:wanted] + 2 * rounding
        found = Leading(values[:wanted].cpu(), upper.cpu(), values.cpu(), taken, rho)
        if bool((found.upper <= (1 + AGREE) * found.lower)[:precise].all()):
            break
        taken = image  # a step of subspace iteration: what float32 left in the Ritz vectors of weaker ones goes
    return found


def _outside(taken: Tensor, product: Product, whole: float) -> float:
    """Return ρ by the second run, in float32, with what its rounding may hide."""
    n = taken.shape[1]
    out = taken.float()

    def outside(x: Tensor) -> Tensor:
        return x - (x @ out.T) @ out

    first = float((product(out[:1]) * out[:1]).sum())  # θ₁
    return _at_most(lambda x: outside(product(outside(x))), outside(_second(n, taken)), whole, first)


@torch.no_grad()
def norm_at_most(matrix: Tensor) -> float:
    """Return a bound on ‖A‖₂ by the second run, for any finite A (out, in) in float64; at most a fifth too large."""
    largest = power_of_two(matrix)
    scaled = matrix if 1e-9 < largest < 1e9 else matrix / largest
    with one_thread():
        whole = float(torch.linalg.vector_norm(scaled)) ** 2
        if whole == 0:
            return 0.0
        product, n, scale = in_float32(scaled, math.sqrt(whole))
        whole /= scale**2
        found = _at_most(product, _second(n, matrix), whole, whole)
    return math.sqrt(min(found, whole)) * scale * (1.0 if scaled is matrix else largest)


def _second(n: int, like: Tensor) -> Tensor:
    return random_rows(min(WIDTH, n), n, like, seed=1)


def _at_most(product: Product, start: Tensor, whole: float, first: float) -> float:
    """Return what G is at most, by its largest Ritz value, with ‖A‖_F² and the largest θ of what is rounded."""
    check = BlockKrylov(product, start, CHECKED)
    for _ in range(CHECKED):
        check.grow()
    # Sums of n products in blocks, as in `gram`: √n·u·‖A‖_F of each product with A, twice.
    rounding = 2 * math.sqrt(start.shape[1]) * _EPS32 * math.sqrt(whole * first)
    return float(check.ritz()[0][0]) / (1 - _shortfall(start.shape[1])) + rounding


def _shortfall(n: int) -> float:
    """Return ε: how much of ‖G‖ the second run may miss, but for a probability of ``DOUBT``."""
    return min(0.99, (math.log(1.648 * math.sqrt(n) / DOUBT ** (1 / WIDTH)) / (2 * CHECKED - 1)) ** 2)
