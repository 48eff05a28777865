"""The compiled loop that builds W' = diag(ρ) (W₀ + U V) diag(γ) of several steps and sums pairs of them, see ``loops``.

Each W' is built once, a few rows by a few hundred columns at a time, and compared while it is in the cache. So W₀ is
all that is read of the memory, once for all steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from deltaw.adapters.compiled.loops import compiled, run

_TILE = 512  # columns at a time
APART = 16  # rows a multiple of 4096 bytes apart would push each other out of the innermost cache
_CHUNKS = 16  # of rows at most; fixed, so that the sums do not depend on the number of threads
_ALONE = 2**15  # entries below which one thread is faster
_RANKS = 4  # at a time


def add_built_sums(
    base: Tensor, rho: Tensor, gamma: Tensor, P: Tensor, Q: Tensor, pairs: Tensor, rows: Tensor, columns: Tensor
) -> None:
    """Write Σ_j a², Σ_j a·d, Σ_j d² with d = b − a into rows, and add Σ_i of the same to columns, of every pair.

    Arguments:
        base: W₀ (n, m), float32 or float64; on the CPU and contiguous, as all others.
        rho, gamma: ρ (steps, n) and γ (steps, m) in float64.
        P, Q: diag(ρ) U (steps, n, r) and V diag(γ) (steps, r, m + ``APART``) in float64, r a multiple of 4; the last
            columns of Q are not looked at.
        pairs: Two positions among the steps (pairs, 2) in int64; −1 is W₀.
        rows, columns: (pairs, 3, n) and (pairs, 3, m) in float64.
    """
    chunks = _CHUNKS if base.numel() > _ALONE else 1
    step = 4 * -(-len(base) // (4 * chunks))  # the loop does four rows at a time
    run(_built_sums_of_rows, max(1, step), columns, base, rho, gamma, P, Q, pairs, rows)


@compiled
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
    base, rho, P, rows = base[own], rho[:, own], P[:, own], rows[:, :, own]
    height, width, steps, rank, last = len(base), base.shape[1], len(rho), P.shape[2], len(base) - 1
    rows[:] = 0
    built = np.empty((steps + 1, 4, _TILE + APART))  # the last is W₀
    of_tile = np.empty((len(pairs), 3, _TILE + APART))
    for first in range(0, width, _TILE):
        tile = slice(first, min(first + _TILE, width))
        of_tile[:] = 0
        for i in range(0, height, 4):  # four rows at a time share what is read of Q and the columns' sums
            i1, i2, i3 = min(i + 1, last), min(i + 2, last), min(i + 3, last)
            w0, w1, w2, w3 = base[i, tile], base[i1, tile], base[i2, tile], base[i3, tile]
            length = len(w0)
            for s in range(steps + 1):
                of_step = built[s]
                v0, v1, v2, v3 = of_step[0, :length], of_step[1, :length], of_step[2, :length], of_step[3, :length]
                if s == steps:
                    for j in range(length):
                        v0[j] = w0[j]
                        v1[j] = w1[j]
                        v2[j] = w2[j]
                        v3[j] = w3[j]
                else:
                    g, r0, r1, r2, r3 = gamma[s, tile], rho[s, i], rho[s, i1], rho[s, i2], rho[s, i3]
                    for j in range(length):
                        v0[j] = r0 * w0[j] * g[j]
                        v1[j] = r1 * w1[j] * g[j]
                        v2[j] = r2 * w2[j] * g[j]
                        v3[j] = r3 * w3[j] * g[j]
                    for k in range(0, rank, 4):
                        q0, q1, q2, q3 = Q[s, k, tile], Q[s, k + 1, tile], Q[s, k + 2, tile], Q[s, k + 3, tile]
                        p00, p01, p02, p03 = P[s, i, k], P[s, i, k + 1], P[s, i, k + 2], P[s, i, k + 3]
                        p10, p11, p12, p13 = P[s, i1, k], P[s, i1, k + 1], P[s, i1, k + 2], P[s, i1, k + 3]
                        p20, p21, p22, p23 = P[s, i2, k], P[s, i2, k + 1], P[s, i2, k + 2], P[s, i2, k + 3]
                        p30, p31, p32, p33 = P[s, i3, k], P[s, i3, k + 1], P[s, i3, k + 2], P[s, i3, k + 3]
                        for j in range(length):
                            v0[j] += p00 * q0[j] + p01 * q1[j] + p02 * q2[j] + p03 * q3[j]
                            v1[j] += p10 * q0[j] + p11 * q1[j] + p12 * q2[j] + p13 * q3[j]
                            v2[j] += p20 * q0[j] + p21 * q1[j] + p22 * q2[j] + p23 * q3[j]
                            v3[j] += p30 * q0[j] + p31 * q1[j] + p32 * q2[j] + p33 * q3[j]
                # beyond the last row the sums get zeros
                if i + 1 > last:
                    v1[:] = 0
                if i + 2 > last:
                    v2[:] = 0
                if i + 3 > last:
                    v3[:] = 0
            for p in range(len(pairs)):
                before, after = built[pairs[p, 0]], built[pairs[p, 1]]  # −1 is the last, W₀
                a0, a1, a2, a3 = before[0, :length], before[1, :length], before[2, :length], before[3, :length]
                b0, b1, b2, b3 = after[0, :length], after[1, :length], after[2, :length], after[3, :length]
                of_aa, of_ad, of_dd = of_tile[p, 0, :length], of_tile[p, 1, :length], of_tile[p, 2, :length]
                aa0 = aa1 = aa2 = aa3 = 0.0
                ad0 = ad1 = ad2 = ad3 = 0.0
                dd0 = dd1 = dd2 = dd3 = 0.0
                for j in range(length):
                    x0, x1, x2, x3 = a0[j], a1[j], a2[j], a3[j]
                    d0, d1, d2, d3 = b0[j] - x0, b1[j] - x1, b2[j] - x2, b3[j] - x3
                    aa0 += x0 * x0
                    ad0 += x0 * d0
                    dd0 += d0 * d0
                    aa1 += x1 * x1
                    ad1 += x1 * d1
                    dd1 += d1 * d1
                    aa2 += x2 * x2
                    ad2 += x2 * d2
                    dd2 += d2 * d2
                    aa3 += x3 * x3
                    ad3 += x3 * d3
                    dd3 += d3 * d3
                    of_aa[j] += (x0 * x0 + x1 * x1) + (x2 * x2 + x3 * x3)
                    of_ad[j] += (x0 * d0 + x1 * d1) + (x2 * d2 + x3 * d3)
                    of_dd[j] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
                sums = rows[p]
                sums[0, i] += aa0
                sums[1, i] += ad0
                sums[2, i] += dd0
                sums[0, i1] += aa1
                sums[1, i1] += ad1
                sums[2, i1] += dd1
                sums[0, i2] += aa2
                sums[1, i2] += ad2
                sums[2, i2] += dd2
                sums[0, i3] += aa3
                sums[1, i3] += ad3
                sums[2, i3] += dd3
        for p in range(len(pairs)):
            for k in range(3):
                columns[p, k, tile] = of_tile[p, k, : tile.stop - first]
