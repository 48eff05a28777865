"""The best approximation of an update by one of lower rank, and how far what is stored of it is from the update.

With ΔW = Σ_i σ_i u_i v_iᵀ, σ₁ ≥ σ₂ ≥ …, no matrix of rank k is nearer to ΔW than Σ_{i≤k} σ_i u_i v_iᵀ, neither in the
Frobenius nor in the spectral norm (Eckart and Young 1936; Mirsky 1960):

    ‖ΔW − (ΔW)_k‖_F = √Σ_{i>k} σ_i²        ‖ΔW − (ΔW)_k‖₂ = σ_{k+1}
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deltaw.adapters.linear.low_rank import kaiming_uniform
from deltaw.adapters.method import ScaledFactors
from deltaw.analysis.measures.factors import of_factors
from deltaw.analysis.measures.matrix import finite_matrix
from deltaw.analysis.measures.spectrum import dense_spectrum
from deltaw.analysis.measures.threads import one_thread


@dataclass(frozen=True, eq=False)
class Decomposed:
    """ΔW as Σ σ_i u_i v_iᵀ, in float64.

    Arguments:
        left: u_1, u_2, …, (out, n).
        values: σ, descending, (n,).
        right: v_1, v_2, …, (in, n).
    """

    left: Tensor
    values: Tensor
    right: Tensor

    @property
    def frobenius(self) -> float:
        """‖ΔW‖_F."""
        return _root_sum(self.values)

    @property
    def spectral(self) -> float:
        """‖ΔW‖₂."""
        return float(self.values[0])

    def beyond(self, rank: int) -> tuple[float, float]:
        """Return ‖ΔW − (ΔW)_k‖ for k = ``rank``, Frobenius and spectral."""
        rest = self.values[rank:]
        return (_root_sum(rest), float(rest[0])) if len(rest) else (0.0, 0.0)

    def halves(self, rank: int, scaling: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return B (out, rank) and A (rank, in) in ``dtype`` with s·B A = (ΔW)_rank but for their rounding.

        √(σ/s) goes to each, so that both have the same size. What ``rank`` has more than there are singular values is
        B = 0 and A drawn as LoRA's start: it adds nothing, and can be trained.
        """
        count = min(rank, int((self.values > 0).sum()))
        root = (self.values[:count] / scaling).sqrt()
        B = self.left.new_zeros(len(self.left), rank)
        A = kaiming_uniform(rank, len(self.right), self.right, torch.Generator().manual_seed(0))
        B[:, :count] = self.left[:, :count] * root
        A[:count] = (self.right[:, :count] * root).T
        return B.to(dtype), A.to(dtype)


@torch.no_grad()
@one_thread()
def decomposed(update: Tensor | ScaledFactors) -> Decomposed:
    """Return the singular value decomposition of ΔW (out, in), or of s·U V from QR of the factors and an r × r core.

    Raises:
        NonFiniteError: NaN or infinity.
    """
    if isinstance(update, ScaledFactors):
        q_u, r_u = torch.linalg.qr(finite_matrix("U", update.U).cpu())
        q_v, r_v = torch.linalg.qr(finite_matrix("V", update.V).cpu().T)
        p, values, g = torch.linalg.svd(update.scaling * (r_u @ r_v.T), full_matrices=False)
        return Decomposed(q_u @ p, values, q_v @ g.T)
    left, values, g = torch.linalg.svd(finite_matrix("update", update).cpu(), full_matrices=False)
    return Decomposed(left, values, g.T)


@torch.no_grad()
@one_thread()
def distance(update: Tensor | ScaledFactors, B: Tensor, A: Tensor, scaling: float) -> tuple[float, float]:
    """Return ‖ΔW − s·B A‖, Frobenius and spectral, with B and A as they are stored: their rounding counts.

    From factors it is the spectrum of the product (s_u·U, −s·B)(V; A) of rank r + k, from small matrices alone.
    """
    if isinstance(update, ScaledFactors):
        left = torch.cat([update.scaling * update.U.cpu().double(), -scaling * B.double()], 1)
        values = of_factors(left, torch.cat([update.V.cpu().double(), A.double()]))[0].values
        return _root_sum(values), float(values[0])
    rest = update.cpu().double() - scaling * (B.double() @ A.double())
    frobenius = _root_sum(rest)
    return frobenius, float(dense_spectrum(rest).singular_values[0]) if frobenius else 0.0


def _root_sum(values: Tensor) -> float:
    """√Σ x², whose squares neither over- nor underflow."""
    largest = float(values.abs().max()) if values.numel() else 0.0
    return largest * math.sqrt(float((values / largest).square().sum())) if largest else 0.0
