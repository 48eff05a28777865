"""W₀ + U V of several steps, 8 rows by 16 columns at a time in registers: what ``built`` and ``step_norms`` share.

U and V are laid out once in the order in which they are read (`packed`). Then W₀ is read once for all steps, a few rows
of a tile of columns at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from deltaw.adapters.compiled.lanes import fetch, fused, load, spread, store
from deltaw.adapters.compiled.loops import compiled_as_written, inlined, matrix_at, run

ROWS, COLUMNS = 8, 16  # that are built in registers
TILE = 64  # columns that are looked at while they are in the innermost cache
PITCH = TILE + 16  # rows a multiple of 4096 bytes apart would push each other out of the innermost cache
CHUNKS = 16  # of rows at most; fixed, so that the sums do not depend on the number of threads
FEWEST = 128  # rows of a chunk: each has sums of its own over the columns, which have to be added up


def rows_in_chunk(height: int) -> int:
    """Return how many rows one thread does by itself; it follows from their number alone."""
    return max(FEWEST, ROWS * -(-height // (ROWS * CHUNKS)))


def packed(U: Sequence[Tensor], V: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return P (steps, n / 8, 8·r), Q (steps, m / 16, 16·r) and the ranks: U and V as the loops read them.

    Arguments:
        U, V: (n, r) and (r, m) of every step in float64; r may differ.
    """
    U, V = [left.contiguous() for left in U], [right.contiguous() for right in V]
    ranks = [len(right) for right in V]
    most = max(ranks)
    P = U[0].new_empty(len(U), -(-len(U[0]) // ROWS), ROWS * most)
    Q = V[0].new_empty(len(V), -(-V[0].shape[1] // COLUMNS), COLUMNS * most)
    given = [(left.data_ptr(), right.data_ptr(), rank) for left, right, rank in zip(U, V, ranks, strict=True)]
    work = torch.tensor(given)
    run(_pack, 1, P.new_empty(0), work, torch.tensor([len(U[0]), V[0].shape[1]]), P, Q)
    return P, Q, work[:, 2].contiguous()


@compiled_as_written
def _pack(
    own: Any, work: NDArray[Any], shape: NDArray[Any], P: NDArray[Any], Q: NDArray[Any], part: NDArray[Any]
) -> None:
    for s in range(own.start, min(own.stop, len(work))):
        height, width, rank = shape[0], shape[1], work[s, 2]
        U, V = matrix_at(P, work[s, 0], height, rank), matrix_at(P, work[s, 1], rank, width)
        for block in range(P.shape[1]):
            out = P[s, block]
            for k in range(ROWS):
                i = ROWS * block + k
                for r in range(rank):
                    out[ROWS * r + k] = U[i, r] if i < height else 0.0
        for block in range(Q.shape[1]):
            out, j = Q[s, block], COLUMNS * block
            for r in range(rank):
                if j + COLUMNS <= width:
                    store(out, COLUMNS * r, load(V[r], j, P))
                    store(out, COLUMNS * r + 8, load(V[r], j + 8, P))
                else:
                    for k in range(COLUMNS):
                        out[COLUMNS * r + k] = V[r, j + k] if j + k < width else 0.0


@inlined
def widened(weight: NDArray[Any], i: int, first: int, length: int, count: int, out: NDArray[Any]) -> None:
    """Write up to ``count`` rows of a tile in float64, 0 for rows beyond the last; columns beyond are left as is."""
    height = len(weight)
    for k in range(count):
        w, there, later = out[k], weight[min(i + k, height - 1)], weight[min(i + k + count, height - 1)]
        if i + k < height:
            for j in range(0, length - 7, 8):
                store(w, j, load(there, first + j, w))
                fetch(later, first + j)  # the processor does not foresee this order
            for j in range(length - length % 8, length):
                w[j] = there[first + j]
        else:
            w[:] = 0


@inlined
def product(rows: NDArray[Any], j: int, p: NDArray[Any], q: NDArray[Any], rank: int) -> Any:
    """Return W₀ + U V in float64, 8 rows by 16 columns, those of W₀ from j on."""
    m = j + 8
    a0, a1, a2, a3 = load(rows[0], j, p), load(rows[1], j, p), load(rows[2], j, p), load(rows[3], j, p)
    a4, a5, a6, a7 = load(rows[4], j, p), load(rows[5], j, p), load(rows[6], j, p), load(rows[7], j, p)
    b0, b1, b2, b3 = load(rows[0], m, p), load(rows[1], m, p), load(rows[2], m, p), load(rows[3], m, p)
    b4, b5, b6, b7 = load(rows[4], m, p), load(rows[5], m, p), load(rows[6], m, p), load(rows[7], m, p)
    for k in range(rank):
        x, y = load(q, k * COLUMNS, p), load(q, k * COLUMNS + 8, p)
        p0, p1, p2, p3 = spread(p, 8 * k), spread(p, 8 * k + 1), spread(p, 8 * k + 2), spread(p, 8 * k + 3)
        p4, p5, p6, p7 = spread(p, 8 * k + 4), spread(p, 8 * k + 5), spread(p, 8 * k + 6), spread(p, 8 * k + 7)
        a0, a1, a2, a3 = fused(p0, x, a0), fused(p1, x, a1), fused(p2, x, a2), fused(p3, x, a3)
        a4, a5, a6, a7 = fused(p4, x, a4), fused(p5, x, a5), fused(p6, x, a6), fused(p7, x, a7)
        b0, b1, b2, b3 = fused(p0, y, b0), fused(p1, y, b1), fused(p2, y, b2), fused(p3, y, b3)
        b4, b5, b6, b7 = fused(p4, y, b4), fused(p5, y, b5), fused(p6, y, b6), fused(p7, y, b7)
    return a0, a1, a2, a3, a4, a5, a6, a7, b0, b1, b2, b3, b4, b5, b6, b7


@inlined
def write(out: NDArray[Any], j: int, a0: Any, a1: Any, a2: Any, a3: Any, a4: Any, a5: Any, a6: Any, a7: Any) -> None:
    """Write 8 rows by 8 columns from j on."""
    store(out[0], j, a0)
    store(out[1], j, a1)
    store(out[2], j, a2)
    store(out[3], j, a3)
    store(out[4], j, a4)
    store(out[5], j, a5)
    store(out[6], j, a6)
    store(out[7], j, a7)
