"""How parallel two updates are, and how far apart: each a matrix, or factors without a matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from deltaw.adapters.checks import public
from deltaw.analysis.measures.chance import cosine_spread
from deltaw.analysis.measures.inner import Factored, Operand, Update, by_rows, cosine_of, operand, same_shape
from deltaw.analysis.measures.threads import one_thread


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

    From factors, A = U V and B = P Q, without a dense matrix: ⟨A, B⟩ from orthonormal bases of the factors, see
    `deltaw.analysis.measures.inner`, and A − B = [U, −P] [V; Q], so that nothing cancels in the difference but the
    numbers themselves. Two unrelated updates have a cosine of 0 ± 1/√(out·in), whatever their ranks.

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
    return aligned(operand("first", first), operand("second", second))


def aligned(first: Operand, second: Operand) -> Alignment:
    """Return `alignment` of two updates that are ready for inner products."""
    same_shape(first, second)
    norms = first.norm * first.scale, second.norm * second.scale
    return Alignment(cosine_of(first, second), _apart(first, second), *norms, chance=cosine_spread(*first.shape))


@public
@torch.no_grad()
def update_cosine(first: Update, second: Update) -> float:
    r"""Return the cosine of two updates as vectors.

        cosine = Σ_ij a_ij b_ij / (‖A‖ ‖B‖)

    From factors by products of the size of their ranks, without a dense matrix; of one matrix and one pair of factors
    too. In float64, from orthonormal bases of the factors (`deltaw.analysis.measures.inner`), so that its error stays
    some 1e-15 where the columns of the factors do not cancel.

    Unrelated updates have 0 ± 1/√(out·in), whatever their ranks (`deltaw.analysis.measures.chance.cosine_spread`). Low
    ranks have longer tails: the kurtosis is 3 + 6/(d_A d_B) for large matrices, with the participation ratios
    d = (Σσ²)²/Σσ⁴, 9 for two updates of rank one. `alignment` has the distance and the norms as well.

    Arguments:
        first, second: ΔW (out, in), a tensor or NumPy array of any floating dtype; or (U, V), (out, r) and (r, in).

    Returns:
        In [−1, 1]; NaN where one of the two is zero.

    Raises:
        OptionError: Something is not a dense floating tensor.
        ShapeError: The two differ in shape, or factors do not fit.
        NonFiniteError: NaN or infinity.

    Source:
        The cosine of the vectorized matrices, as in task arithmetic (Ilharco et al. 2023, section 6); between the
        updates of training methods "Weight-Space Geometry of Offline Reasoning Training" (arXiv 2606.23740, abstract).

    Example:
        >>> u, v = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 0.0, -1.0]])
        >>> round(update_cosine((u, v), -3 * u @ v), 12), round(update_cosine((u, v), torch.eye(2, 3)), 4)
        (-1.0, 0.2236)
    """
    one, two = operand("first", first), operand("second", second)
    same_shape(one, two)
    return cosine_of(one, two)


def _apart(first: Operand, second: Operand) -> float:
    """Return ‖A − B‖ of two updates of one shape."""
    if isinstance(first, Factored) and isinstance(second, Factored):
        where = first.device
        scale = max(first.scale, second.scale) or 1.0
        left = torch.cat([first.left * (first.scale / scale), second.left.to(where) * (-second.scale / scale)], 1)
        right = torch.cat([first.right, second.right.to(where)], 0)
        with one_thread():
            triangles = [torch.linalg.qr(tall, mode="r").R for tall in (left, right.T)]
            return float((triangles[0] @ triangles[1].T).norm()) * scale
    if isinstance(first, Factored):
        first, second = second, first
    scale = max(first.scale, second.scale)
    one, two = first.scale / scale, second.scale / scale
    squares = by_rows(
        first,
        lambda rows, at: float((rows * one - second.rows(at.start, at.stop).to(rows.device) * two).square().sum()),
    )
    return math.sqrt(math.fsum(squares)) * scale
