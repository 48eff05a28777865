"""A matrix by its products with thin ones: W itself, or W' = diag(ρ)(W₀ + U V)diag(γ) that is not built."""

from __future__ import annotations

import torch
from torch import Tensor

from deltaw.adapters.method import ScaledLowRank
from deltaw.analysis.measures.threads import one_thread, parts_of, side_by_side


class Product:
    """W, known by x ↦ W x and y ↦ Wᵀ y; vectors are rows.

    Arguments:
        matrix: W₀ (out, in) in float64.
        form: ρ, γ, U and V in float64, with W = diag(ρ)(W₀ + U V)diag(γ); ``None`` for W₀ itself.

    Example:
        >>> eye = torch.eye(2, dtype=torch.float64)
        >>> form = ScaledLowRank(eye[0] + 1, eye[0] + 1, eye[:, :1], eye[:1])  # ρ = γ = (2, 1), U V = e₁e₁ᵀ
        >>> Product(eye, form).times(eye).tolist()
        [[8.0, 0.0], [0.0, 1.0]]
    """

    def __init__(self, matrix: Tensor, form: ScaledLowRank | None = None) -> None:
        self.matrix = matrix
        self.form = None if form is None else ScaledLowRank(*(part.to(matrix.device) for part in form))

    @property
    def finite(self) -> bool:
        """Whether no part of the form is NaN or infinite."""
        return self.form is None or all(bool(part.isfinite().all()) for part in self.form)

    @property
    def unmoved(self) -> bool:
        """Whether W is W₀ to the last bit, as ρ = γ = 1 and U or V is zero."""
        if self.form is None:
            return True
        rho, gamma, U, V = self.form
        return bool((rho == 1).all() and (gamma == 1).all()) and not (bool(U.any()) and bool(V.any()))

    @property
    def turned_over(self) -> Product:
        """Wᵀ."""
        if self.form is None:
            return Product(self.matrix.T)
        rho, gamma, U, V = self.form
        return Product(self.matrix.T, ScaledLowRank(gamma, rho, V.T, U.T))

    def times(self, x: Tensor) -> Tensor:
        """Return W x for the rows x, (p, in) ↦ (p, out); the same bits for any number of threads."""
        if self.form is None:
            return self._times(x)
        rho, gamma, U, V = self.form
        with one_thread():
            inner = x * gamma
            return (self._times(inner) + (inner @ V.T) @ U.T) * rho

    def back(self, y: Tensor) -> Tensor:
        """Return Wᵀ y for the rows y, (p, out) ↦ (p, in)."""
        if self.form is None:
            return self._back(y)
        rho, gamma, U, V = self.form
        with one_thread():
            outer = y * rho
            return (self._back(outer) + (outer @ U) @ V) * gamma

    def dense(self) -> Tensor:
        """Return W (out, in)."""
        if self.form is None:
            return self.matrix
        rho, gamma, U, V = self.form
        with one_thread():
            return rho[:, None] * (self.matrix + U @ V) * gamma

    def _times(self, x: Tensor) -> Tensor:
        return torch.cat(side_by_side(lambda rows: x @ rows.T, parts_of(self.matrix), self.matrix), 1)

    def _back(self, y: Tensor) -> Tensor:
        parts = parts_of(self.matrix)
        columns = torch.split(y, [len(part) for part in parts], dim=1)
        pairs = list(zip(columns, parts, strict=True))
        first, *others = side_by_side(lambda pair: pair[0] @ pair[1], pairs, self.matrix)
        for other in others:
            first += other
        return first
