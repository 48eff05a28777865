"""‖W‖₂ of weights, and the noise floor that their rounding leaves in an update."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from threading import RLock

import torch
from torch import Tensor

from deltaw.adapters.errors import OptionError, ShapeError
from deltaw.analysis.measures.gram import power_of_two
from deltaw.analysis.measures.krylov import BlockKrylov, in_float32, random_rows
from deltaw.analysis.measures.matrix import Matrix, finite
from deltaw.analysis.measures.sizes import squared_norm
from deltaw.analysis.measures.threads import one_thread

NEAR = 0.01  # relative: so far from ‖W₀‖₂, ‖W‖₂ counts as the same


class Norms:
    """‖W‖₂ and ‖W‖_F of a matrix, each computed once, where it is asked for, and kept; W is not.

    Arguments:
        matrix: Makes W, (out, in).
    """

    def __init__(self, matrix: Callable[[], Tensor]) -> None:
        self._matrix, self._one = matrix, RLock()  # several threads may ask for the same

    @property
    def spectral(self) -> float:
        """‖W‖₂, as `spectral_norm` has it."""
        with self._one:
            return self._spectral

    @property
    def frobenius(self) -> float:
        """‖W‖_F."""
        with self._one:
            return self._frobenius

    @cached_property
    def _spectral(self) -> float:
        return spectral_norm(self._matrix())

    @cached_property
    def _frobenius(self) -> float:
        squared, scale = squared_norm(self._matrix())
        return math.sqrt(squared) * scale


class NoiseFloor:
    """eps(stored)·‖W‖₂ for rounded weights W: what their rounding can leave in the spectrum of an update.

    Arguments:
        stored: The dtype of the rounded weights.
        weight: The norms of W.
        base: Where W = W₀ + ΔW, those of W₀. As | ‖W‖₂ − ‖W₀‖₂ | ≤ ‖ΔW‖₂ (Weyl), ‖W₀‖₂ does for W, up to one percent,
            where ΔW is that small. So one ‖W₀‖₂ serves all steps of a matrix, and a floor depends on W₀ and W alone,
            not on which other steps are asked for.

    Raises:
        OptionError: ``stored`` is no floating dtype.
    """

    def __init__(self, stored: torch.dtype, weight: Norms, base: Norms | None = None) -> None:
        if not stored.is_floating_point:
            raise OptionError(f"stored is {stored}; pass a floating dtype, as torch.bfloat16")
        self.eps = torch.finfo(stored).eps
        self._weight, self._base = weight, base

    def of(self, spectral: float) -> float:
        """Return the floor in an update of this spectral norm."""
        near = None if self._base is None or spectral > NEAR * self._base.spectral else self._base.spectral
        return self.eps * (self._weight.spectral if near is None else near)

    def at_most(self, frobenius: float) -> float:
        """Return what the floor is at most in an update of this Frobenius norm, without any ‖W‖₂."""
        if self._base is None:
            return self.eps * self._weight.frobenius
        return (1 + NEAR) * self.eps * (self._base.frobenius + frobenius)


def noise_floor(update: Tensor, stored: torch.dtype, weight: Matrix) -> NoiseFloor:
    """Return the noise floor that these weights leave in an update read off them.

    Raises:
        OptionError, ShapeError, NonFiniteError: As `spectrum`.
    """
    checked = finite("weight", weight)
    if checked.shape != update.shape:
        raise ShapeError(f"weight has shape {tuple(checked.shape)} and update has shape {tuple(update.shape)}")
    return NoiseFloor(stored, Norms(lambda: checked))


def spectral_norm(weight: Tensor, vectors: int = 8, steps: int = 8) -> float:
    """Return ‖weight‖₂ or a little less: block power steps, then Rayleigh and Ritz on all they passed.

    In float32, as far as it is about the direction v; the norm is ‖weight·v‖, in float64. Measured, up to one percent
    is lacking; for no matrix of up to 28672 rows or columns more than a sixth, but for a probability of 1e-12, by the
    bound of `deltaw.analysis.measures.krylov` with p = 8 vectors and k = 9 products.

    Arguments:
        weight: (out, in), of any floating dtype.
        vectors: The width of the block.
        steps: The number of power steps.
    """
    if min(weight.shape) <= vectors * (steps + 1):
        with one_thread():
            return float(torch.linalg.matrix_norm(weight.double(), 2))
    with one_thread():
        scale = power_of_two(weight)
        product, n, _ = in_float32(weight, scale)
        krylov = BlockKrylov(product, random_rows(vectors, n, weight), steps + 1)
        for _ in range(steps + 1):
            krylov.grow()
        first = krylov.vectors(krylov.ritz()[1][:, :1])[0]  # (n,)
        first /= torch.linalg.vector_norm(first)
        narrow = weight if weight.shape[1] == n else weight.T
        return float(torch.linalg.vector_norm(narrow.double() @ first / scale)) * scale
