"""The singular values σ₁ ≥ σ₂ ≥ … of an update ΔW, and what is read off them: rank, effective ranks, norms.

How they are computed: from factors in `factors`, else by the cheapest exact way in `routes`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deltaw.adapters.checks import public
from deltaw.adapters.errors import NonFiniteError, OptionError
from deltaw.analysis.measures.approximate import allowed_error, approximated
from deltaw.analysis.measures.factors import of_factors, two_factors
from deltaw.analysis.measures.matrix import Matrix, finite, matrix
from deltaw.analysis.measures.norms import NoiseFloor, noise_floor
from deltaw.analysis.measures.routes import Found, of_dense
from deltaw.analysis.measures.sizes import zero_shares
from deltaw.analysis.printable import html_table


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
        route: How they were computed: "factors", "gram" (then a σ at or below the tolerance may be off by about
            1e-7·σ₁) or "svd"; see `deltaw.analysis.measures.routes`. "krylov" for the largest ones alone.
        error: The share of ‖ΔW‖_F² that the singular values leave out, where they were approximated; else 0. Norms,
            stable rank and participation ratio count that share, from the known ‖ΔW‖_F, and energy ranks are shares
            of all; the others leave it out, so that rank, effective rank and nuclear norm are at most too small.

    An update of zeros, or of noise alone, has rank, effective ranks and norms 0.
    """

    singular_values: Tensor
    tolerance: float
    noise_floor: float
    zero_rows: float
    zero_columns: float
    route: str = "svd"
    error: float = 0.0

    def __repr__(self) -> str:
        return (
            f"Spectrum(rank={self.rank}, stable_rank={self.stable_rank:.4g}, effective_rank={self.effective_rank:.4g}, "
            f"of {len(self.singular_values)} singular values)"
        )

    def _repr_html_(self) -> str:
        words = {
            "spectral": "σ₁, the spectral norm",
            "frobenius": "‖ΔW‖, the Frobenius norm",
            "nuclear": "Σσ, the nuclear norm",
            "tolerance": "σ above this count",
        }
        names = ["rank", "stable_rank", "effective_rank", *words, "route"]
        rows = [(words.get(name, name.replace("_", " ")), getattr(self, name)) for name in names]
        return html_table(f"Spectrum of {len(self.singular_values)} singular values", rows)

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
        first = float(self.singular_values[0])
        return first if first > self.tolerance else 0.0

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
        return float(self._relative.square().sum()) / (1 - self.error)

    @property
    def effective_rank(self) -> float:
        """exp(−Σ p log p) with p = σ/Σσ (Roy, Vetterli 2007)."""
        relative = self._relative
        if not relative.any():
            return 0.0
        p = relative / relative.sum()
        return math.exp(-float(torch.xlogy(p, p).sum()))

    @property
    def participation_ratio(self) -> float:
        """(Σσ²)² / Σσ⁴ (Gao et al. 2017, of the eigenvalues σ²)."""
        squares = self._relative.square()
        whole = float(squares.sum()) / (1 - self.error)
        return whole**2 / float(squares.square().sum()) if squares.any() else 0.0

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
        energy = self._relative.square().cumsum(0)
        return int((energy < fraction * (energy[-1] / (1 - self.error))).sum()) + 1 if energy[-1] > 0 else 0

    @functools.cached_property
    def _relative(self) -> Tensor:
        """σ/σ₁ of the signal, so that no square over- or underflows; zeros for zeros."""
        return self.signal / (self.spectral or 1.0)


