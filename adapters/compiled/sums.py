"""The compiled loop that sums two matrices; see ``compiled.loops`` for how it is compiled and who runs it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from deltaw.adapters.compiled.loops import compiled, run

_CHUNKS = 16  # of rows at most; fixed, so that the sums do not depend on the number of threads
_ALONE = 2**17  # entries below which one thread is faster


def add_sums(before: Tensor, after: Tensor, rows: Tensor, columns: Tensor) -> None:
    """Write Σ_j a², Σ_j a·d, Σ_j d² with d = b − a into rows (3, n), and add Σ_i of the same to columns (3, m).

    Arguments:
        before, after: (n, m), on the CPU, contiguous, float32 or float64, of one dtype.
        rows, columns: Contiguous, float64.
    """
    chunks = _CHUNKS if before.numel() > _ALONE else 1
    step = 4 * -(-len(before) // (4 * chunks))  # the loop does four rows at a time
    run(_sums_of_rows, max(1, step), columns, before, after, rows)


@compiled
def _sums_of_rows(
    own: Any, before: NDArray[Any], after: NDArray[Any], rows: NDArray[Any], columns: NDArray[Any]
) -> None:
    before, after, rows = before[own], after[own], rows[:, own]
    columns[:] = 0
    of_aa, of_ad, of_dd = columns[0], columns[1], columns[2]
    height, width = before.shape
    together = height - height % 4
    for i in range(0, together, 4):  # what is read and written of the columns is shared by four rows
        a0, a1, a2, a3 = before[i], before[i + 1], before[i + 2], before[i + 3]
        b0, b1, b2, b3 = after[i], after[i + 1], after[i + 2], after[i + 3]
        aa0 = aa1 = aa2 = aa3 = 0.0
        ad0 = ad1 = ad2 = ad3 = 0.0
        dd0 = dd1 = dd2 = dd3 = 0.0
        for j in range(width):
            w0, w1, w2, w3 = np.float64(a0[j]), np.float64(a1[j]), np.float64(a2[j]), np.float64(a3[j])
            d0, d1, d2, d3 = (
                np.float64(b0[j]) - w0,
                np.float64(b1[j]) - w1,
                np.float64(b2[j]) - w2,
                np.float64(b3[j]) - w3,
            )
            aa0 += w0 * w0
            ad0 += w0 * d0
            dd0 += d0 * d0
            aa1 += w1 * w1
            ad1 += w1 * d1
            dd1 += d1 * d1
            aa2 += w2 * w2
            ad2 += w2 * d2
            dd2 += d2 * d2
            aa3 += w3 * w3
            ad3 += w3 * d3
            dd3 += d3 * d3
            of_aa[j] += (w0 * w0 + w1 * w1) + (w2 * w2 + w3 * w3)
            of_ad[j] += (w0 * d0 + w1 * d1) + (w2 * d2 + w3 * d3)
            of_dd[j] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
        rows[0, i], rows[0, i + 1], rows[0, i + 2], rows[0, i + 3] = aa0, aa1, aa2, aa3
        rows[1, i], rows[1, i + 1], rows[1, i + 2], rows[1, i + 3] = ad0, ad1, ad2, ad3
        rows[2, i], rows[2, i + 1], rows[2, i + 2], rows[2, i + 3] = dd0, dd1, dd2, dd3
    for i in range(together, height):
        a_i, b_i = before[i], after[i]
        aa = ad = dd = 0.0
        for j in range(width):
            w = np.float64(a_i[j])
            d = np.float64(b_i[j]) - w
            aa += w * w
            ad += w * d
            dd += d * d
            of_aa[j] += w * w
            of_ad[j] += w * d
            of_dd[j] += d * d
        rows[0, i], rows[1, i], rows[2, i] = aa, ad, dd
