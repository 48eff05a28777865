"""The compiled loops that sum pairs of matrices; see ``compiled.loops`` for how they are compiled and who runs them.

A few rows of every matrix are looked at while they are in the processor's cache, so that a matrix that belongs to
several pairs comes from memory once. Two pairs that end at one matrix, as (W₀, W_t) and (W_{t−1}, W_t), and the squares
of W_{t−1} are summed together: then its numbers are widened once. What is summed for a pair, and in which order, does
not depend on the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

from deltaw.adapters.compiled.loops import compiled_as_written, inlined, run
from deltaw.adapters.compiled.pages import LARGE_PAGE, OWN, PASSING, Calls, ask_for, bring, let_go
from deltaw.adapters.compiled.pairs import pair, pair_and_squares, two_pairs

APART = 16  # rows a multiple of 4096 bytes apart would push each other out of the innermost cache
CHUNKS = 16  # of rows at most; fixed, so that the sums do not depend on the number of threads
ALONE = 2**17  # entries below which one thread is faster
_BLOCK = 2**15  # entries of a matrix that are looked at together: several such blocks fit into the second cache
_SPAN = 2**21  # bytes of the rows of a matrix that come and go at once

_intrinsic: Any = intrinsic


def rows_in_chunk(height: int, width: int) -> int:
    """Return how many rows one thread does by itself; it follows from the shape alone."""
    chunks = CHUNKS if height * width > ALONE else 1
    return max(1, 4 * -(-height // (4 * chunks)))  # the loops do four rows at a time


def lines_of(pairs: Sequence[tuple[int, int]], squares: dict[int, int]) -> Tensor:
    """Return what the loop does in turn for some pairs of matrices, and for the squares of those before.

    Arguments:
        pairs: Two positions among the matrices, each.
        squares: The place for Σ a² of every matrix before; those for the pairs follow it.

    Returns:
        (lines, 7) in int64: the matrix a before, another matrix b before or −1, and the matrix c after; places for
        Σ a·d, Σ b·d, and Σ a² or, where there is b, Σ b²; −1 for none. Last the matrix c of the next line.

    Example:
        >>> lines_of([(0, 1), (0, 2), (1, 2)], {0: 0, 1: 1}).tolist()
        [[0, -1, 1, 2, -1, 0, 2], [0, 1, 2, 3, 4, 1, 1]]
    """
    lines: list[list[int]] = []
    left = dict(squares)
    for place, (before, after) in enumerate(pairs, len(squares)):
        own = left.pop(before, -1)
        if lines and own >= 0 and lines[-1][1:3] == [-1, after] and lines[-1][5] < 0:
            lines[-1][1], lines[-1][4], lines[-1][5] = before, place, own
        else:
            lines.append([before, -1, after, place, -1, own])
    return torch.tensor([[*line, lines[(k + 1) % len(lines)][2]] for k, line in enumerate(lines)])


def add_sums(
    matrix: Tensor,
    addresses: Tensor,
    lines: Tensor,
    pairs: int,
    step: int,
    rows: Tensor,
    columns: Tensor,
    pages: Sequence[int] = (),
    calls: Calls | None = None,
) -> bool:
    """Write the sums over rows into ``rows`` and add those over columns to ``columns``.

    Arguments:
        matrix: One of the matrices, (n, m), on the CPU and contiguous, float32 or float64; or bfloat16 or float16 with
            m a multiple of 8.
        addresses: Where each matrix begins, (matrices,) in int64: all are like the one given.
        lines: See `lines_of`. With d = c − a, or c − b, Σ d² goes as many places behind Σ a·d as there are pairs.
        pairs: How many.
        step: Rows in a chunk; see `rows_in_chunk`.
        rows, columns: (places, n) and (places, at least m) in float64.
        pages: How the pages of every matrix are treated: ``OWN`` for memory; of a mapped file, the pages of some rows
            come before they are summed, and go again with ``PASSING``, stay with ``STAYING``.
        calls: What lets pages come and go.

    Returns:
        Whether all pages came. If not, a file was cut, and the sums say nothing.
    """
    span = max(4, 4 * (_SPAN // (4 * matrix.shape[1] * matrix.element_size())))
    how = pages or [OWN] * len(addresses)
    about = torch.tensor([pairs, span, 1, *(calls or (0, 0, 0, 1)), *how])  # one tensor: each costs microseconds
    run(_sums_of_rows, step, columns, matrix, addresses, lines, about, rows)
    return about[2].item() == 1


def in_flight(height: int, width: int, size: int) -> int:
    """Return how many bytes of a matrix in a file are in memory at most at once, of numbers of ``size`` bytes."""
    row = width * size
    span = min(rows_in_chunk(height, width) * row, _SPAN)
    pages = torch.get_num_threads() * (-(-span // LARGE_PAGE) + 1)
    return min(height * row, pages * LARGE_PAGE)


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
    lines: NDArray[Any],
    about: NDArray[Any],
    rows: NDArray[Any],
    columns: NDArray[Any],
) -> None:
    columns[:] = 0
    start, stop, span, calls, how = own.start, min(own.stop, len(first)), about[1], about[3:7], about[7:]
    row = first.shape[1] * first.itemsize
    for top in range(start, stop, span):
        bottom = min(top + span, stop)
        for k in range(len(addresses)):  # reading from a disk begins for all before it is waited for
            if how[k] != OWN:
                ask_for(calls, addresses[k] + top * row, addresses[k] + min(bottom + span, len(first)) * row)
        for k in range(len(addresses)):
            if how[k] != OWN and not bring(calls, addresses[k] + top * row, addresses[k] + bottom * row):
                about[2] = 0
        if about[2] == 1:
            _sums_of_span(top, bottom, first, addresses, lines, about[0], rows, columns)
        for k in range(len(addresses)):
            if how[k] == PASSING:
                let_go(calls, addresses[k] + top * row, addresses[k] + bottom * row)


@inlined
def _sums_of_span(
    start: int,
    stop: int,
    first: NDArray[Any],
    addresses: NDArray[Any],
    lines: NDArray[Any],
    pairs: int,
    rows: NDArray[Any],
    columns: NDArray[Any],
) -> None:
    block = max(4, 4 * (_BLOCK // (4 * first.shape[1])))
    for top in range(start, stop, block):
        bottom = min(top + block, stop)
        for line in range(len(lines)):
            a, c = _matrix_at(first, addresses[lines[line, 0]]), _matrix_at(first, addresses[lines[line, 2]])
            p, q, squares = lines[line, 3], lines[line, 4], lines[line, 5]
            later = bottom if line == len(lines) - 1 and bottom < stop else top
            ahead = _matrix_at(first, addresses[lines[line, 6]])[later:]
            if q >= 0:
                b = _matrix_at(first, addresses[lines[line, 1]])
                two_pairs(
                    a, b, c, ahead, top, bottom,
                    rows[p], rows[p + pairs], rows[q], rows[q + pairs], rows[squares],
                    columns[p], columns[p + pairs], columns[q], columns[q + pairs], columns[squares],
                )  # fmt: skip
            elif squares >= 0:
                pair_and_squares(
                    a, c, ahead, top, bottom,
                    rows[p], rows[p + pairs], rows[squares], columns[p], columns[p + pairs], columns[squares],
                )  # fmt: skip
            else:
                pair(a, c, ahead, top, bottom, rows[p], rows[p + pairs], columns[p], columns[p + pairs])