@public
@torch.no_grad()
def spectrum(
    update: Matrix | None = None,
    *,
    factors: tuple[Matrix, Matrix] | None = None,
    stored: torch.dtype | None = None,
    weight: Matrix | None = None,
    approximate: float | None = None,
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
    above the norm and, for the worst (flat) spectra, 0.2 to 1 percent below, far within the floor's slack; no matrix
    with sides up to 28672 has it more than a sixth below, but for a probability of 1e-12.

    The route: factors need r×r matrices only. A dense update takes the eigenvalues of its Gram matrix, where their
    error bound β (about √n·eps·‖ΔW‖_F²) tells which σ are above the tolerance; each of these is then right to
    β/σ, and Σσ to 1e-6. A σ at or below the tolerance may be off by √β, some 1e-7·σ₁. Elsewhere the float64 SVD.

    Cost: factors of rank 64 take milliseconds. By the Gram matrix 2048×2048 takes a second on one core, by the SVD two
    to three, and far longer on cores that others use too. The eigenvalues are computed by one thread, so that the
    answer is the same, to the bit, for any number of threads; a table has several matrices in work at once.

    Arguments:
        update: ΔW, (out, in), a tensor or NumPy array of any floating dtype; computed in float64.
        factors: Instead of ``update``: (U, V), (out, r) and (r, in), with ΔW = U V.
        stored: The dtype of the rounded weights that ``update`` was read off. Goes with ``weight``.
        weight: Those weights, (out, in). Goes with ``stored``.
        approximate: Be satisfied with the largest singular values that leave out at most this share of ‖ΔW‖_F², as
            0.01, and say in ``error`` how much that is; see `deltaw.analysis.measures.approximate`. ``None`` for all.
            From factors all of them are as cheap, so there it changes nothing.

    Returns:
        A `Spectrum`.

    Raises:
        OptionError: Neither or both of ``update`` and ``factors``; one of ``stored`` and ``weight`` without the other,
            or with ``factors``, which are exact; a tensor or dtype that is not floating; ``approximate`` is no share.
        ShapeError: Something is not a matrix, is empty, or does not fit.
        NonFiniteError: NaN or infinity in a tensor, in the product of the factors, or as largest singular value.

    Source:
        Roy, Vetterli 2007 (effective rank); Bandeira, van Handel 2016, theorem 1.1 (the norm of E); Halko, Martinsson,
        Tropp 2011 (``approximate``).

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
    allowed = None if approximate is None else allowed_error(approximate)
    if update is not None and factors is None:
        update = matrix("update", update)
        floor = None if stored is None or weight is None else noise_floor(update, stored, weight)
        return dense_spectrum(update, floor, allowed)
    if factors is not None and update is None:
        if stored is not None:
            raise OptionError("stored and weight go with update; factors are exact, leave them out")
        return factored_spectrum(*two_factors(factors))
    given = "neither" if update is None else "both"
    raise OptionError(f"update and factors: {given} given; pass one, spectrum(update) or spectrum(factors=(U, V))")


@torch.no_grad()
def dense_spectrum(update: Tensor, floor: NoiseFloor | None = None, approximate: float | None = None) -> Spectrum:
    """Return `spectrum` of an update with a noise floor that is ready, or comes once for several updates."""
    dense = finite("update", update)
    least = 0.0 if floor is None else floor.of
    found = None if approximate is None else approximated(dense, approximate, least)
    found = of_dense(dense, least) if found is None else found
    if not math.isfinite(float(found.values[0])):
        raise NonFiniteError("update: its largest singular value exceeds float64; scale the update down")
    return _spectrum(found, *zero_shares(dense), 0.0 if floor is None else floor.of(float(found.values[0])))


@torch.no_grad()
def factored_spectrum(left: Tensor, right: Tensor, scaling: float = 1.0) -> Spectrum:
    """Return what ``spectrum(factors=(scaling * left, right))`` does, of factors as they are stored.

    Arguments:
        left, right: U (out, r) and V (r, in), of any floating dtypes; neither is widened or scaled as a whole.
        scaling: s of ΔW = s·U V.
    """
    found, rows, columns = of_factors(matrix("factors[0]", left), matrix("factors[1]", right), scaling)
    return _spectrum(found, float(rows.double().mean()), float(columns.double().mean()))


def _spectrum(found: Found, zero_rows: float, zero_columns: float, floor: float = 0.0) -> Spectrum:
    return Spectrum(
        singular_values=found.values,
        tolerance=found.tolerance,
        noise_floor=floor,
        zero_rows=zero_rows,
        zero_columns=zero_columns,
        route=found.route,
        error=found.error,
    )
