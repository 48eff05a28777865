"""The norms of the rows and columns of W₀ + U V of several steps, in one pass over W₀; see ``product``.

Measured (Zen 5, one thread of a shared machine, rank 8, W₀ in float32, a step of 9 at 4096² and of 17 at 768²): rows
3.2 and 0.11 ms, columns 3.3 and 0.12 ms, BoRA's both 5.3 and 0.17 ms. Step by step (``norms``) it is 4.0 and 0.13, 4.1
and 0.14, 5.8 and 0.17 ms, and every step reads W₀ of the memory, which two threads share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from deltaw.adapters.compiled.lanes import aligned, fused, load, plus, store, times, totals, zeros
from deltaw.adapters.compiled.loops import compiled_as_written, inlined, run
from deltaw.adapters.compiled.norms import add_squares
from deltaw.adapters.compiled.product import COLUMNS, PITCH, ROWS, TILE, packed, product, rows_in_chunk, widened, write

_BLOCK = ROWS


def column_norms(weight: Tensor, U: Sequence[Tensor], V: Sequence[Tensor]) -> Tensor:
    """Return ‖(W₀ + U V)_:j‖ of every step, (steps, m).

    Arguments:
        weight: W₀ (n, m), on the CPU and contiguous, float32 or float64.
        U, V: (n, r) and (r, m) of every step in float64.
    """
    P, Q, ranks = packed(U, V)
    total = Q.new_zeros(len(U), COLUMNS * Q.shape[1])
    run(_squares_of_columns, rows_in_chunk(len(weight)), total, weight, P, Q, ranks)
    return total[:, : weight.shape[1]].sqrt()


def row_norms(weight: Tensor, U: Sequence[Tensor], V: Sequence[Tensor]) -> Tensor:
    """Return ‖(W₀ + U V)_i:‖ of every step, (steps, n); else as `column_norms`."""
    P, Q, ranks = packed(U, V)
    squares = P.new_empty(len(U), ROWS * P.shape[1])
    run(_squares_of_rows, rows_in_chunk(len(weight)), P.new_empty(0), weight, P, Q, ranks, squares)
    return squares[:, : len(weight)].sqrt()


def norms_of_both(weight: Tensor, U: Sequence[Tensor], V: Sequence[Tensor], magnitude: Tensor) -> tuple[Tensor, Tensor]:
    """Return ‖v_i‖ (steps, n) and √(Σ_i p_i² v_ij²) (steps, m), p = magnitude / ‖v_i‖; a zero row adds none.

    Arguments:
        weight, U, V: As in `column_norms`.
        magnitude: (steps, n) in float64.
    """
    P, Q, ranks = packed(U, V)
    total = Q.new_zeros(len(U), COLUMNS * Q.shape[1])
    squares = P.new_empty(len(U), ROWS * P.shape[1])
    run(_squares_of_both, rows_in_chunk(len(weight)), total, weight, P, Q, ranks, magnitude, squares)
    return squares[:, : len(weight)].sqrt(), total[:, : weight.shape[1]].sqrt()


@compiled_as_written
def _squares_of_columns(
    own: Any, weight: NDArray[Any], P: NDArray[Any], Q: NDArray[Any], ranks: NDArray[Any], part: NDArray[Any]
) -> None:
    weight, start = weight[own], own.start
    height, width = weight.shape
    w = aligned(_BLOCK * PITCH, P).reshape(_BLOCK, PITCH)
    part[:] = 0
    for first in range(0, width, TILE):
        length = min(TILE, width - first)
        if length < TILE:
            w[:] = 0
        for i in range(0, height, _BLOCK):
            widened(weight, i, first, length, _BLOCK, w)
            for s in range(len(P)):
                squares = part[s]
                for k in range(i, min(i + _BLOCK, height), ROWS):
                    _add_columns(w[k - i :], P[s, (start + k) // ROWS], Q[s], ranks[s], first, length, squares)


@inlined
def _add_columns(
    w: NDArray[Any], p: NDArray[Any], Q: NDArray[Any], rank: int, first: int, length: int, squares: NDArray[Any]
) -> None:
    for j in range(0, length, COLUMNS):
        at = first + j
        a0, a1, a2, a3, a4, a5, a6, a7, b0, b1, b2, b3, b4, b5, b6, b7 = product(w, j, p, Q[at // COLUMNS], rank)
        even, odd = fused(a0, a0, load(squares, at, w)), times(a1, a1)
        even, odd = fused(a2, a2, even), fused(a3, a3, odd)
        even, odd = fused(a4, a4, even), fused(a5, a5, odd)
        store(squares, at, plus(fused(a6, a6, even), fused(a7, a7, odd)))
        even, odd = fused(b0, b0, load(squares, at + 8, w)), times(b1, b1)
        even, odd = fused(b2, b2, even), fused(b3, b3, odd)
        even, odd = fused(b4, b4, even), fused(b5, b5, odd)
        store(squares, at + 8, plus(fused(b6, b6, even), fused(b7, b7, odd)))


@compiled_as_written
def _squares_of_rows(
    own: Any,
    weight: NDArray[Any],
    P: NDArray[Any],
    Q: NDArray[Any],
    ranks: NDArray[Any],
    squares: NDArray[Any],
    part: NDArray[Any],
) -> None:
    weight, start = weight[own], own.start
    height, width = weight.shape
    w = aligned(_BLOCK * PITCH, P).reshape(_BLOCK, PITCH)
    for first in range(0, width, TILE):
        length = min(TILE, width - first)
        if length < TILE:
            w[:] = 0
        for i in range(0, height, _BLOCK):
            widened(weight, i, first, length, _BLOCK, w)
            for s in range(len(P)):
                for k in range(i, min(i + _BLOCK, height), ROWS):
                    of = squares[s, start + k :]
                    found = _of_rows(w[k - i :], P[s, (start + k) // ROWS], Q[s], ranks[s], first, length)
                    store(of, 0, found if first == 0 else plus(load(of, 0, w), found))


@inlined
def _of_rows(w: NDArray[Any], p: NDArray[Any], Q: NDArray[Any], rank: int, first: int, length: int) -> Any:
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = zeros(w)
    for j in range(0, length, COLUMNS):
        q = Q[(first + j) // COLUMNS]
        a0, a1, a2, a3, a4, a5, a6, a7, b0, b1, b2, b3, b4, b5, b6, b7 = product(w, j, p, q, rank)
        s0, s1, s2, s3 = fused(a0, a0, s0), fused(a1, a1, s1), fused(a2, a2, s2), fused(a3, a3, s3)
        s4, s5, s6, s7 = fused(a4, a4, s4), fused(a5, a5, s5), fused(a6, a6, s6), fused(a7, a7, s7)
        s0, s1, s2, s3 = fused(b0, b0, s0), fused(b1, b1, s1), fused(b2, b2, s2), fused(b3, b3, s3)
        s4, s5, s6, s7 = fused(b4, b4, s4), fused(b5, b5, s5), fused(b6, b6, s6), fused(b7, b7, s7)
    return totals(s0, s1, s2, s3, s4, s5, s6, s7)


@compiled_as_written
def _squares_of_both(
    own: Any,
    weight: NDArray[Any],
    P: NDArray[Any],
    Q: NDArray[Any],
    ranks: NDArray[Any],
    magnitude: NDArray[Any],
    squares: NDArray[Any],
    part: NDArray[Any],
) -> None:
    weight, start = weight[own], own.start
    height, width = weight.shape
    whole = COLUMNS * Q.shape[1]
    pitch = whole + COLUMNS
    # A row's factor follows from all of it, so 8 whole rows are kept; they fit into the second cache.
    w, v = aligned(ROWS * PITCH, P).reshape(ROWS, PITCH), aligned(ROWS * pitch, P).reshape(ROWS, pitch)
    factors = np.zeros(ROWS)
    part[:] = 0
    for i in range(0, height, ROWS):
        there = min(ROWS, height - i)
        direct = width - width % COLUMNS if there == ROWS else 0  # columns that are read where they are
        for s in range(len(P)):
            p, of = P[s, (start + i) // ROWS], squares[s, start + i :]
            found = _keep(weight[i : i + there], p, Q[s], ranks[s], 0, 0, direct, v)
            for first in range(direct, width, TILE):
                length = min(TILE, width - first)
                if length < TILE:
                    w[:] = 0
                widened(weight, i, first, length, ROWS, w)
                found = plus(found, _keep(w, p, Q[s], ranks[s], first, first, first + length, v))
            store(of, 0, found)
            factors[:] = 0
            for k in range(there):
                m, square = magnitude[s, start + i + k], of[k]
                factors[k] = m * m / square if square > 0 else square  # a zero row adds nothing
            add_squares(v, factors, part[s, :whole])


@inlined
def _keep(
    rows: NDArray[Any], p: NDArray[Any], Q: NDArray[Any], rank: int, before: int, first: int, last: int, v: NDArray[Any]
) -> Any:
    """Keep V of 8 rows from the first column on, and return the rows' sums; W₀ is there from column ``before`` on."""
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = zeros(v)
    for j in range(first, last, COLUMNS):
        q = Q[j // COLUMNS]
        a0, a1, a2, a3, a4, a5, a6, a7, b0, b1, b2, b3, b4, b5, b6, b7 = product(rows, j - before, p, q, rank)
        s0, s1, s2, s3 = fused(a0, a0, s0), fused(a1, a1, s1), fused(a2, a2, s2), fused(a3, a3, s3)
        s4, s5, s6, s7 = fused(a4, a4, s4), fused(a5, a5, s5), fused(a6, a6, s6), fused(a7, a7, s7)
        s0, s1, s2, s3 = fused(b0, b0, s0), fused(b1, b1, s1), fused(b2, b2, s2), fused(b3, b3, s3)
        s4, s5, s6, s7 = fused(b4, b4, s4), fused(b5, b5, s5), fused(b6, b6, s6), fused(b7, b7, s7)
        write(v, j, a0, a1, a2, a3, a4, a5, a6, a7)
        write(v, j + 8, b0, b1, b2, b3, b4, b5, b6, b7)
    return totals(s0, s1, s2, s3, s4, s5, s6, s7)
