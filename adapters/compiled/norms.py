"""Norms of DoRA and BoRA, and the gradients of ρ and γ, each in one pass over a matrix.

V = W₀ + s·B A is made 8 rows by two vectors of columns at a time, in registers. Measured (Zen 5, one thread, rank 8,
W₀ in float32): in float64 the norms of rows or columns take 4.5 ms at 4096² and 0.15 ms at 768², and both of BoRA's,
which need whole rows, 6.3 and 0.17 ms; the compiler's own vectors took 8.4 and 0.20, 8.3 and 0.18 ms. In float32 they
take 4.3 and 0.09 ms, 5.1 and 0.10 ms, where it was 5.9 and 0.13, 5.8 and 0.11 ms.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch.nn.functional as F
from llvmlite.binding import get_host_cpu_features  # type: ignore[import-untyped]
from numpy.typing import NDArray
from torch import Tensor

from deltaw.adapters.compiled.lanes import aligned, count, fetch, fused, load, plus, spread, store, times, total, zeros
from deltaw.adapters.compiled.loops import compiled, compiled_as_written, inlined, run
from deltaw.adapters.compiled.plain_norms import RANKS, plain_norms_of_rows

ROWS = 8  # that are built in registers, in the norms
NORM_ROWS = 128  # a chunk of a weight; each lays A out once
SCALE_ROWS = 32  # a chunk of tokens
_MANY_VECTORS = bool(get_host_cpu_features().get("avx512f"))
_TILE = 8  # times the columns that are built in registers, at a time


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
    of_rows, of_columns = A.new_empty(len(weight)), A.new_zeros(weight.shape[1] if columns else 0)
    magnitude, s = of_rows[:0] if magnitude is None else magnitude, A.new_full((1,), scaling)
    if not _MANY_VECTORS and (missing := RANKS * max(1, -(-len(A) // RANKS)) - len(A)):
        A, B = F.pad(A, (0, 0, 0, missing)), F.pad(B, (0, missing))
    run(
        _norms_of_rows if _MANY_VECTORS else plain_norms_of_rows,
        NORM_ROWS,
        of_columns,
        weight,
        A,
        B,
        s,
        magnitude,
        of_rows,
    )
    return of_rows, of_columns.sqrt_()


def many_vectors() -> bool:
    """Whether 8 rows by two vectors stay in the processor's registers."""
    return _MANY_VECTORS


def scaled_and_dots(g: Tensor, z: Tensor, scale: Tensor, out: Tensor | None) -> Tensor:
    """Write g_tj scale_j into out, or over g where there is none, and return Σ_t g_tj z_tj (m,).

    Arguments:
        g, z, out: (n, m), on the CPU, contiguous, float32 or float64, of one dtype.
        scale: (m,), of the same dtype.
    """
    dots = g.new_zeros(g.shape[1])
    run(_scale_rows, SCALE_ROWS, dots, g, z, scale, g[:0] if out is None else out)
    return dots


