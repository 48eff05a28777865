"""How parallel two updates are, and how far apart: each a matrix, or factors without a matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deltaw.adapters.checks import public
from deltaw.adapters.errors import ShapeError
from deltaw.analysis.measures.matrix import Matrix, finite_matrix
from deltaw.analysis.measures.threads import one_thread

Update = Matrix | tuple[Matrix, Matrix]


@dataclass(frozen=True)
class Alignment:
    """How two updates lie to each other.

    Arguments:
        cosine: ⟨ΔW_1, ΔW_2⟩/(‖ΔW_1‖ ‖ΔW_2‖), in [−1, 1]; NaN where one is zero.
        difference: ‖ΔW_1 − ΔW_2‖.
        first, second: ‖ΔW_1‖ and ‖ΔW_2‖.
        chance: The standard deviation of the cosine of unrelated updates of this shape, whose mean is 0.

    All norms are Frobenius norms.
    """

    cosine: float
    difference: float
    first: float
    second: float
    chance: float

    @property
    def relative(self) -> float:
        """‖ΔW_1 − ΔW_2‖ over the mean of the two norms, in [0, 2]; 0 for two zeros."""
        return 2 * self.difference / (self.first + self.second) if self.first + self.second > 0 else 0.0


@public
@torch.no_grad()
def alignment(first: Update, second: Update) -> Alignment:
    r"""Return how parallel two updates are, and how far apart.

        cosine = Σ_ij a_ij b_ij / (‖A‖ ‖B‖),    difference = ‖A − B‖

    From factors, A = U V and B = P Q, without a dense matrix: ⟨A, B⟩ = Σ (UᵀP) ∘ (V Qᵀ), and A − B = [U, −P] [V; Q],
    so that nothing cancels in the difference but the numbers themselves. Two updates of independent entries of mean
    zero have a cosine of 0 ± 1/√(out·in).

    Arguments:
        first, second: ΔW (out, in), a tensor or NumPy array of any floating dtype; or (U, V), (out, r) and (r, in).

    Returns:
        An `Alignment`.

    Raises:
        OptionError: Something is not a dense floating tensor.
        ShapeError: The two differ in shape, or factors do not fit.
        NonFiniteError: NaN or infinity.

    Source:
        The cosine of the vectorized matrices, as in task arithmetic (Ilharco et al. 2023, section 6).

    Example:
        >>> found = alignment(torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
        >>> found.cosine, found.difference
        (0.0, 2.0)
    """
    one, two = _wide("first", first), _wide("second", second)
    shapes = [tuple(_shape(update)) for update in (one, two)]
    if shapes[0] != shapes[1]:
        raise ShapeError(f"first has shape {shapes[0]} and second has shape {shapes[1]}; pass updates of one matrix")
    with one_thread():
        if isinstance(one, tuple) and isinstance(two, tuple):
            inner = float(((one[0].T @ two[0]) * (one[1] @ two[1].T)).sum())
            apart = _norm((torch.cat([one[0], -two[0]], 1), torch.cat([one[1], two[1]], 0)))
        else:
            a, b = (update[0] @ update[1] if isinstance(update, tuple) else update for update in (one, two))
            inner, apart = float((a * b).sum()), float((a - b).norm())
        norms = _norm(one), _norm(two)
    whole = norms[0] * norms[1]
    cosine = max(-1.0, min(1.0, inner / whole)) if whole > 0 else math.nan
    return Alignment(cosine, apart, *norms, chance=1 / math.sqrt(math.prod(shapes[0])))


def _wide(name: str, update: Update) -> Tensor | tuple[Tensor, Tensor]:
    if not isinstance(update, tuple):
        return finite_matrix(name, update)
    left, right = (finite_matrix(f"{name}[{place}]", factor) for place, factor in enumerate(update))
    if left.shape[1] != right.shape[0]:
        raise ShapeError(f"{name} has factors {tuple(left.shape)} and {tuple(right.shape)}; pass (out, r) and (r, in)")
    return left, right


def _shape(update: Tensor | tuple[Tensor, Tensor]) -> tuple[int, int]:
    rows, columns = (update, update) if isinstance(update, Tensor) else update
    return rows.shape[0], columns.shape[1]


def _norm(update: Tensor | tuple[Tensor, Tensor]) -> float:
    """‖U V‖ = ‖R_u R_vᵀ‖, with the triangles of U and Vᵀ."""
    if isinstance(update, Tensor):
        return float(update.norm())
    left, right = (torch.linalg.qr(tall, mode="r").R for tall in (update[0], update[1].T))
    return float((left @ right.T).norm())
