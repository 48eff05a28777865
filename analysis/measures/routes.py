"""The cheapest exact way to the singular values of an update that is a matrix.

"gram": the eigenvalues of ΔW ΔWᵀ in float64, the smaller side's, see `deltaw.analysis.measures.gram`. Taken where
their error bound β decides for every σ on which side of the tolerance it is, and leaves Σσ of those above right to
1e-6. It decides where the tolerance stands above √β, and also below, where few σ are that small, as in an update of
full rank; these few are measured by themselves, see `deltaw.analysis.measures.smallest`.

"svd": the singular value decomposition in float64. Taken where the Gram matrix cannot decide, and where the update is
so small that it costs nothing.

Factors have a way of their own, see `deltaw.analysis.measures.factors`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deltaw.analysis.measures.gram import gram, squares
from deltaw.analysis.measures.smallest import smallest
from deltaw.analysis.measures.threads import one_thread

AGREE = 1e-6  # relative, of the sum of the singular values above the tolerance
_WEAK = 100  # in units of β: an eigenvalue below that is too uncertain
SMALL = 128  # the smaller side below which the decomposition itself is as fast


Floor = float | Callable[[float], float]


@dataclass(frozen=True, eq=False)
class Found:
    """Singular values, descending, float64 on the CPU; the tolerance; by which way they were found; what is missing.

    ``error`` is the share of ‖ΔW‖_F² that the singular values leave out, 0 where they are all there.
    """

    values: Tensor
    tolerance: float
    route: str
    error: float = 0.0


def of_dense(update: Tensor, floor: Floor = 0.0) -> Found:
    """Return the singular values of an update.

    Arguments:
        update: (out, in), finite, of any floating dtype.
        floor: The noise floor, the least that the tolerance may be; or a function from σ₁ to it.
    """
    found = _by_gram(update, floor) if min(update.shape) >= SMALL else None
    return _by_svd(update, floor) if found is None else found


def _by_svd(update: Tensor, floor: Floor) -> Found:
    with one_thread():
        values = torch.linalg.svdvals(update.double()).cpu()
    return Found(values, max(relative_tolerance(update) * float(values[0]), floor_at(floor, float(values[0]))), "svd")


def floor_at(floor: Floor, spectral: float) -> float:
    """Return the noise floor in an update of this spectral norm."""
    return floor(spectral) if callable(floor) else floor


def _by_gram(update: Tensor, floor: Floor) -> Found | None:
    """Return the singular values, or ``None`` where the Gram matrix cannot tell which are above the tolerance."""
    matrix = gram(update)
    values, bound = squares(matrix)
    sigma = values.sqrt()
    first = float(sigma[0])
    tolerance = max(relative_tolerance(update) * first, floor_at(floor, first * matrix.scale) / matrix.scale)
    if not decided(values, bound, tolerance):
        # Of an update of full rank a few are too small for the Gram matrix; these are measured by themselves.
        few = int((values < max(_WEAK * bound, tolerance**2)).sum())
        last = smallest(update, matrix, values, bound, few)
        if last is None or not decided(values[:-few], bound, tolerance):
            return None
        sigma = torch.cat([sigma[:-few], last]).sort(descending=True).values
    return Found(sigma * matrix.scale, tolerance * matrix.scale, "gram")


def decided(values: Tensor, bound: float, tolerance: float) -> bool:
    """Return whether eigenvalues with an error of at most ``bound`` tell the rank, and Σσ above the tolerance.

    Arguments:
        values: λ̂ = σ̂², descending.
        bound: β.
        tolerance: As a singular value.
    """
    # Twice: where the tolerance is relative to σ̂₁, its square may be off by β as well.
    if bool(((values - tolerance**2).abs() < 2 * bound).any()):
        return False
    sigma = values[values > tolerance**2].sqrt()
    return float((bound / sigma).sum()) <= AGREE * float(sigma.sum())


def relative_tolerance(update: Tensor) -> float:
    """Return the tolerance in units of σ₁, by the update's shape and dtype."""
    dtype = update.dtype
    computed = torch.finfo(dtype if dtype == torch.float32 else torch.float64).eps
    return max(max(update.shape) * computed, torch.finfo(dtype).eps)
