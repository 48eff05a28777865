"""Loops compiled by numba: one pass over two matrices, where torch would need one for every operation.

The compiled code is kept beside this file or, where that cannot be written, in the user's cache folder, so that only
the first call ever waits for the compiler (about a second). Where neither can be written, every process waits once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

# Sums may be taken in any order and products fused into them; NaN and infinity keep their meaning.
_ORDER_FREE = {"reassoc", "contract", "nsz"}


def _compiled(function: Callable[..., None]) -> Any:
    """Compile a function at its first call, for threads side by side."""
    try:
        return numba.njit(cache=True, nogil=True, fastmath=_ORDER_FREE)(function)
    except RuntimeError:  # no folder for the cache
        return numba.njit(nogil=True, fastmath=_ORDER_FREE)(function)


def _add_sums(
    before: NDArray[Any], after: NDArray[Any], rows: NDArray[np.float64], columns: NDArray[np.float64]
) -> None:
    for i in range(before.shape[0]):
        aa = 0.0
        ad = 0.0
        dd = 0.0
        for j in range(before.shape[1]):
            a = np.float64(before[i, j])
            d = np.float64(after[i, j]) - a
            aa += a * a
            ad += a * d
            dd += d * d
            columns[0, j] += a * a
            columns[1, j] += a * d
            columns[2, j] += d * d
        rows[0, i] = aa
        rows[1, i] = ad
        rows[2, i] = dd


add_sums: Callable[[NDArray[Any], NDArray[Any], NDArray[np.float64], NDArray[np.float64]], None] = _compiled(_add_sums)
"""Write Σ_j a², Σ_j a·d, Σ_j d² with d = b − a into rows (3, n) and add Σ_i of the same to columns (3, m).

before, after: (n, m), C-contiguous, float32 or float64, of one dtype; rows and columns: float64.
"""
