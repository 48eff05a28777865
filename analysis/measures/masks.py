"""Do two runs change the same weights? How far two sets of entries agree, beside what independence gives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from deltaw.adapters.checks import public
from deltaw.adapters.errors import OptionError, ShapeError
from deltaw.analysis.measures.chance import expected_jaccard

MaskAxis = Literal["row", "column"]


@dataclass(frozen=True, eq=False)
class MaskAgreement:
    """How far two masks of a matrix agree; numbers of the whole matrix, or (out,) or (in,) with an axis.

    Arguments:
        jaccard: |A ∩ B|/|A ∪ B|, in [0, 1]; NaN where both are empty.
        first, second: p and q, the shares of the entries that each holds.
        expected: p q/(p + q − p q), of two masks that are chosen independently.
        expected_rows, expected_columns: The same where only the choice within a row (a column) is independent, and each
            row keeps its own shares: Σ_i p_i q_i / Σ_i (p_i + q_i − p_i q_i). Of the whole matrix; with an axis NaN.
    """

    jaccard: float | Tensor
    first: float | Tensor
    second: float | Tensor
    expected: float | Tensor
    expected_rows: float = math.nan
    expected_columns: float = math.nan


@public
@torch.no_grad()
def mask_agreement(
    first: Tensor | np.ndarray, second: Tensor | np.ndarray, *, axis: MaskAxis | None = None
) -> MaskAgreement:
    r"""Return how far two masks of a matrix agree, beside what independence gives.

        J = |A ∩ B| / |A ∪ B|,        expected p q / (p + q − p q) for masks that hold the shares p and q

    With `visible_changes` as the masks: whether two runs change the same weights, once they are stored in a dtype. Two
    runs that change most weights agree by chance already: with p = q = 0.9 a J of 0.82 means nothing.

    A J above ``expected`` may come from whole rows or columns that both runs change more: ``expected_rows`` and
    ``expected_columns`` keep their shares. What is above these as well is agreement on single weights.

    Arguments:
        first, second: A and B, (out, in) bool.
        axis: "row" for a number of each row, "column" of each column; ``None`` for the whole matrix.

    Returns:
        A `MaskAgreement`.

    Raises:
        OptionError: Something is no mask, or there is no such axis.
        ShapeError: The two differ in shape, or are no matrices.

    Source:
        Jaccard 1912; of update masks, against a random baseline, Zhu et al. 2025, "The Path Not Taken" (arXiv
        2511.08567), section 2.

    Example:
        >>> a, b = torch.tensor([[True, True], [False, False]]), torch.tensor([[True, False], [True, False]])
        >>> found = mask_agreement(a, b)
        >>> found.jaccard, found.expected, found.expected_rows
        (0.3333333333333333, 0.3333333333333333, 0.3333333333333333)
    """
    if axis not in (None, "row", "column"):
        raise OptionError(f"axis is {axis!r}; choose 'row', 'column', or None for the whole matrix")
    a, b = _mask("first", first), _mask("second", second)
    if a.shape != b.shape:
        raise ShapeError(f"first has shape {tuple(a.shape)} and second has shape {tuple(b.shape)}")
    b = b.to(a.device)
    both = a & b
    counts = {side: [mask.sum(1 - dim).double().cpu() for mask in (a, b, both)] for dim, side in enumerate(_SIDES)}
    if axis is not None:
        one, two, shared = counts[axis]
        n = a.shape[1] if axis == "row" else a.shape[0]
        p, q = one / n, two / n
        return MaskAgreement(shared / (one + two - shared), p, q, p * q / (p + q - p * q))
    whole_one, whole_two, whole_both = (int(found.sum()) for found in counts["row"])
    either, size = whole_one + whole_two - whole_both, a.numel()
    shares = whole_one / size, whole_two / size
    by_row, by_column = (_within(counts[side][0], counts[side][1], size // len(counts[side][0])) for side in _SIDES)
    jaccard = whole_both / either if either else math.nan
    return MaskAgreement(jaccard, *shares, expected_jaccard(*shares), by_row, by_column)


_SIDES = ("row", "column")


def _within(one: Tensor, two: Tensor, n: int) -> float:
    """Return Σ p_i q_i / Σ (p_i + q_i − p_i q_i), of counts in vectors of n entries."""
    p, q = one / n, two / n
    shared = float((p * q).sum())
    either = float((p + q).sum()) - shared
    return shared / either if either > 0 else math.nan


def _mask(name: str, value: object) -> Tensor:
    mask = torch.from_numpy(value) if isinstance(value, np.ndarray) and value.dtype == np.bool_ else value
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        said = f"a tensor of {mask.dtype}" if isinstance(mask, Tensor) else type(value).__name__
        raise OptionError(f"{name} is {said}; pass a mask of booleans, as visible_changes returns")
    if mask.ndim != 2 or mask.numel() == 0:
        raise ShapeError(f"{name} has shape {tuple(mask.shape)}; pass a matrix (out, in) that has entries")
    return mask
