"""Do two updates push each weight the same way? The share of entries with the same sign."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deltaw.adapters.checks import public
from deltaw.analysis.measures.inner import Operand, Update, by_rows, operand, same_shape


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

    def count(rows: Tensor, at: slice) -> Tensor:
        beside = second.rows(at.start, at.stop).to(rows.device)
        pairs = (rows.sign() * 3 + beside.sign() + 4).to(torch.uint8)  # 0 for (−, −) to 8 for (+, +)
        return torch.bincount(pairs.flatten(), minlength=9).cpu()

    found = [[int(number) for number in row] for row in torch.stack(by_rows(first, count)).sum(0).reshape(3, 3)]
    return Signs(tuple(tuple(row) for row in found))
