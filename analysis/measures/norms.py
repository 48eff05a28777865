"""‖W‖₂ of weights, and the noise floor that their rounding leaves in an update."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from deltaw.adapters.errors import OptionError, ShapeError
from deltaw.analysis.measures.krylov import BlockKrylov, in_float32, random_rows
from deltaw.analysis.measures.matrix import Matrix, finite
from deltaw.analysis.measures.threads import one_thread

NEAR = 0.01  # relative: so far from ‖W₀‖₂, ‖W‖₂ counts as the same


class NoiseFloor:
    """eps(stored)·‖W‖₂ for rounded weights W, (out, in): what their rounding can leave in the spectrum of an update.

    ‖W‖₂ is computed only where somebody asks for it, and kept.

    Arguments:
        stored: The dtype of the rounded weights.
        weight: Makes W.
        base: Where W = W₀ + ΔW: makes ‖W₀‖₂ and ‖W₀‖_F. As | ‖W‖₂ − ‖W₀‖₂ | ≤ ‖ΔW‖₂ (Weyl), ‖W₀‖₂ does for W up to one
            percent where ΔW is that small. So one ‖W₀‖₂ serves all steps of a matrix, and a floor depends on W₀ and W
            alone, not on which other steps are asked for.

    Raises:
        OptionError: ``stored`` is no floating dtype.
    """

    def __init__(
        self, stored: torch.dtype, weight: Callable[[], Tensor], base: Callable[[], tuple[float, float]] | None = None
    ) -> None:
        if not stored.is_floating_point:
            raise OptionError(f"stored is {stored}; pass a floating dtype, as torch.bfloat16")
        self.eps = torch.finfo(stored).eps
        self._weight, self._base = weight, base

    @cached_property
    def _own(self) -> float:
        return spectral_norm(self._weight())

    def of(self, spectral: float) -> float:
        """Return the floor in an update of this spectral norm."""
        if self._base is not None:
            norm, _ = self._base()
            if spectral <= NEAR * norm:
                return self.eps * norm
        return self.eps * self._own

    def at_most(self, frobenius: float) -> float:
        """Return what the floor is at most in an update of this Frobenius norm, without any ‖W‖₂: eps·‖W‖_F."""
        if self._base is not None:
            return (1 + NEAR) * self.eps * (self._base()[1] + frobenius)
        return self.eps * float(torch.linalg.vector_norm(self._weight(), dtype=torch.float64))


def noise_floor(update: Tensor, stored: torch.dtype, weight: Matrix) -> NoiseFloor:
    """Return the noise floor that these weights leave in an update read off them.

    Raises:
        OptionError, ShapeError, NonFiniteError: As `spectrum`.
    """
    floor = NoiseFloor(stored, lambda: checked)
    checked = finite("weight", weight)
    if checked.shape != update.shape:
        raise ShapeError(f"weight has shape {tuple(checked.shape)} and update has shape {tuple(update.shape)}")
    return floor


def norms(weight: Tensor) -> tuple[float, float]:
    """Return ‖weight‖₂ as `spectral_norm` has it, and ‖weight‖_F."""
    with one_thread():
        return spectral_norm(weight), float(torch.linalg.vector_norm(weight, dtype=torch.float64))


def spectral_norm(weight: Tensor, vectors: int = 8, steps: int = 8) -> float:
    """Return ‖weight‖₂ or up to one percent less: block power steps, then Rayleigh and Ritz on all they passed.

    In float32, as far as it is about the direction v; the norm is ‖weight·v‖, in float64.

    Arguments:
        weight: (out, in), of any floating dtype.
        vectors: The width of the block.
        steps: The number of power steps.
    """
    if min(weight.shape) <= vectors * (steps + 1):
        with one_thread():
            return float(torch.linalg.matrix_norm(weight.double(), 2))
    with one_thread():
        product, n, _ = in_float32(weight, float(torch.linalg.vector_norm(weight, dtype=torch.float64)))
        krylov = BlockKrylov(product, random_rows(vectors, n, weight), steps + 1)
        for _ in range(steps + 1):
            krylov.grow()
        first = krylov.vectors(krylov.ritz()[1][:, :1])[0]  # (n,)
        first /= torch.linalg.vector_norm(first)
        narrow = weight if weight.shape[1] == n else weight.T
        return float(torch.linalg.vector_norm(narrow.double() @ first))
