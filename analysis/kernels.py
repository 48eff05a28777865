"""The compiled loop that sums two matrices; see ``deltaw.adapters.kernels`` for how it is compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltaw.adapters.kernels import compiled


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


add_sums: Callable[[NDArray[Any], NDArray[Any], NDArray[np.float64], NDArray[np.float64]], None] = compiled(_add_sums)
"""Write Σ_j a², Σ_j a·d, Σ_j d² with d = b − a into rows (3, n) and add Σ_i of the same to columns (3, m).

before, after: (n, m), C-contiguous, float32 or float64, of one dtype; rows and columns: float64.
"""
