"""The compiled loops that sum pairs of matrices; see ``compiled.loops`` for how they are compiled and who runs them.

A few rows of every matrix are looked at while they are in the processor's cache, so that a matrix that belongs to
several pairs comes from memory once. What is summed for a pair, and in which order, does not depend on the others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

from deltaw.adapters.compiled.lanes import fetch, fused, load, minus, store, total, zeros
from deltaw.adapters.compiled.loops import compiled_as_written, inlined, run

APART = 16  # rows a multiple of 4096 bytes apart would push each other out of the innermost cache
CHUNKS = 16  # of rows at most; fixed, so that the sums do not depend on the number of threads
ALONE = 2**17  # entries below which one thread is faster
_BLOCK = 2**15  # entries of a matrix that are looked at together: several such blocks fit into the second cache
_AHEAD = 8  # rows ahead of those that are summed, for which the memory is asked
_TILE = 2048  # columns whose sums fit into the innermost cache

_intrinsic: Any = intrinsic


def rows_in_chunk(height: int, width: int) -> int:
    """Return how many rows one thread does by itself; it follows from the shape alone."""
    chunks = CHUNKS if height * width > ALONE else 1
    return max(1, 4 * -(-height // (4 * chunks)))  # the loops do four rows at a time


def add_sums(
    matrix: Tensor, addresses: Tensor, work: Tensor, step: int, rows: Tensor, columns: Tensor, parts: Tensor
) -> None:
    """Write the sums over rows into ``rows`` and add those over columns to ``columns``, for every line of ``work``.

    Arguments:
        matrix: One of the matrices, (n, m), on the CPU and contiguous, float32 or float64; or bfloat16 or float16 with
            m a multiple of 8.
        addresses: Where each matrix begins, (matrices,) in int64: all are like the one given.
        work: (lines, 3) in int64: the matrix a, the matrix b and a place. With b = −1, Σ a² goes to this place. Else
            Σ a·d goes to this place and Σ d² to the one as many places on as there are pairs, with d = b − a.
        step: Rows in a chunk; see `rows_in_chunk`.
        rows, columns: (places, n) and (places, at least m) in float64.
        parts: Room for the sums of every chunk, (at least as many, *columns.shape).
    """
    run(_sums_of_rows, step, columns, matrix, addresses, work, rows, parts=parts)


@_intrinsic  # type: ignore[untyped-decorator]
def _matrix_at(_: Any, like: Any, address: Any) -> Any:
    """Return the matrix at an address, which has the dtype and the shape of another."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.args[0]
        found = context.make_array(kind)(context, builder, arguments[0])
        found.data = builder.inttoptr(arguments[1], found.data.type)
        return found._getvalue()

    return like(like, address), code


