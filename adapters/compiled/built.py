"""The compiled loop that builds W' = diag(ρ) (W₀ + U V) diag(γ) of several steps and sums pairs of them, see ``loops``.

Each W' is built once, 8 rows by 128 columns at a time, and compared while it is in the innermost cache. So W₀ is all
that is read of the memory, once for all steps. Thin products in the place of W' would take more operations: an entry of
W₀ takes one for every step and rank for U V, and four for W₀ Vᵀ, W₀ ΔVᵀ, Uᵀ W₀ and ΔUᵀ W₀.

Measured (Zen 5, one thread of a shared machine, rank 8, float32, a pair of 9 steps at 4096²): 5.9 ms; where all W' of a
tile were kept until its last pair, and the rows' sums were added up one by one, 6.9 ms.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from deltaw.adapters.compiled.lanes import aligned, fused, load, minus, plus, spread, store, times, totals, zeros
from deltaw.adapters.compiled.loops import compiled_as_written, inlined, run
from deltaw.adapters.compiled.product import COLUMNS, PITCH, ROWS, TILE, packed, product, rows_in_chunk, widened, write


def add_built_sums(
    base: Tensor,
    rho: Tensor,
    gamma: Tensor,
    U: Sequence[Tensor],
    V: Sequence[Tensor],
    pairs: Sequence[tuple[int, int]],
    rows: Tensor,
    columns: Tensor,
) -> None:
    """Write Σ_j a², Σ_j a·d, Σ_j d² with d = b − a into rows, and add Σ_i of the same to columns, of every pair.

    Arguments:
        base: W₀ (n, m), float32 or float64; on the CPU and contiguous.
        rho, gamma: ρ (steps, n) and γ (steps, m) in float64.
        U, V: (n, r) and (r, m) of every step in float64; r may differ.
        pairs: Two positions among the steps; −1 is W₀.
        rows, columns: (pairs, 3, at least n) and (pairs, 3, at least m) in float64, contiguous; the last of a multiple
            of 8 and 16.
    """
    P, Q, ranks = packed(U, V)
    order, slots, ends = schedule(len(ranks), tuple(pairs))
    wide = F.pad(rho, (0, -base.shape[0] % ROWS)), F.pad(gamma, (0, -base.shape[1] % COLUMNS))
    scaled = torch.tensor([not bool((rho == 1).all()), not bool((gamma == 1).all())]).long()
    plan = torch.tensor(slots), torch.tensor(ends), torch.tensor(order)
    run(_built_sums_of_rows, rows_in_chunk(len(base)), columns, base, scaled, *wide, P, Q, ranks, *plan, rows)


@functools.lru_cache(64)
def schedule(steps: int, pairs: tuple[tuple[int, int], ...]) -> tuple[list[tuple[int, int, int]], list[int], list[int]]:
    """Return the pairs as soon as they can be summed, where each step's W' is kept until then, and how far one gets.

    As few as possible are kept, so that they stay in the innermost cache.

    Arguments:
        steps: How many steps are built, one after the other.
        pairs: Two positions among them, −1 for W₀.

    Returns:
        (which pair, place of the first, place of the second), W₀ at place 0; of each step its place; and how many
        of the pairs are summed when it is built.

    Example:
        >>> schedule(3, ((0, 1), (1, 2), (-1, 2)))
        ([(0, 1, 2), (1, 2, 1), (2, 0, 1)], [1, 2, 1], [0, 1, 3])
    """
    due = [max(0, *pair) for pair in pairs]
    last = [max([due[n] for n, pair in enumerate(pairs) if s in pair], default=s) for s in range(steps)]
    numbers = sorted(range(len(pairs)), key=due.__getitem__)
    slots: list[int] = []
    for s in range(steps):
        busy = {slots[other] for other in range(s) if last[other] >= s}
        slots.append(next(slot for slot in range(1, s + 2) if slot not in busy))
    place = [*slots, 0]  # −1 is the last
    order = [(n, place[pairs[n][0]], place[pairs[n][1]]) for n in numbers]
    return order, slots, [sum(of <= s for of in due) for s in range(steps)]


@compiled_as_written
def _built_sums_of_rows(
    own: Any,
    base: NDArray[Any],
    scaled: NDArray[Any],
    rho: NDArray[Any],
    gamma: NDArray[Any],
    P: NDArray[Any],
    Q: NDArray[Any],
    ranks: NDArray[Any],
    slots: NDArray[Any],
    ends: NDArray[Any],
    order: NDArray[Any],
    rows: NDArray[Any],
    columns: NDArray[Any],
) -> None:
    base, start = base[own], own.start
    height, width, steps = len(base), base.shape[1], len(slots)
    kept = ROWS * (max(slots) + 1)
    room = aligned((kept + 3 * len(order)) * PITCH, rho)
    built = room[: kept * PITCH].reshape(kept // ROWS, ROWS, PITCH)  # the first is W₀
    of_tile = room[kept * PITCH :].reshape(len(order), 3, PITCH)
    for first in range(0, width, TILE):
        length = min(TILE, width - first)
        whole = -(-length // COLUMNS) * COLUMNS
        built[0] = 0
        of_tile[:] = 0
        for i in range(0, height, ROWS):
            widened(base, i, first, length, ROWS, built[0])
            block, done = (start + i) // ROWS, 0
            for s in range(steps):
                factors = rho[s, block * ROWS :], gamma[s, first:]
                _build(built[0], scaled, factors, P[s, block], Q[s], ranks[s], first, whole, built[slots[s]])
                for n in range(done, ends[s]):
                    sums = rows[order[n, 0], :, start + i :]
                    _sum(built[order[n, 1]], built[order[n, 2]], whole, first == 0, sums, of_tile[n])
                done = ends[s]
        for n in range(len(order)):
            for k in range(3):
                columns[order[n, 0], k, first : first + whole] = of_tile[n, k, :whole]


@inlined
def _build(
    w: NDArray[Any],
    scaled: NDArray[Any],
    factors: tuple[NDArray[Any], NDArray[Any]],
    p: NDArray[Any],
    Q: NDArray[Any],
    rank: int,
    first: int,
    whole: int,
    out: NDArray[Any],
) -> None:
    """Write ρ (W₀ + P Q) γ, 8 rows by ``whole`` columns from ``first`` on."""
    rho, gamma = factors
    for j in range(0, whole, COLUMNS):
        q, m = Q[(first + j) // COLUMNS], j + 8
        a0, a1, a2, a3, a4, a5, a6, a7, b0, b1, b2, b3, b4, b5, b6, b7 = product(w, j, p, q, rank)
        if scaled[1]:
            g, h = load(gamma, j, w), load(gamma, m, w)
            a0, a1, a2, a3, a4, a5, a6, a7 = _times(g, a0, a1, a2, a3, a4, a5, a6, a7)
            b0, b1, b2, b3, b4, b5, b6, b7 = _times(h, b0, b1, b2, b3, b4, b5, b6, b7)
        if scaled[0]:
            r0, r1, r2, r3 = spread(rho, 0), spread(rho, 1), spread(rho, 2), spread(rho, 3)
            r4, r5, r6, r7 = spread(rho, 4), spread(rho, 5), spread(rho, 6), spread(rho, 7)
            a0, a1, a2, a3 = times(a0, r0), times(a1, r1), times(a2, r2), times(a3, r3)
            a4, a5, a6, a7 = times(a4, r4), times(a5, r5), times(a6, r6), times(a7, r7)
            b0, b1, b2, b3 = times(b0, r0), times(b1, r1), times(b2, r2), times(b3, r3)
            b4, b5, b6, b7 = times(b4, r4), times(b5, r5), times(b6, r6), times(b7, r7)
        write(out, j, a0, a1, a2, a3, a4, a5, a6, a7)
        write(out, m, b0, b1, b2, b3, b4, b5, b6, b7)


@inlined
def _times(g: Any, a0: Any, a1: Any, a2: Any, a3: Any, a4: Any, a5: Any, a6: Any, a7: Any) -> Any:
    return (
        times(a0, g),
        times(a1, g),
        times(a2, g),
        times(a3, g),
        times(a4, g),
        times(a5, g),
        times(a6, g),
        times(a7, g),
    )


@inlined
def _sum(
    before: NDArray[Any], after: NDArray[Any], whole: int, anew: bool, rows: NDArray[Any], columns: NDArray[Any]
) -> None:
    """Write the sums of 8 rows, or add to them, and add to those of the columns."""
    x0, x1, x2, x3, x4, x5, x6, x7 = _rows(before)
    y0, y1, y2, y3, y4, y5, y6, y7 = _rows(after)
    aa0 = aa1 = aa2 = aa3 = aa4 = aa5 = aa6 = aa7 = zeros(before)
    ad0 = ad1 = ad2 = ad3 = ad4 = ad5 = ad6 = ad7 = zeros(before)
    dd0 = dd1 = dd2 = dd3 = dd4 = dd5 = dd6 = dd7 = zeros(before)
    of_aa, of_ad, of_dd = columns[0], columns[1], columns[2]
    for j in range(0, whole, 8):
        aa, ad, dd = load(of_aa, j, x0), load(of_ad, j, x0), load(of_dd, j, x0)
        a = load(x0, j, x0)
        d = minus(load(y0, j, x0), a)
        aa0, ad0, dd0 = fused(a, a, aa0), fused(a, d, ad0), fused(d, d, dd0)
        aa, ad, dd = fused(a, a, aa), fused(a, d, ad), fused(d, d, dd)
        a = load(x1, j, x0)
        d = minus(load(y1, j, x0), a)
        aa1, ad1, dd1 = fused(a, a, aa1), fused(a, d, ad1), fused(d, d, dd1)
        aa, ad, dd = fused(a, a, aa), fused(a, d, ad), fused(d, d, dd)
        a = load(x2, j, x0)
        d = minus(load(y2, j, x0), a)
        aa2, ad2, dd2 = fused(a, a, aa2), fused(a, d, ad2), fused(d, d, dd2)
        aa, ad, dd = fused(a, a, aa), fused(a, d, ad), fused(d, d, dd)
        a = load(x3, j, x0)
        d = minus(load(y3, j, x0), a)
        aa3, ad3, dd3 = fused(a, a, aa3), fused(a, d, ad3), fused(d, d, dd3)
        aa, ad, dd = fused(a, a, aa), fused(a, d, ad), fused(d, d, dd)
        a = load(x4, j, x0)
        d = minus(load(y4, j, x0), a)
        aa4, ad4, dd4 = fused(a, a, aa4), fused(a, d, ad4), fused(d, d, dd4)
        aa, ad, dd = fused(a, a, aa), fused(a, d, ad), fused(d, d, dd)
        a = load(x5, j, x0)
        d = minus(load(y5, j, x0), a)
        aa5, ad5, dd5 = fused(a, a, aa5), fused(a, d, ad5), fused(d, d, dd5)
        aa, ad, dd = fused(a, a, aa), fused(a, d, ad), fused(d, d, dd)
        a = load(x6, j, x0)
        d = minus(load(y6, j, x0), a)
        aa6, ad6, dd6 = fused(a, a, aa6), fused(a, d, ad6), fused(d, d, dd6)
        aa, ad, dd = fused(a, a, aa), fused(a, d, ad), fused(d, d, dd)
        a = load(x7, j, x0)
        d = minus(load(y7, j, x0), a)
        aa7, ad7, dd7 = fused(a, a, aa7), fused(a, d, ad7), fused(d, d, dd7)
        aa, ad, dd = fused(a, a, aa), fused(a, d, ad), fused(d, d, dd)
        store(of_aa, j, aa)
        store(of_ad, j, ad)
        store(of_dd, j, dd)
    _add(rows[0], anew, totals(aa0, aa1, aa2, aa3, aa4, aa5, aa6, aa7))
    _add(rows[1], anew, totals(ad0, ad1, ad2, ad3, ad4, ad5, ad6, ad7))
    _add(rows[2], anew, totals(dd0, dd1, dd2, dd3, dd4, dd5, dd6, dd7))


@inlined
def _rows(block: NDArray[Any]) -> Any:
    return block[0], block[1], block[2], block[3], block[4], block[5], block[6], block[7]


@inlined
def _add(sums: NDArray[Any], anew: bool, of_rows: Any) -> None:
    store(sums, 0, of_rows if anew else plus(load(sums, 0, sums), of_rows))
