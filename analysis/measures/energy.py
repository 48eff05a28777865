"""How much of one update lies where another works: its energy in the other's leading subspaces."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deltaw.adapters.checks import public, whole_number
from deltaw.adapters.errors import OptionError
from deltaw.analysis.measures.chance import energy_spread
from deltaw.analysis.measures.gram import gram
from deltaw.analysis.measures.inner import Dense, Factored, Operand, Update, by_rows, operand, same_shape
from deltaw.analysis.measures.subspace import Side, directions
from deltaw.analysis.measures.threads import one_thread


@dataclass(frozen=True)
class OverlapEnergy:
    """Which share of an update's energy lies in the k leading directions of another.

    Arguments:
        left: ‖U_kᵀ B‖²/‖B‖², in the output space,
        right: ‖B V_k‖²/‖B‖², in the input space,
        both: ‖U_kᵀ B V_k‖²/‖B‖², in both; each in [0, 1], NaN where B is zero.
        k: How many directions.
        shape: (out, in).
        participation: d = (Σσ²)²/Σσ⁴ of B.
    """

    left: float
    right: float
    both: float
    k: int
    shape: tuple[int, int]
    participation: float

    @property
    def left_expected(self) -> float:
        """What a random update has: k/out."""
        return self.k / self.shape[0]

    @property
    def right_expected(self) -> float:
        """What a random update has: k/in."""
        return self.k / self.shape[1]

    @property
    def both_expected(self) -> float:
        """What a random update has: k²/(out·in)."""
        return self.left_expected * self.right_expected

    def spread(self, side: Side) -> float:
        """Return the standard deviation of ``left`` or ``right`` of a random update with B's spectrum."""
        return energy_spread(self.k, self.shape[0 if side == "left" else 1], self.participation)


@public
@torch.no_grad()
def overlap_energy(first: Update, second: Update, *, k: int = 8) -> OverlapEnergy:
    r"""Return which share of the second update's energy lies in the k leading directions of the first.

        left = ‖U_kᵀ B‖² / ‖B‖²,    right = ‖B V_k‖² / ‖B‖²,    both = ‖U_kᵀ B V_k‖² / ‖B‖²

    with U_k and V_k the k strongest left and right singular vectors of the first update A. `overlap` compares two spans
    and knows no weights; here what B does strongly counts more. It is not symmetric: A's strongest directions may hold
    all of B while B's hold little of A. A random update has k/out, k/in and k²/(out·in), with the spread of
    `deltaw.analysis.measures.chance.energy_spread`.

    Arguments:
        first: A (out, in), whose directions are taken: a matrix, or (U, V), (out, r) and (r, in).
        second: B (out, in), whose energy is shared out: a matrix or factors.
        k: How many directions of A; at most as many as A has above its tolerance.

    Returns:
        An `OverlapEnergy`.

    Raises:
        OptionError: A has fewer than k directions, or something is not a dense floating tensor.
        ShapeError: The two differ in shape, or factors do not fit.
        NonFiniteError: NaN or infinity.

    Source:
        Hu et al. 2022 (LoRA), equation 4, with the other update itself in the place of its basis.

    Example:
        >>> a, b = torch.diag(torch.tensor([2.0, 1.0, 0.0])), torch.diag(torch.tensor([3.0, 0.0, 4.0]))
        >>> found = overlap_energy(a, b, k=1)
        >>> round(found.left, 12), found.right_expected
        (0.36, 0.3333333333333333)
    """
    whole_number("k", k, 1)
    one, two = operand("first", first), operand("second", second)
    same_shape(one, two)
    found = directions(factors=(one.left, one.right)) if isinstance(one, Factored) else directions(one.matrix)
    if found.count < k:
        raise OptionError(
            f"k is {k}, and the first update has {found.count} directions above its tolerance; take fewer"
        )
    return energy_in(two, found.left[:, :k], found.right[:, :k])


def energy_in(update: Operand, left: Tensor, right: Tensor, participation: float | None = None) -> OverlapEnergy:
    """Return the share of an update's energy in a left (out, k) and a right (in, k) subspace, orthonormal columns.

    Arguments:
        update: B.
        left, right: U_k and V_k.
        participation: d of B, where it is known.
    """
    whole = update.norm**2
    numbers = _projected(update, left.to(update.device), right.to(update.device))
    in_left, in_right, in_both = (min(1.0, number / whole) if whole > 0 else math.nan for number in numbers)
    d = participation_of(update) if participation is None else participation
    return OverlapEnergy(in_left, in_right, in_both, left.shape[1], update.shape, d)


def _projected(update: Operand, left: Tensor, right: Tensor) -> tuple[float, float, float]:
    """Return ‖UᵀA‖², ‖A V‖² and ‖UᵀA V‖², of A/scale."""
    if isinstance(update, Factored):
        with one_thread():
            down, across = left.T @ update.q_left @ update.core, update.core @ (update.q_right.T @ right)
            both = left.T @ update.q_left @ across
        return tuple(float(part.square().sum()) for part in (down, across, both))  # type: ignore[return-value]
    parts = by_rows(update, lambda rows, at: (left[at].T @ rows, float((rows @ right).square().sum())))
    down = torch.stack([part for part, _ in parts]).sum(0)  # (k, in)
    with one_thread():
        both = down @ right
    return float(down.square().sum()), math.fsum(part for _, part in parts), float(both.square().sum())


def participation_of(update: Operand) -> float:
    """Return (Σσ²)²/Σσ⁴ = ‖A‖⁴/‖AᵀA‖²; NaN for zeros."""
    if update.norm == 0:
        return math.nan
    if isinstance(update, Dense):
        found = gram(update.matrix)
        lower = found.lower.tril() * (found.scale / update.scale) ** 2
        squares = 2 * float(lower.square().sum()) - float(lower.diagonal().square().sum())
    else:
        with one_thread():
            squares = float((update.core.T @ update.core).square().sum())
    return update.norm**4 / squares