@compiled_as_written
def _sums_of_rows(
    own: Any,
    first: NDArray[Any],
    addresses: NDArray[Any],
    work: NDArray[Any],
    rows: NDArray[Any],
    columns: NDArray[Any],
) -> None:
    columns[:] = 0
    height, width = first.shape
    start, stop = own.start, min(own.stop, height)
    pairs = 0
    for line in range(len(work)):
        pairs += work[line, 1] >= 0
    block = max(4, 4 * (_BLOCK // (4 * width)))
    for top in range(start, stop, block):
        bottom = min(top + block, stop)
        for line in range(len(work)):
            a, place = _matrix_at(first, addresses[work[line, 0]]), work[line, 2]
            if work[line, 1] < 0:
                _squares(a, top, bottom, rows[place], columns[place])
            else:
                b, other = _matrix_at(first, addresses[work[line, 1]]), place + pairs
                _products(a, b, top, bottom, rows[place], rows[other], columns[place], columns[other])


@inlined
def _squares(a: NDArray[Any], top: int, bottom: int, rows: NDArray[Any], columns: NDArray[Any]) -> None:
    """Σ_j a² of rows from ``top`` to ``bottom``, and Σ_i a² added to the columns."""
    width = a.shape[1]
    like, whole, by_four = columns, width - width % 8, bottom - (bottom - top) % 4
    for i in range(top, bottom):
        rows[i] = 0
    for left in range(0, whole, _TILE):
        right = min(left + _TILE, whole)
        for i in range(top, by_four, 4):
            a0, a1, a2, a3 = a[i], a[i + 1], a[i + 2], a[i + 3]
            aa0 = aa1 = aa2 = aa3 = zeros(like)
            for j in range(left, right, 8):
                x0, x1, x2, x3 = load(a0, j, like), load(a1, j, like), load(a2, j, like), load(a3, j, like)
                aa0, aa1, aa2, aa3 = fused(x0, x0, aa0), fused(x1, x1, aa1), fused(x2, x2, aa2), fused(x3, x3, aa3)
                store(columns, j, fused(x3, x3, fused(x2, x2, fused(x1, x1, fused(x0, x0, load(columns, j, like))))))
            rows[i] += total(aa0)
            rows[i + 1] += total(aa1)
            rows[i + 2] += total(aa2)
            rows[i + 3] += total(aa3)
        for i in range(by_four, bottom):
            a0, aa0 = a[i], zeros(like)
            for j in range(left, right, 8):
                x0 = load(a0, j, like)
                aa0 = fused(x0, x0, aa0)
                store(columns, j, fused(x0, x0, load(columns, j, like)))
            rows[i] += total(aa0)
    for i in range(top, bottom):
        for j in range(whole, width):
            x = np.float64(a[i, j])
            rows[i] += x * x
            columns[j] += x * x


@inlined
def _products(
    a: NDArray[Any],
    b: NDArray[Any],
    top: int,
    bottom: int,
    rows_ad: NDArray[Any],
    rows_dd: NDArray[Any],
    columns_ad: NDArray[Any],
    columns_dd: NDArray[Any],
) -> None:
    """Σ_j a·d and Σ_j d², d = b − a, of rows from ``top`` to ``bottom``, and Σ_i of them added to the columns."""
    width = a.shape[1]
    like, whole, by_four = columns_ad, width - width % 8, bottom - (bottom - top) % 4
    for i in range(top, bottom):
        rows_ad[i] = rows_dd[i] = 0
    for left in range(0, whole, _TILE):
        right = min(left + _TILE, whole)
        for i in range(top, by_four, 4):  # what is read and written of the columns is shared by four rows
            a0, a1, a2, a3 = a[i], a[i + 1], a[i + 2], a[i + 3]
            b0, b1, b2, b3 = b[i], b[i + 1], b[i + 2], b[i + 3]
            ahead = b[min(i + _AHEAD, len(b) - 1)]  # of four rows: they follow each other in memory
            ad0 = ad1 = ad2 = ad3 = zeros(like)
            dd0 = dd1 = dd2 = dd3 = zeros(like)
            for j in range(left, right, 8):
                of_ad, of_dd = load(columns_ad, j, like), load(columns_dd, j, like)
                fetch(ahead, 4 * j)
                fetch(ahead, 4 * j + 16)
                x = load(a0, j, like)
                d = minus(load(b0, j, like), x)
                ad0, dd0, of_ad, of_dd = fused(x, d, ad0), fused(d, d, dd0), fused(x, d, of_ad), fused(d, d, of_dd)
                x = load(a1, j, like)
                d = minus(load(b1, j, like), x)
                ad1, dd1, of_ad, of_dd = fused(x, d, ad1), fused(d, d, dd1), fused(x, d, of_ad), fused(d, d, of_dd)
                x = load(a2, j, like)
                d = minus(load(b2, j, like), x)
                ad2, dd2, of_ad, of_dd = fused(x, d, ad2), fused(d, d, dd2), fused(x, d, of_ad), fused(d, d, of_dd)
                x = load(a3, j, like)
                d = minus(load(b3, j, like), x)
                ad3, dd3, of_ad, of_dd = fused(x, d, ad3), fused(d, d, dd3), fused(x, d, of_ad), fused(d, d, of_dd)
                store(columns_ad, j, of_ad)
                store(columns_dd, j, of_dd)
            rows_ad[i] += total(ad0)
            rows_ad[i + 1] += total(ad1)
            rows_ad[i + 2] += total(ad2)
            rows_ad[i + 3] += total(ad3)
            rows_dd[i] += total(dd0)
            rows_dd[i + 1] += total(dd1)
            rows_dd[i + 2] += total(dd2)
            rows_dd[i + 3] += total(dd3)
        for i in range(by_four, bottom):
            a0, b0 = a[i], b[i]
            ad0 = dd0 = zeros(like)
            for j in range(left, right, 8):
                x = load(a0, j, like)
                d = minus(load(b0, j, like), x)
                ad0, dd0 = fused(x, d, ad0), fused(d, d, dd0)
                store(columns_ad, j, fused(x, d, load(columns_ad, j, like)))
                store(columns_dd, j, fused(d, d, load(columns_dd, j, like)))
            rows_ad[i] += total(ad0)
            rows_dd[i] += total(dd0)
    for i in range(top, bottom):
        for j in range(whole, width):
            x = np.float64(a[i, j])
            d = np.float64(b[i, j]) - x
            rows_ad[i] += x * d
            rows_dd[i] += d * d
            columns_ad[j] += x * d
            columns_dd[j] += d * d
