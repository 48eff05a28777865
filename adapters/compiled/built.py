"""The compiled loop that builds W' = diag(ρ) (W₀ + U V) diag(γ) of several steps and sums pairs of them, see ``loops``.

Each W' is built once, 8 rows by 128 columns at a time, and compared while it is in the cache. So W₀ is all that is read
of the memory, once for all steps; and of W' 8 rows by 16 columns at a time stay in registers while U V is added up.

Measured (Zen 5, one thread, rank 8, float32, 9 steps and their 8 pairs, 4096²): 6.2 ms a pair, where two ready matrices
take 7.5 ms to be read and summed. 4 rows by 16 columns took 7.4 ms, as Q is then read twice as often; tiles of 64 and
of 256 columns 6.5 ms; the same left to the compiler's own vectors 9.8 ms. Thin products in the place of W' would take
more operations: an entry of W₀ takes one for every step and rank for U V, and four for W₀ Vᵀ, W₀ ΔVᵀ, Uᵀ W₀ and ΔUᵀ W₀.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from deltaw.adapters.compiled.lanes import aligned, fetch, fused, load, minus, spread, store, times, total, zeros
from deltaw.adapters.compiled.loops import compiled_as_written, inlined, run

ROWS, COLUMNS = 8, 16  # that are built in registers
_TILE = 128  # columns that are compared at a time
_PITCH = _TILE + 16  # rows a multiple of 4096 bytes apart would push each other out of the innermost cache
_CHUNKS = 16  # of rows at most; fixed, so that the sums do not depend on the number of threads
_ALONE = 2**15  # entries below which one thread is faster


def add_built_sums(
    base: Tensor,
    rho: Tensor,
    gamma: Tensor,
    U: Sequence[Tensor],
    V: Sequence[Tensor],
    pairs: Tensor,
    rows: Tensor,
    columns: Tensor,
) -> None:
    """Write Σ_j a², Σ_j a·d, Σ_j d² with d = b − a into rows, and add Σ_i of the same to columns, of every pair.

    Arguments:
        base: W₀ (n, m), float32 or float64; on the CPU and contiguous.
        rho, gamma: ρ (steps, n) and γ (steps, m) in float64.
        U, V: (n, r) and (r, m) of every step in float64; r may differ.
        pairs: Two positions among the steps (pairs, 2) in int64; −1 is W₀.
        rows, columns: (pairs, 3, n) and (pairs, 3, m) in float64, contiguous.
    """
    chunks = _CHUNKS if base.numel() > _ALONE else 1
    step = ROWS * -(-len(base) // (ROWS * chunks))
    rank = max(len(right) for right in V)
    P = base.new_zeros(len(U), -(-base.shape[0] // ROWS), rank, ROWS, dtype=torch.float64)
    Q = base.new_zeros(len(V), -(-base.shape[1] // COLUMNS), rank, COLUMNS, dtype=torch.float64)
    for place, (r, g) in enumerate(zip(rho, gamma, strict=True)):
        _pack(U[place].T, r, P[place])
        _pack(V[place], g, Q[place])
    rho, gamma = F.pad(rho, (0, -base.shape[0] % ROWS)), F.pad(gamma, (0, -base.shape[1] % COLUMNS))
    run(_built_sums_of_rows, max(1, step), columns, base, rho, gamma, P.flatten(2), Q.flatten(2), pairs, rows)


def _pack(thin: Tensor, scale: Tensor, out: Tensor) -> None:
    """Write a thin matrix (r, n) times a scale (n,) in the order in which it is read: (n / block, r, block)."""
    block = out.shape[2]
    out = out[:, : len(thin)]  # other steps may have more ranks
    count, left = divmod(thin.shape[1], block)
    full = count * block
    if count and len(thin):
        scaled = out[:count].transpose(0, 1)
        torch.mul(thin[:, :full].reshape(len(thin), count, block), scale[:full].view(count, block), out=scaled)
    if left:
        torch.mul(thin[:, full:], scale[full:], out=out[count, :, :left])


@compiled_as_written
def _built_sums_of_rows(
    own: Any,
    base: NDArray[Any],
    rho: NDArray[Any],
    gamma: NDArray[Any],
    P: NDArray[Any],
    Q: NDArray[Any],
    pairs: NDArray[Any],
    rows: NDArray[Any],
    columns: NDArray[Any],
) -> None:
    base, rows, start = base[own], rows[:, :, own], own.start
    height, width, steps = len(base), base.shape[1], len(rho)
    room = aligned((ROWS * (steps + 1) + 3 * len(pairs)) * _PITCH, rho)
    split = ROWS * (steps + 1) * _PITCH
    built = room[:split].reshape(steps + 1, ROWS, _PITCH)  # the last is W₀
    of_tile = room[split:].reshape(len(pairs), 3, _PITCH)
    for first in range(0, width, _TILE):
        length = min(_TILE, width - first)
        whole = -(-length // COLUMNS) * COLUMNS
        built[steps] = 0
        of_tile[:] = 0
        for i in range(0, height, ROWS):
            for k in range(ROWS):
                w, there, later = built[steps, k], base[min(i + k, height - 1)], base[min(i + k + ROWS, height - 1)]
                if i + k < height:
                    for j in range(0, length - 7, 8):
                        store(w, j, load(there, first + j, w))
                        fetch(later, first + j)  # the processor does not foresee this order
                    for j in range(length - length % 8, length):
                        w[j] = there[first + j]
                else:
                    w[:] = 0
            block = (start + i) // ROWS
            for s in range(steps):
                _build(
                    built[steps], rho[s, block * ROWS :], gamma[s, first:], P[s, block], Q[s], first, whole, built[s]
                )
            for n in range(len(pairs)):
                before, after, sums, of_columns = built[pairs[n, 0]], built[pairs[n, 1]], rows[n], of_tile[n]
                for k in range(0, min(ROWS, height - i), 4):
                    _sum(before[k:], after[k:], whole, first == 0, sums[:, i + k : min(i + k + 4, height)], of_columns)
        for n in range(len(pairs)):
            for k in range(3):
                columns[n, k, first : first + length] = of_tile[n, k, :length]


@inlined
def _build(
    base: NDArray[Any],
    rho: NDArray[Any],
    gamma: NDArray[Any],
    P: NDArray[Any],
    Q: NDArray[Any],
    first: int,
    whole: int,
    out: NDArray[Any],
) -> None:
    """Write ρ W₀ γ + P Q, 8 rows by ``whole`` columns from ``first`` on."""
    r0, r1, r2, r3 = spread(rho, 0), spread(rho, 1), spread(rho, 2), spread(rho, 3)
    r4, r5, r6, r7 = spread(rho, 4), spread(rho, 5), spread(rho, 6), spread(rho, 7)
    for j in range(0, whole, COLUMNS):
        m, q = j + 8, Q[(first + j) // COLUMNS]
        g, h = load(gamma, j, base), load(gamma, m, base)
        a0, b0 = times(times(load(base[0], j, base), g), r0), times(times(load(base[0], m, base), h), r0)
        a1, b1 = times(times(load(base[1], j, base), g), r1), times(times(load(base[1], m, base), h), r1)
        a2, b2 = times(times(load(base[2], j, base), g), r2), times(times(load(base[2], m, base), h), r2)
        a3, b3 = times(times(load(base[3], j, base), g), r3), times(times(load(base[3], m, base), h), r3)
        a4, b4 = times(times(load(base[4], j, base), g), r4), times(times(load(base[4], m, base), h), r4)
        a5, b5 = times(times(load(base[5], j, base), g), r5), times(times(load(base[5], m, base), h), r5)
        a6, b6 = times(times(load(base[6], j, base), g), r6), times(times(load(base[6], m, base), h), r6)
        a7, b7 = times(times(load(base[7], j, base), g), r7), times(times(load(base[7], m, base), h), r7)
        for k in range(len(q) // COLUMNS):
            x, y = load(q, k * COLUMNS, base), load(q, k * COLUMNS + 8, base)
            p0, p1, p2, p3 = spread(P, 8 * k), spread(P, 8 * k + 1), spread(P, 8 * k + 2), spread(P, 8 * k + 3)
            p4, p5, p6, p7 = spread(P, 8 * k + 4), spread(P, 8 * k + 5), spread(P, 8 * k + 6), spread(P, 8 * k + 7)
            a0, a1, a2, a3 = fused(p0, x, a0), fused(p1, x, a1), fused(p2, x, a2), fused(p3, x, a3)
            a4, a5, a6, a7 = fused(p4, x, a4), fused(p5, x, a5), fused(p6, x, a6), fused(p7, x, a7)
            b0, b1, b2, b3 = fused(p0, y, b0), fused(p1, y, b1), fused(p2, y, b2), fused(p3, y, b3)
            b4, b5, b6, b7 = fused(p4, y, b4), fused(p5, y, b5), fused(p6, y, b6), fused(p7, y, b7)
        store(out[0], j, a0)
        store(out[0], m, b0)
        store(out[1], j, a1)
        store(out[1], m, b1)
        store(out[2], j, a2)
        store(out[2], m, b2)
        store(out[3], j, a3)
        store(out[3], m, b3)
        store(out[4], j, a4)
        store(out[4], m, b4)
        store(out[5], j, a5)
        store(out[5], m, b5)
        store(out[6], j, a6)
        store(out[6], m, b6)
        store(out[7], j, a7)
        store(out[7], m, b7)


@inlined
def _sum(
    before: NDArray[Any], after: NDArray[Any], whole: int, anew: bool, rows: NDArray[Any], columns: NDArray[Any]
) -> None:
    """Write the sums of four rows, or add to them, and add to those of the columns; of the rows fewer may be wanted."""
    x0, x1, x2, x3, y0, y1, y2, y3 = before[0], before[1], before[2], before[3], after[0], after[1], after[2], after[3]
    aa0 = aa1 = aa2 = aa3 = ad0 = ad1 = ad2 = ad3 = dd0 = dd1 = dd2 = dd3 = zeros(before)
    of_aa, of_ad, of_dd = columns[0], columns[1], columns[2]
    for j in range(0, whole, 8):
        a0, a1, a2, a3 = load(x0, j, x0), load(x1, j, x0), load(x2, j, x0), load(x3, j, x0)
        d0, d1 = minus(load(y0, j, x0), a0), minus(load(y1, j, x0), a1)
        d2, d3 = minus(load(y2, j, x0), a2), minus(load(y3, j, x0), a3)
        aa0, aa1, aa2, aa3 = fused(a0, a0, aa0), fused(a1, a1, aa1), fused(a2, a2, aa2), fused(a3, a3, aa3)
        ad0, ad1, ad2, ad3 = fused(a0, d0, ad0), fused(a1, d1, ad1), fused(a2, d2, ad2), fused(a3, d3, ad3)
        dd0, dd1, dd2, dd3 = fused(d0, d0, dd0), fused(d1, d1, dd1), fused(d2, d2, dd2), fused(d3, d3, dd3)
        store(of_aa, j, fused(a3, a3, fused(a2, a2, fused(a1, a1, fused(a0, a0, load(of_aa, j, x0))))))
        store(of_ad, j, fused(a3, d3, fused(a2, d2, fused(a1, d1, fused(a0, d0, load(of_ad, j, x0))))))
        store(of_dd, j, fused(d3, d3, fused(d2, d2, fused(d1, d1, fused(d0, d0, load(of_dd, j, x0))))))
    if anew:
        rows[:] = 0
    _add(rows[0], aa0, aa1, aa2, aa3)
    _add(rows[1], ad0, ad1, ad2, ad3)
    _add(rows[2], dd0, dd1, dd2, dd3)


@inlined
def _add(sums: NDArray[Any], of_0: Any, of_1: Any, of_2: Any, of_3: Any) -> None:
    """Add to the sums of up to four rows."""
    sums[0] += total(of_0)
    if len(sums) > 1:
        sums[1] += total(of_1)
    if len(sums) > 2:
        sums[2] += total(of_2)
    if len(sums) > 3:
        sums[3] += total(of_3)
