"""The loop of ``norms`` for processors with 16 vectors instead of 32, on which 8 rows do not stay in registers.

The compiler chooses the vectors. Measured with the instructions of AVX2 (768², rank 8, both norms): 0.23 ms in float64
and 0.14 ms in float32, where the loop that lays its vectors out itself takes 0.35 and 0.21 ms.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltaw.adapters.compiled.loops import compiled

RANKS = 4  # at a time


@compiled
def plain_norms_of_rows(
    own: Any,
    weight: NDArray[Any],
    A: NDArray[Any],
    B: NDArray[Any],
    scaling: NDArray[Any],
    magnitude: NDArray[Any],
    norms: NDArray[Any],
    part: NDArray[Any],
) -> None:
    """Write the norms of some rows, and the sums of their weighted squares by column, as ``product_norms`` has them."""
    weight, B, magnitude, rows, s = weight[own], B[own], magnitude[own], norms[own], scaling[0]
    width, last = weight.shape[1], len(weight) - 1
    zero, v = A.dtype.type(0), np.empty((4, width + 16), A.dtype)
    part[:] = 0
    v0, v1, v2, v3 = v[0, :width], v[1, :width], v[2, :width], v[3, :width]
    for i in range(0, len(weight), 4):  # four rows at a time share what is read of A; they stay in the innermost caches
        i1, i2, i3 = min(i + 1, last), min(i + 2, last), min(i + 3, last)  # the last row may be done several times
        w0, w1, w2, w3 = weight[i], weight[i1], weight[i2], weight[i3]
        for r in range(0, len(A), 4):
            A0, A1, A2, A3 = A[r], A[r + 1], A[r + 2], A[r + 3]
            b00, b01, b02, b03 = s * B[i, r], s * B[i, r + 1], s * B[i, r + 2], s * B[i, r + 3]
            b10, b11, b12, b13 = s * B[i1, r], s * B[i1, r + 1], s * B[i1, r + 2], s * B[i1, r + 3]
            b20, b21, b22, b23 = s * B[i2, r], s * B[i2, r + 1], s * B[i2, r + 2], s * B[i2, r + 3]
            b30, b31, b32, b33 = s * B[i3, r], s * B[i3, r + 1], s * B[i3, r + 2], s * B[i3, r + 3]
            if r == 0:
                for j in range(width):
                    v0[j] = w0[j] + b00 * A0[j] + b01 * A1[j] + b02 * A2[j] + b03 * A3[j]
                    v1[j] = w1[j] + b10 * A0[j] + b11 * A1[j] + b12 * A2[j] + b13 * A3[j]
                    v2[j] = w2[j] + b20 * A0[j] + b21 * A1[j] + b22 * A2[j] + b23 * A3[j]
                    v3[j] = w3[j] + b30 * A0[j] + b31 * A1[j] + b32 * A2[j] + b33 * A3[j]
            else:
                for j in range(width):
                    v0[j] += b00 * A0[j] + b01 * A1[j] + b02 * A2[j] + b03 * A3[j]
                    v1[j] += b10 * A0[j] + b11 * A1[j] + b12 * A2[j] + b13 * A3[j]
                    v2[j] += b20 * A0[j] + b21 * A1[j] + b22 * A2[j] + b23 * A3[j]
                    v3[j] += b30 * A0[j] + b31 * A1[j] + b32 * A2[j] + b33 * A3[j]
        s0 = s1 = s2 = s3 = zero
        for j in range(width):
            s0 += v0[j] * v0[j]
            s1 += v1[j] * v1[j]
            s2 += v2[j] * v2[j]
            s3 += v3[j] * v3[j]
        rows[i], rows[i1], rows[i2], rows[i3] = np.sqrt(s0), np.sqrt(s1), np.sqrt(s2), np.sqrt(s3)
        if len(part):
            p0 = p1 = p2 = p3 = A.dtype.type(1)
            if len(magnitude):  # a zero row adds nothing, whatever its factor
                p0 = magnitude[i] / rows[i] if s0 > 0 else zero
                p1 = magnitude[i1] / rows[i1] if s1 > 0 else zero
                p2 = magnitude[i2] / rows[i2] if s2 > 0 else zero
                p3 = magnitude[i3] / rows[i3] if s3 > 0 else zero
            p0, p1 = p0 * p0, p1 * p1 if i + 1 <= last else zero
            p2, p3 = p2 * p2 if i + 2 <= last else zero, p3 * p3 if i + 3 <= last else zero
            for j in range(width):
                part[j] += p0 * (v0[j] * v0[j]) + p1 * (v1[j] * v1[j]) + p2 * (v2[j] * v2[j]) + p3 * (v3[j] * v3[j])
