"""Loops compiled by numba: one pass over a matrix, where torch would need one for every operation.

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
CHUNK = 4  # of the rank, in ``product_norms``


def compiled(function: Callable[..., None]) -> Any:
    """Compile a function at its first call, for threads side by side."""
    try:
        return numba.njit(cache=True, nogil=True, fastmath=_ORDER_FREE)(function)
    except RuntimeError:  # no folder for the cache
        return numba.njit(nogil=True, fastmath=_ORDER_FREE)(function)


def _product_norms(
    weight: NDArray[Any],
    A: NDArray[Any],
    B: NDArray[Any],
    scaling: float,
    magnitude: NDArray[Any],
    rows: NDArray[Any],
    columns: NDArray[Any],
) -> None:
    width, last = weight.shape[1], len(weight) - 1
    zero, s = weight.dtype.type(0), weight.dtype.type(scaling)
    v, part = np.empty((4, width), weight.dtype), np.zeros_like(columns)
    v0, v1, v2, v3 = v[0], v[1], v[2], v[3]
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
        if len(columns):
            p0 = p1 = p2 = p3 = weight.dtype.type(1)
            if len(magnitude):  # a zero row adds nothing, whatever its factor
                p0 = magnitude[i] / rows[i] if s0 > 0 else zero
                p1 = magnitude[i1] / rows[i1] if s1 > 0 else zero
                p2 = magnitude[i2] / rows[i2] if s2 > 0 else zero
                p3 = magnitude[i3] / rows[i3] if s3 > 0 else zero
            p0, p1 = p0 * p0, p1 * p1 if i + 1 <= last else zero
            p2, p3 = p2 * p2 if i + 2 <= last else zero, p3 * p3 if i + 3 <= last else zero
            for j in range(width):
                part[j] += p0 * (v0[j] * v0[j]) + p1 * (v1[j] * v1[j]) + p2 * (v2[j] * v2[j]) + p3 * (v3[j] * v3[j])
            if i % 256 == 252 or i + 4 > last:  # sums of fewer terms are more exact
                columns += part
                part[:] = 0
    for j in range(len(columns)):
        columns[j] = np.sqrt(columns[j])


product_norms: Callable[
    [NDArray[Any], NDArray[Any], NDArray[Any], float, NDArray[Any], NDArray[Any], NDArray[Any]], None
] = compiled(_product_norms)
"""Write ‖v_i‖ of V = W + s·B A into rows (n,), and √(Σ_i p_i² v_ij²) with p = magnitude / ‖v_i‖ into columns (m,).

W: (n, m). A: (r, m) and B: (n, r), r a multiple of ``CHUNK``. magnitude: (n,), or (0,) for p = 1. columns: (m,) zeros,
or (0,) where they are not wanted. All C-contiguous, float32 or float64, of one dtype.
"""


def _scaled_and_dots(
    g: NDArray[Any], z: NDArray[Any], scale: NDArray[Any], out: NDArray[Any], dots: NDArray[Any]
) -> None:
    part = np.empty_like(dots)
    for start in range(0, len(g), 64):
        part[:] = 0
        for t in range(start, min(start + 64, len(g))):
            for j in range(g.shape[1]):
                part[j] += g[t, j] * z[t, j]
                out[t, j] = g[t, j] * scale[j]
        for j in range(len(dots)):
            dots[j] += part[j]


scaled_and_dots: Callable[[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]], None] = compiled(
    _scaled_and_dots
)
"""Write g_tj scale_j into out (n, m), and add Σ_t g_tj z_tj to dots (m,). All C-contiguous, of one dtype."""


def _scale_and_dots(g: NDArray[Any], z: NDArray[Any], scale: NDArray[Any], dots: NDArray[Any]) -> None:
    part = np.empty_like(dots)
    for start in range(0, len(g), 64):
        part[:] = 0
        for t in range(start, min(start + 64, len(g))):
            for j in range(g.shape[1]):
                part[j] += g[t, j] * z[t, j]
                g[t, j] *= scale[j]
        for j in range(len(dots)):
            dots[j] += part[j]


scale_and_dots: Callable[[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]], None] = compiled(_scale_and_dots)
"""The same in place: g becomes g_tj scale_j. One function for both would take the slow way, for fear of the overlap."""