@compiled_as_written
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
    weight, B, magnitude, norms = weight[own], B[own], magnitude[own], norms[own]
    height, width, rank, lanes = len(weight), weight.shape[1], len(A), count(A)
    columns = 2 * lanes  # that are built in registers
    full, whole = width - width % columns, -(-width // columns) * columns
    packed = aligned(rank * whole, A).reshape(whole // columns, rank * columns)  # A in the order in which it is read
    for k in range(rank):
        for j in range(0, width - lanes + 1, lanes):
            store(packed[j // columns], k * columns + j % columns, load(A[k], j, A))
        for j in range(width - width % lanes, width):
            packed[j // columns, k * columns + j % columns] = A[k, j]
    b = np.zeros((-(-height // ROWS), rank * ROWS), A.dtype)  # and B, 0 for the rows beyond the last
    for i in range(height):
        for r in range(rank):
            b[i // ROWS, r * ROWS + i % ROWS] = scaling[0] * B[i, r]
    squares, sums, p = aligned(whole, A), np.zeros(ROWS, A.dtype), np.zeros(ROWS, A.dtype)
    beyond = np.zeros((ROWS, columns), weight.dtype)  # the last columns, and zeros
    # Where a row's factor follows from all of it, 8 rows are kept; else a few columns are enough at a time.
    pitch = whole + columns  # rows a multiple of 4096 bytes apart would push each other out of the innermost cache
    v = aligned(ROWS * pitch, A).reshape(ROWS, pitch)
    kept = 0 if len(magnitude) else height - height % ROWS
    norms[:] = 0
    for first in range(0, max(full, 1), _TILE * columns):
        last = min(first + _TILE * columns, full)
        for i in range(0, kept, ROWS):
            rows, of_rows = weight[i : i + ROWS], norms[i : i + ROWS]
            _product(rows, first, last, 0, packed, b[i // ROWS], of_rows, v, squares, False)
            if last == full < width:
                for k in range(ROWS):
                    beyond[k, : width - full] = rows[k, full:]
                _product(beyond, full, whole, full, packed, b[i // ROWS], of_rows, v, squares, False)
    for i in range(kept, height, ROWS):
        there, rows, of_rows = min(ROWS, height - i), weight[i : i + ROWS], norms[i : i + ROWS]
        for k in range(there):
            beyond[k, : width - full] = rows[k, full:]
        sums[:] = 0
        _product(rows, 0, full, 0, packed, b[i // ROWS], sums, v, squares, True)
        _product(beyond[:there], full, whole, full, packed, b[i // ROWS], sums, v, squares, True)
        p[:] = 0
        for k in range(there):
            of_rows[k] = sums[k]
            p[k] = 1
            if len(magnitude):  # a zero row adds nothing, whatever its factor
                p[k] = magnitude[i + k] * magnitude[i + k] / sums[k] if sums[k] > 0 else sums[k]
        if len(part):
            add_squares(v, p, squares)
    for i in range(height):
        norms[i] = np.sqrt(norms[i])
    part[:] = squares[: len(part)]


@inlined
def _product(
    weight: NDArray[Any],
    first: int,
    last: int,
    before: int,
    A: NDArray[Any],
    b: NDArray[Any],
    sums: NDArray[Any],
    v: NDArray[Any],
    squares: NDArray[Any],
    keep: bool,
) -> None:
    """Make V = W + B A of up to 8 rows and some columns, and add its squares to the rows' sums.

    V is kept, or its squares are added to those of the columns as well. The weight begins with column ``before``.
    """
    columns, lanes, height = 2 * count(b), count(b), len(weight)
    w0, w1, w2, w3 = weight[0], weight[min(1, height - 1)], weight[min(2, height - 1)], weight[min(3, height - 1)]
    w4, w5, w6, w7 = (
        weight[min(4, height - 1)],
        weight[min(5, height - 1)],
        weight[min(6, height - 1)],
        weight[min(7, height - 1)],
    )
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = zeros(b)
    for j in range(first, last, columns):
        n, m, q = j - before, j - before + lanes, A[j // columns]
        x0, x1, x2, x3 = load(w0, n, b), load(w1, n, b), load(w2, n, b), load(w3, n, b)
        x4, x5, x6, x7 = load(w4, n, b), load(w5, n, b), load(w6, n, b), load(w7, n, b)
        y0, y1, y2, y3 = load(w0, m, b), load(w1, m, b), load(w2, m, b), load(w3, m, b)
        y4, y5, y6, y7 = load(w4, m, b), load(w5, m, b), load(w6, m, b), load(w7, m, b)
        if not keep:  # the next rows: the processor does not foresee this order
            later = n + ROWS * weight.shape[1]
            fetch(w0, later)
            fetch(w1, later)
            fetch(w2, later)
            fetch(w3, later)
            fetch(w4, later)
            fetch(w5, later)
            fetch(w6, later)
            fetch(w7, later)
        for k in range(len(q) // columns):
            f, g, at = load(q, k * columns, b), load(q, k * columns + lanes, b), 8 * k
            b0, b1, b2, b3 = spread(b, at), spread(b, at + 1), spread(b, at + 2), spread(b, at + 3)
            b4, b5, b6, b7 = spread(b, at + 4), spread(b, at + 5), spread(b, at + 6), spread(b, at + 7)
            x0, x1, x2, x3 = fused(b0, f, x0), fused(b1, f, x1), fused(b2, f, x2), fused(b3, f, x3)
            x4, x5, x6, x7 = fused(b4, f, x4), fused(b5, f, x5), fused(b6, f, x6), fused(b7, f, x7)
            y0, y1, y2, y3 = fused(b0, g, y0), fused(b1, g, y1), fused(b2, g, y2), fused(b3, g, y3)
            y4, y5, y6, y7 = fused(b4, g, y4), fused(b5, g, y5), fused(b6, g, y6), fused(b7, g, y7)
        s0, s1, s2, s3 = fused(x0, x0, s0), fused(x1, x1, s1), fused(x2, x2, s2), fused(x3, x3, s3)
        s4, s5, s6, s7 = fused(x4, x4, s4), fused(x5, x5, s5), fused(x6, x6, s6), fused(x7, x7, s7)
        s0, s1, s2, s3 = fused(y0, y0, s0), fused(y1, y1, s1), fused(y2, y2, s2), fused(y3, y3, s3)
        s4, s5, s6, s7 = fused(y4, y4, s4), fused(y5, y5, s5), fused(y6, y6, s6), fused(y7, y7, s7)
        if keep:
            store(v[0], j, x0)
            store(v[0], j + lanes, y0)
            store(v[1], j, x1)
            store(v[1], j + lanes, y1)
            store(v[2], j, x2)
            store(v[2], j + lanes, y2)
            store(v[3], j, x3)
            store(v[3], j + lanes, y3)
            store(v[4], j, x4)
            store(v[4], j + lanes, y4)
            store(v[5], j, x5)
            store(v[5], j + lanes, y5)
            store(v[6], j, x6)
            store(v[6], j + lanes, y6)
            store(v[7], j, x7)
            store(v[7], j + lanes, y7)
        else:
            even, odd = fused(x0, x0, load(squares, j, b)), times(x1, x1)
            even, odd = fused(x2, x2, even), fused(x3, x3, odd)
            even, odd = fused(x4, x4, even), fused(x5, x5, odd)
            store(squares, j, plus(fused(x6, x6, even), fused(x7, x7, odd)))
            even, odd = fused(y0, y0, load(squares, j + lanes, b)), times(y1, y1)
            even, odd = fused(y2, y2, even), fused(y3, y3, odd)
            even, odd = fused(y4, y4, even), fused(y5, y5, odd)
            store(squares, j + lanes, plus(fused(y6, y6, even), fused(y7, y7, odd)))
    sums[0] += total(s0)
    sums[1] += total(s1)
    sums[2] += total(s2)
    sums[3] += total(s3)
    sums[4] += total(s4)
    sums[5] += total(s5)
    sums[6] += total(s6)
    sums[7] += total(s7)


@inlined
def add_squares(v: NDArray[Any], p: NDArray[Any], squares: NDArray[Any]) -> None:
    """Add Σ_i p_i v_ij² of 8 rows."""
    v0, v1, v2, v3, v4, v5, v6, v7 = v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7]
    p0, p1, p2, p3 = spread(p, 0), spread(p, 1), spread(p, 2), spread(p, 3)
    p4, p5, p6, p7 = spread(p, 4), spread(p, 5), spread(p, 6), spread(p, 7)
    for j in range(0, len(squares), count(squares)):
        x0, x1, x2, x3 = load(v0, j, p), load(v1, j, p), load(v2, j, p), load(v3, j, p)
        x4, x5, x6, x7 = load(v4, j, p), load(v5, j, p), load(v6, j, p), load(v7, j, p)
        even = fused(times(p0, x0), x0, load(squares, j, p))
        even = fused(times(p2, x2), x2, fused(times(p1, x1), x1, even))
        odd = fused(times(p5, x5), x5, fused(times(p4, x4), x4, times(times(p3, x3), x3)))
        odd = fused(times(p7, x7), x7, fused(times(p6, x6), x6, odd))
        store(squares, j, plus(even, odd))


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
