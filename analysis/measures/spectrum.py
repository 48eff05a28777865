"""The singular values σ₁ ≥ σ₂ ≥ … of an update ΔW, and what is read off them: rank, effective ranks, norms.

From factors, ΔW = U V, nothing of the size of ΔW is made: with U = Q_u R_u and Vᵀ = Q_v R_v,

    U V = Q_u (R_u R_vᵀ) Q_vᵀ,

and the r×r core R_u R_vᵀ has ΔW's singular values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deltaw.adapters.errors import NonFiniteError, OptionError, ShapeError
from deltaw.analysis.measures.matrix import Matrix, finite_matrix, matrix

_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True, eq=False, repr=False)
class Spectrum:
    """The singular values of one update and the threshold below which they count as zero.

    A singular value at or below the tolerance is noise, of rounding or of the weights' dtype, and no measure counts it:
    rank, effective ranks, energy ranks and norms are those of the update without it. ``noise`` says how much that
    leaves out; ``singular_values`` holds all of them.

    Arguments:
        singular_values: σ, descending, float64 on the CPU; min(out, in) of them, from factors min(out, in, r).
        tolerance: The absolute threshold; only a singular value above it is signal.
        noise_floor: eps(stored)·‖weight‖₂, what rounded weights leave in ``tolerance``; 0 if not asked for.
        zero_rows, zero_columns: The shares of rows and columns of the update that are exactly zero, in [0, 1].

    An update of zeros, or of noise alone, has rank, effective ranks and norms 0.
    """

    singular_values: Tensor
    tolerance: float
    noise_floor: float
    zero_rows: float
    zero_columns: float

    def __repr__(self) -> str:
        return (
            f"Spectrum(rank={self.rank}, stable_rank={self.stable_rank:.4g}, effective_rank={self.effective_rank:.4g}, "
            f"of {len(self.singular_values)} singular values)"
        )

    @property
    def signal(self) -> Tensor:
        """The singular values with 0 in the place of those at or below ``tolerance``."""
        return torch.where(self.singular_values > self.tolerance, self.singular_values, 0.0)

    @property
    def noise(self) -> float:
        """Σσ² of what is at or below ``tolerance``, over Σσ² of all, in [0, 1]; 0 for an update of zeros."""
        relative = (self.singular_values / (float(self.singular_values[0]) or 1.0)).square()
        whole = float(relative.sum())
        return float(relative[self.singular_values <= self.tolerance].sum()) / whole if whole else 0.0

    @property
    def rank(self) -> int:
        """The number of singular values above ``tolerance``."""
        return int((self.singular_values > self.tolerance).sum())

    @property
    def spectral(self) -> float:
        """σ₁, the spectral norm."""
        return float(self.signal[0])

    @property
    def frobenius(self) -> float:
        """√Σσ², the Frobenius norm."""
        return self.spectral * math.sqrt(self.stable_rank)

    @property
    def nuclear(self) -> float:
        """Σσ, the nuclear norm."""
        return float(self.signal.sum())

    @property
    def stable_rank(self) -> float:
        """‖ΔW‖_F² / σ₁² (Rudelson, Vershynin 2007)."""
        return float(self._relative().square().sum())

    @property
    def effective_rank(self) -> float:
        """exp(−Σ p log p) with p = σ/Σσ (Roy, Vetterli 2007)."""
        relative = self._relative()
        if not relative.any():
            return 0.0
        p = relative / relative.sum()
        return math.exp(-float(torch.xlogy(p, p).sum()))

    @property
    def participation_ratio(self) -> float:
        """(Σσ²)² / Σσ⁴ (Gao et al. 2017, of the eigenvalues σ²)."""
        squares = self._relative().square()
        return float(squares.sum() ** 2 / squares.square().sum()) if squares.any() else 0.0

    def energy_rank(self, fraction: float) -> int:
        """Return the smallest k with Σ_{i≤k} σ_i² ≥ fraction·Σσ²; 0 for an update of zeros.

        Arguments:
            fraction: The share of the energy, in (0, 1].

        Raises:
            OptionError: ``fraction`` is outside (0, 1].

        Source:
            The explained-variance rule of principal component analysis.

        Example:
            >>> spectrum(torch.diag(torch.tensor([3.0, 1.0]))).energy_rank(0.9)
            1
        """
        if not isinstance(fraction, float | int | np.number) or not 0 < fraction <= 1:
            raise OptionError(f"fraction is {fraction!r}; choose a share of the energy above 0 and at most 1, as 0.9")
        energy = self._relative().square().cumsum(0)
        return int((energy < fraction * energy[-1]).sum()) + 1 if energy[-1] > 0 else 0

    def _relative(self) -> Tensor:
        """σ/σ₁ of the signal, so that no square over- or underflows; zeros for zeros."""
        return self.signal / (self.spectral or 1.0)


@torch.no_grad()
def spectrum(
    update: Matrix | None = None,
    *,
    factors: tuple[Matrix, Matrix] | None = None,
    stored: torch.dtype | None = None,
    weight: Matrix | None = None,
) -> Spectrum:
    r"""Return the singular values of an update, dense or from its factors, and the threshold for its rank.

        rank = #{i : σ_i > tolerance}    (and no other measure counts a σ_i at or below it)
        tolerance = max(max(out, in)·eps·σ₁, eps(stored)·‖weight‖₂)

    eps is float64's, in which everything is computed, and float32's for a float32 update, as in numpy's and torch's
    ``matrix_rank``. A 16-bit update has itself been rounded, so there the first term is at least eps(dtype)·σ₁. From
    factors it is at least r·eps·Σ_k ‖U_k‖‖V_k‖, because columns of U V may cancel.

    The noise floor: rounding a weight to ``stored`` adds an error E to each entry, of standard deviation at most
    eps/(2√3)·|w|. For independent entries ‖E‖₂ ≲ eps/(2√3)·(largest row norm + largest column norm) ≤ 0.58·eps·‖W‖₂.
    Measured: 0.22·eps·‖W‖₂ for Gaussian weights, never above 0.3 (bfloat16, float16, float32). An update smaller than
    half a unit in the last place of the weights is lost in rounding, not blurred: the floor says nothing of that.

    ‖weight‖₂ comes from 8 block power steps on 8 vectors and the largest singular value on their span. That is never
    above the norm and, for the worst (flat) spectra, 0.2 to 1 percent below, far within the floor's slack.

    Cost, 4096×4096: a dense update takes the time of a float64 SVD, O(out·in·min(out, in)), about half a minute on two
    cores; factors of rank 64 take milliseconds.

    Arguments:
        update: ΔW, (out, in), a tensor or NumPy array of any floating dtype; widened to float64. The Gram matrix
            would be faster, but it loses half of the digits.
        factors: Instead of ``update``: (U, V), (out, r) and (r, in), with ΔW = U V.
        stored: The dtype of the rounded weights that ``update`` was read off. Goes with ``weight``.
        weight: Those weights, (out, in). Goes with ``stored``.

    Returns:
        A `Spectrum`.

    Raises:
        OptionError: Neither or both of ``update`` and ``factors``; one of ``stored`` and ``weight`` without the other,
            or with ``factors``, which are exact; a tensor or dtype that is not floating.
        ShapeError: Something is not a matrix, is empty, or does not fit.
        NonFiniteError: NaN or infinity in a tensor, or in the product of the factors.

    Source:
        Roy, Vetterli 2007 (effective rank); Bandeira, van Handel 2016, theorem 1.1 (the norm of E).

    Example:
        >>> u, v = torch.eye(4, 2), torch.eye(2, 3)
        >>> found = spectrum(factors=(u, v))
        >>> found.rank, found.singular_values.tolist(), found.zero_rows
        (2, [1.0, 1.0], 0.5)
        >>> spectrum(u @ v).rank
        2
    """
    if (stored is None) != (weight is None):
        lacking, other = ("stored", "weight") if stored is None else ("weight", "stored")
        raise OptionError(f"{other} is given without {lacking}; the noise floor needs both the dtype and the weights")
    if stored is not None and not isinstance(stored, torch.dtype):
        raise OptionError(f"stored is {stored!r}; pass a floating dtype, as torch.bfloat16")
    if update is not None and factors is None:
        update = matrix("update", update)
        floor = 0.0 if stored is None or weight is None else _noise_floor(update, stored, weight)
        return _of_dense(update, floor)
    if factors is not None and update is None:
        if stored is not None:
            raise OptionError("stored and weight go with update; factors are exact, leave them out")
        return _of_factors(*two_factors(factors))
    given = "neither" if update is None else "both"
    raise OptionError(f"update and factors: {given} given; pass one, spectrum(update) or spectrum(factors=(U, V))")


def two_factors(factors: object) -> tuple[Tensor, Tensor]:
    """Return U and V as tensors.

    Raises:
        OptionError: They are no pair of matrices.
    """
    if not isinstance(factors, tuple | list) or len(factors) != 2:
        raise OptionError(f"factors is a {type(factors).__name__}; pass a pair (U, V), (out, r) and (r, in)")
    return matrix("factors[0]", factors[0]), matrix("factors[1]", factors[1])


def _of_dense(update: Tensor, floor: float) -> Spectrum:
    """Return the spectrum of the update itself; ``floor`` is its noise floor."""
    wide = finite_matrix("update", update)
    values = torch.linalg.svdvals(wide)
    eps = torch.finfo(update.dtype).eps
    computed = torch.finfo(update.dtype if update.dtype == torch.float32 else torch.float64).eps
    relative = max(max(wide.shape) * computed, eps)
    zero = wide == 0
    return Spectrum(
        singular_values=values.cpu(),
        tolerance=max(relative * float(values[0]), floor),
        noise_floor=floor,
        zero_rows=float(zero.all(1).double().mean()),
        zero_columns=float(zero.all(0).double().mean()),
    )


def _of_factors(left: Tensor, right: Tensor) -> Spectrum:
    """Return the spectrum of left·right, (out, r) times (r, in), from their triangles."""
    # One after the other, so that the second one's copies take the place of the first one's.
    r_u, u_full = _triangle(finite_matrix("factors[0]", left))  # (≤ r, r)
    r_v, v_full = _triangle(finite_matrix("factors[1]", right).T)
    if left.shape[1] != right.shape[0]:
        raise ShapeError(f"factors have shapes {tuple(left.shape)} and {tuple(right.shape)}; pass (out, r) and (r, in)")
    r_v = r_v.to(r_u.device)
    size = max(left.shape[0], right.shape[1])
    core = r_u @ r_v.T
    if not bool(core.isfinite().all()):
        raise NonFiniteError("factors: their product exceeds float64; scale them down")
    values = torch.linalg.svdvals(core)
    u_norms, v_norms = (torch.linalg.vector_norm(r, dim=0) for r in (r_u, r_v))  # (r,), those of u and vᵀ too
    rows = _zero_rows(left, None if v_full else r_v, size)
    columns = _zero_rows(right.T, None if u_full else r_u, size)
    return Spectrum(
        singular_values=values.cpu(),
        tolerance=_EPS * max(size * float(values[0]), left.shape[1] * float(u_norms @ v_norms)),
        noise_floor=0.0,
        zero_rows=float(rows.double().mean()),
        zero_columns=float(columns.double().mean()),
    )


def _triangle(tall: Tensor) -> tuple[Tensor, bool]:
    """Return R of (n, r) = Q R, and whether the matrix surely has full rank r, its condition being far below 1/eps.

    Cholesky's R₁ᵀR₁ = XᵀX, twice, the second time on Q₁ = X R₁⁻¹: two thirds of the work are matrix products. The first
    R₁ may lose half of the digits; as X = Q₁ R₁ still holds to rounding, R₂R₁ loses none where Q₁ is well-conditioned,
    and that is looked at. Elsewhere Householder's QR (Yamamoto et al. 2015, Cholesky QR 2).
    """
    first, failed = torch.linalg.cholesky_ex(tall.T @ tall, upper=True)
    if not failed:
        if tall.is_contiguous():  # LAPACK goes by columns; asked for the transpose, torch need not copy
            q = torch.linalg.solve_triangular(first.mT, tall.mT, upper=False).mT
        else:
            q = torch.linalg.solve_triangular(first, tall, upper=True, left=False)
        gram = q.T @ q
        if bool(torch.dist(gram, torch.eye(len(gram), dtype=gram.dtype, device=gram.device)) < 0.01):  # not if NaN
            return torch.linalg.cholesky(gram, upper=True) @ first, True
    return torch.linalg.qr(tall, mode="r").R, False


def _zero_rows(factor: Tensor, triangle: Tensor | None, size: int) -> Tensor:
    """Return which rows of the product are zero, (n,), for its left factor X (n, r) and the other one's triangle R.

    Row i is zero iff x_i Rᵀ is, as Q has full rank; terms that cancel may leave a rounding error. Without R, for R of
    full rank: iff x_i is zero.
    """
    if triangle is None:
        readable = factor if factor.dtype in (torch.float32, torch.float64) else factor.float()
        largest: Tensor = readable.abs().amax(1)
        return largest == 0
    wide = factor.to(triangle.device).double()
    bound: Tensor = wide.abs() @ torch.linalg.vector_norm(triangle, dim=0)
    norms: Tensor = torch.linalg.vector_norm(wide @ triangle.T, dim=1)
    return norms <= size * _EPS * bound


def _noise_floor(update: Tensor, stored: torch.dtype, weight: Matrix) -> float:
    """Return eps(stored)·‖weight‖₂."""
    if not stored.is_floating_point:
        raise OptionError(f"stored is {stored}; pass a floating dtype, as torch.bfloat16")
    wide = finite_matrix("weight", weight)
    if wide.shape != update.shape:
        raise ShapeError(f"weight has shape {tuple(wide.shape)} and update has shape {tuple(update.shape)}")
    return torch.finfo(stored).eps * _spectral_norm(wide)


def _spectral_norm(weight: Tensor, vectors: int = 8, steps: int = 8) -> float:
    """Return ‖weight‖₂ or up to one percent less: block power steps, then Rayleigh and Ritz on all they passed.

    Arguments:
        weight: (out, in), float64.
        vectors: The width of the block.
        steps: The number of power steps.
    """
    if min(weight.shape) <= vectors * (steps + 1):
        return float(torch.linalg.matrix_norm(weight, 2))
    generator = torch.Generator().manual_seed(0)  # its own: the caller's random numbers stay as they are
    start = torch.randn(weight.shape[1], vectors, generator=generator, dtype=torch.float64)
    blocks = [torch.linalg.qr(start.to(weight.device)).Q]
    for _ in range(steps):
        blocks.append(torch.linalg.qr(weight.T @ (weight @ blocks[-1])).Q)
    basis = torch.linalg.qr(torch.cat(blocks, dim=1)).Q  # (in, vectors·(steps + 1))
    return float(torch.linalg.matrix_norm(weight @ basis, 2))
