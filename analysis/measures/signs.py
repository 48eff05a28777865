"""Do two updates push each weight the same way? The share of entries with the same sign."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deltaw.adapters.checks import public
from deltaw.analysis.measures.inner import Dense, Operand, Update, operand, row_parts, same_shape
from deltaw.analysis.measures.threads import side_by_side


@dataclass(frozen=True)
class Signs:
    """How often each pair of signs occurs.

    Arguments:
        counts: ``counts[i][j]`` entries have sign i − 1 in the first update and j − 1 in the second.
    """

    counts: tuple[tuple[int, ...], ...]

    @property
    def entries(self) -> int:
        """out·in."""
        return sum(map(sum, self.counts))

    @property
    def agreement(self) -> float:
        """The share of entries with the same sign, two zeros among them."""
        return sum(self.counts[k][k] for k in range(3)) / self.entries

    @property
    def expected(self) -> float:
        """What chance gives: Σ_s p_s q_s with the shares p and q of the signs −, 0, + in the two updates."""
        first = [sum(self.counts[k]) for k in range(3)]
        second = [sum(row[k] for row in self.counts) for k in range(3)]
        return sum(p * q for p, q in zip(first, second, strict=True)) / self.entries**2


@public
@torch.no_grad()
def sign_agreement(first: Update, second: Update) -> float:
    r"""Return the share of entries with the same sign in two updates.

        agreement = #{(i, j) : sign a_ij = sign b_ij} / (out·in)

    with the sign of a zero its own, as ``torch.sign`` has it: two zeros agree, a zero and another number do not. From
    factors, a few rows of U V are built at a time. Unrelated updates agree in ½ of the entries: ½ ± 1/(2√(out·in)), for
    any ranks, as long as the signs of the rows and columns of one of them are random
    (`deltaw.analysis.measures.chance.sign_spread`). Zeros in one update lower that, zeros in both raise it:
    Σ_s p_s q_s with the shares p and q of the three signs, which stands in tables as ``sign_expected``.

    An entry of U V that is zero but for rounding gets the sign of the rounding; rows and columns of zeros stay zeros.

    Arguments:
        first, second: ΔW (out, in), a tensor or NumPy array of any floating dtype; or (U, V), (out, r) and (r, in).

    Returns:
        In [0, 1].

    Raises:
        OptionError: Something is not a dense floating tensor.
        ShapeError: The two differ in shape, or factors do not fit.
        NonFiniteError: NaN or infinity.

    Source:
        Yadav et al. 2023 (TIES-Merging), section 3, where disagreeing signs are what interferes in merging.

    Example:
        >>> sign_agreement(torch.tensor([[1.0, -2.0], [0.0, 3.0]]), torch.tensor([[5.0, 1.0], [0.0, 0.1]]))
        0.75
    """
    one, two = operand("first", first), operand("second", second)
    same_shape(one, two)
    return signs(one, two).agreement


def signs(first: Operand, second: Operand) -> Signs:
    """Return how often each pair of signs occurs in two updates of one shape."""

    def count(at: slice) -> list[int]:
        rows, beside = _rows(first, at), _rows(second, at)
        one, two = ((part < 0, part > 0) for part in (rows, beside.to(rows.device)))
        masks = [*one, *two, *(a & b for a in one for b in two)]
        return [rows.numel(), *(int(torch.count_nonzero(mask)) for mask in masks)]

    found = side_by_side(count, row_parts(first), first.matrix if isinstance(first, Dense) else first.left)
    size, a_minus, a_plus, b_minus, b_plus, *pairs = (sum(numbers) for numbers in zip(*found, strict=True))
    mm, mp, pm, pp = pairs  # the first's sign, then the second's
    zero_minus, zero_plus = b_minus - mm - pm, b_plus - mp - pp
    zeros = size - a_minus - a_plus - zero_minus - zero_plus
    return Signs(((mm, a_minus - mm - mp, mp), (zero_minus, zeros, zero_plus), (pm, a_plus - pm - pp, pp)))


def _rows(update: Operand, at: slice) -> Tensor:
    """Return some rows, of a matrix as they are: a sign needs no more digits."""
    return update.matrix[at] if isinstance(update, Dense) else update.rows(at.start, at.stop)
