"""Sums in twice the digits of float64, for the few vectors where the plain sum cancels.

Every rounded float64 sum x + y has an error that is itself a float64 number (Knuth's TwoSum), and so has every square
(Veltkamp and Dekker). Carrying those errors along gives about 30 digits for some twenty times the work.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SPLITTER = 2.0**27 + 1  # cuts the 53 bits of a float64 number into two halves whose products are exact


def two_sum(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return s and e with s = fl(x + y) and s + e = x + y exactly (Knuth, TAOCP 2, 4.2.2).

    Arguments:
        x, y: float64, shapes that broadcast.

    Returns:
        The rounded sum and its error, both float64 of the broadcast shape.

    Example:
        >>> s, e = two_sum(torch.tensor(1.0, dtype=torch.float64), torch.tensor(1e-20, dtype=torch.float64))
        >>> float(s), float(e)
        (1.0, 1e-20)
    """
    s = x + y
    z = s - x
    return s, (x - (s - z)) + (y - z)


def two_square(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return p and e with p = fl(x²) and p + e = x² exactly (Dekker 1971), for |x| far from over- and underflow.

    Arguments:
        x: float64, any shape.

    Returns:
        The rounded square and its error, both float64 of x's shape.

    Example:
        >>> p, e = two_square(torch.tensor(1 + 2.0**-40, dtype=torch.float64))
        >>> float(p) == 1 + 2.0**-39, float(e) == 2.0**-80
        (True, True)
    """
    p = x * x
    c = _SPLITTER * x
    high = c - (c - x)
    low = x - high
    return p, ((high * high - p) + 2 * high * low) + low * low


def difference_of_squares(a: Tensor, b: Tensor) -> Tensor:
    """Return ‖b_i‖² − ‖a_i‖² for every row i, with the rounding of one float64 number however much it cancels.

    The terms b_ij² − a_ij² are kept as pairs (value, error) and added pairwise, error beside value.

    Arguments:
        a, b: float64, (vectors, length), entries between about 1e-120 and 1e120 or zero.

    Returns:
        (vectors,) in float64. The error is below 1e-30·(‖a_i‖² + ‖b_i‖²) plus one rounding of the result.

    Source:
        Ogita, Rump, Oishi 2005, "Accurate sum and dot product".

    Example:
        >>> a = torch.tensor([[1.0, 1e-12]], dtype=torch.float64)
        >>> b = torch.tensor([[1.0, 2e-12]], dtype=torch.float64)
        >>> float(difference_of_squares(a, b))
        3e-24
    """
    total, error = difference_and_error(a, b)
    return (total + error)[:, 0]


def difference_and_error(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return ‖b_i‖² − ‖a_i‖² as `difference_of_squares`, in two numbers that are not yet added, (vectors, 1) each."""
    p, p_error = two_square(b)
    q, q_error = two_square(a)
    total, error = two_sum(p, -q)
    error = error + (p_error - q_error)
    while (length := total.shape[1]) > 1:
        half = length // 2
        s, e = two_sum(total[:, :half], total[:, half : 2 * half])
        e = e + (error[:, :half] + error[:, half : 2 * half])
        # an odd entry out waits for the next round
        total = torch.cat((s, total[:, 2 * half :]), dim=1)
        error = torch.cat((e, error[:, 2 * half :]), dim=1)
    return total, error
