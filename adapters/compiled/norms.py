"""Norms of DoRA and BoRA, and the gradients of ρ and γ, each in one pass over a matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from deltaw.adapters.compiled.loops import compiled, run

RANKS = 4  # at a time, in the norms
NORM_ROWS = 64  # a chunk of a weight
SCALE_ROWS = 32  # a chunk of tokens


def product_norms(
    weight: Tensor, A: Tensor, B: Tensor, scaling: float, magnitude: Tensor | None, columns: bool = True
) -> tuple[Tensor, Tensor]:
    """Return ‖v_i‖ (n,) of V = W + s·B A, and √(Σ_i p_i² v_ij²) (m,), p = magnitude / ‖v_i‖ or 1; a zero row adds none.

    Arguments:
        weight, A, B: (n, m), (r, m) and (n, r), on the CPU, contiguous, float32 or float64, of one dtype; or the weight
            in float32 and the others in float64.
        scaling: s.
        magnitude: (n,), of the same dtype, or ``None`` for p = 1.
        columns: ``False`` where the second is not wanted; then it is empty.
    """
    if missing := -len(A) % RANKS:
        A, B = F.pad(A, (0, 0, 0, missing)), F.pad(B, (0, missing))
    of_rows, of_columns = A.new_empty(len(weight)), A.new_zeros(weight.shape[1] if columns else 0)
    magnitude, s = of_rows[:0] if magnitude is None else magnitude, A.new_full((1,), scaling)
    run(_norms_of_rows, NORM_ROWS, of_columns, weight, A, B, s, magnitude, of_rows)
    return of_rows, of_columns.sqrt_()


def scaled_and_dots(g: Tensor, z: Tensor, scale: Tensor, out: Tensor | None) -> Tensor:
    """Write g_tj scale_j into out, or over g where there is none, and return Σ_t g_tj z_tj (m,).

    Arguments:
        g, z, out: (n, m), on the CPU, contiguous, float32 or float64, of one dtype.
        scale: (m,), of the same dtype.
    """
    dots = g.new_zeros(g.shape[1])
    run(_scale_rows, SCALE_ROWS, dots, g, z, scale, g[:0] if out is None else out)
    return dots


@compiled
def _norms_of_rows(
    own: Any,
    weight: NDArray[Any],
    A: NDArray[Any],
    B: NDArray[Any],
    scaling: NDArray[Any],
    magnitude: NDArray[Any],
    norms: NDArray[Any],
    part: NDArray[Any],
) -> None:
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


@compiled
def _scale_rows(
    own: Any, g: NDArray[Any], z: NDArray[Any], scale: NDArray[Any], out: NDArray[Any], part: NDArray[Any]
) -> None:
    g, z, out = g[own], z[own], out[own]
    part[:] = 0
    for t in range(len(g)):
        g_t, z_t = g[t], z[t]
        for j in range(len(part)):
            part[j] += g_t[j] * z_t[j]
        if len(out):
            out_t = out[t]
            for j in range(len(part)):
                out_t[j] = g_t[j] * scale[j]
        else:  # the compiler vectorizes this for what may be one array, and that only for two
            for j in range(len(part)):
                g_t[j] *= scale[j]
