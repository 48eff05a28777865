"""What ``compiled.sums`` does with a few rows of two or three matrices: the sums of one pair or two, and of squares.

Every sum is taken in one order, with whatever it is taken together. The squares of float32 are exact in float64, so
that it makes no difference to them whether the product is rounded before it is added.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deltaw.adapters.compiled.lanes import fetch, fused, load, minus, plus, store, times, total, zeros
from deltaw.adapters.compiled.loops import inlined

_TILE = 512  # columns whose sums fit into the innermost cache


@inlined
def two_pairs(
    a: NDArray[Any],
    b: NDArray[Any],
    c: NDArray[Any],
    ahead: NDArray[Any],
    top: int,
    bottom: int,
    rows_ad: NDArray[Any],
    rows_dd: NDArray[Any],
    rows_be: NDArray[Any],
    rows_ee: NDArray[Any],
    rows_bb: NDArray[Any],
    columns_ad: NDArray[Any],
    columns_dd: NDArray[Any],
    columns_be: NDArray[Any],
    columns_ee: NDArray[Any],
    columns_bb: NDArray[Any],
) -> None:
    """Σ_j a·d, Σ_j d², d = c − a, Σ_j b·e, Σ_j e², e = c − b, and Σ_j b² of some rows, and Σ_i added to the columns."""
    width = a.shape[1]
    like, whole, by_four = columns_ad, width - width % 8, bottom - (bottom - top) % 4
    for i in range(top, bottom):
        rows_ad[i] = rows_dd[i] = rows_be[i] = rows_ee[i] = rows_bb[i] = 0
    for left in range(0, whole, _TILE):
        right = min(left + _TILE, whole)
        for i in range(top, by_four, 4):  # what is read and written of the columns is shared by four rows
            a0, a1, a2, a3 = a[i], a[i + 1], a[i + 2], a[i + 3]
            b0, b1, b2, b3 = b[i], b[i + 1], b[i + 2], b[i + 3]
            c0, c1, c2, c3 = c[i], c[i + 1], c[i + 2], c[i + 3]
            coming = ahead[i - top]  # of four rows: they follow each other in memory
            ad0 = ad1 = ad2 = ad3 = dd0 = dd1 = dd2 = dd3 = bb0 = bb1 = bb2 = bb3 = zeros(like)
            be0 = be1 = be2 = be3 = ee0 = ee1 = ee2 = ee3 = zeros(like)
            for j in range(left, right, 8):
                of_ad, of_dd = load(columns_ad, j, like), load(columns_dd, j, like)
                of_be, of_ee, of_bb = load(columns_be, j, like), load(columns_ee, j, like), load(columns_bb, j, like)
                fetch(coming, 4 * j)
                fetch(coming, 4 * j + 16)
                z, x, y = load(c0, j, like), load(a0, j, like), load(b0, j, like)
                ad0, dd0, of_ad, of_dd = _products(x, minus(z, x), ad0, dd0, of_ad, of_dd)
                be0, ee0, of_be, of_ee = _products(y, minus(z, y), be0, ee0, of_be, of_ee)
                bb0, of_bb = _squares(y, bb0, of_bb)
                z, x, y = load(c1, j, like), load(a1, j, like), load(b1, j, like)
                ad1, dd1, of_ad, of_dd = _products(x, minus(z, x), ad1, dd1, of_ad, of_dd)
                be1, ee1, of_be, of_ee = _products(y, minus(z, y), be1, ee1, of_be, of_ee)
                bb1, of_bb = _squares(y, bb1, of_bb)
                z, x, y = load(c2, j, like), load(a2, j, like), load(b2, j, like)
                ad2, dd2, of_ad, of_dd = _products(x, minus(z, x), ad2, dd2, of_ad, of_dd)
                be2, ee2, of_be, of_ee = _products(y, minus(z, y), be2, ee2, of_be, of_ee)
                bb2, of_bb = _squares(y, bb2, of_bb)
                z, x, y = load(c3, j, like), load(a3, j, like), load(b3, j, like)
                ad3, dd3, of_ad, of_dd = _products(x, minus(z, x), ad3, dd3, of_ad, of_dd)
                be3, ee3, of_be, of_ee = _products(y, minus(z, y), be3, ee3, of_be, of_ee)
                bb3, of_bb = _squares(y, bb3, of_bb)
                store(columns_ad, j, of_ad)
                store(columns_dd, j, of_dd)
                store(columns_be, j, of_be)
                store(columns_ee, j, of_ee)
                store(columns_bb, j, of_bb)
            _add(rows_ad, i, ad0, ad1, ad2, ad3)
            _add(rows_dd, i, dd0, dd1, dd2, dd3)
            _add(rows_be, i, be0, be1, be2, be3)
            _add(rows_ee, i, ee0, ee1, ee2, ee3)
            _add(rows_bb, i, bb0, bb1, bb2, bb3)
    _left_of_pair(a, c, top, bottom, by_four, whole, rows_ad, rows_dd, columns_ad, columns_dd)
    _left_of_pair(b, c, top, bottom, by_four, whole, rows_be, rows_ee, columns_be, columns_ee)
    _left_of_squares(b, top, bottom, by_four, whole, rows_bb, columns_bb)


@inlined
def pair_and_squares(
    a: NDArray[Any],
    c: NDArray[Any],
    ahead: NDArray[Any],
    top: int,
    bottom: int,
    rows_ad: NDArray[Any],
    rows_dd: NDArray[Any],
    rows_aa: NDArray[Any],
    columns_ad: NDArray[Any],
    columns_dd: NDArray[Any],
    columns_aa: NDArray[Any],
) -> None:
    """Σ_j a·d, Σ_j d², d = c − a, and Σ_j a² of some rows, and Σ_i of them added to the columns."""
    width = a.shape[1]
    like, whole, by_four = columns_ad, width - width % 8, bottom - (bottom - top) % 4
    for i in range(top, bottom):
        rows_ad[i] = rows_dd[i] = rows_aa[i] = 0
    for left in range(0, whole, _TILE):
        right = min(left + _TILE, whole)
        for i in range(top, by_four, 4):
            a0, a1, a2, a3 = a[i], a[i + 1], a[i + 2], a[i + 3]
            c0, c1, c2, c3 = c[i], c[i + 1], c[i + 2], c[i + 3]
            coming = ahead[i - top]
            ad0 = ad1 = ad2 = ad3 = dd0 = dd1 = dd2 = dd3 = aa0 = aa1 = aa2 = aa3 = zeros(like)
            for j in range(left, right, 8):
                of_ad, of_dd, of_aa = load(columns_ad, j, like), load(columns_dd, j, like), load(columns_aa, j, like)
                fetch(coming, 4 * j)
                fetch(coming, 4 * j + 16)
                x = load(a0, j, like)
                ad0, dd0, of_ad, of_dd = _products(x, minus(load(c0, j, like), x), ad0, dd0, of_ad, of_dd)
                aa0, of_aa = _squares(x, aa0, of_aa)
                x = load(a1, j, like)
                ad1, dd1, of_ad, of_dd = _products(x, minus(load(c1, j, like), x), ad1, dd1, of_ad, of_dd)
                aa1, of_aa = _squares(x, aa1, of_aa)
                x = load(a2, j, like)
                ad2, dd2, of_ad, of_dd = _products(x, minus(load(c2, j, like), x), ad2, dd2, of_ad, of_dd)
                aa2, of_aa = _squares(x, aa2, of_aa)
                x = load(a3, j, like)
                ad3, dd3, of_ad, of_dd = _products(x, minus(load(c3, j, like), x), ad3, dd3, of_ad, of_dd)
                aa3, of_aa = _squares(x, aa3, of_aa)
                store(columns_ad, j, of_ad)
                store(columns_dd, j, of_dd)
                store(columns_aa, j, of_aa)
            _add(rows_ad, i, ad0, ad1, ad2, ad3)
            _add(rows_dd, i, dd0, dd1, dd2, dd3)
            _add(rows_aa, i, aa0, aa1, aa2, aa3)
    _left_of_pair(a, c, top, bottom, by_four, whole, rows_ad, rows_dd, columns_ad, columns_dd)
    _left_of_squares(a, top, bottom, by_four, whole, rows_aa, columns_aa)


@inlined
def pair(
    a: NDArray[Any],
    c: NDArray[Any],
    ahead: NDArray[Any],
    top: int,
    bottom: int,
    rows_ad: NDArray[Any],
    rows_dd: NDArray[Any],
    columns_ad: NDArray[Any],
    columns_dd: NDArray[Any],
) -> None:
    """Σ_j a·d and Σ_j d², d = c − a, of some rows, and Σ_i of them added to the columns."""
    width = a.shape[1]
    like, whole, by_four = columns_ad, width - width % 8, bottom - (bottom - top) % 4
    for i in range(top, bottom):
        rows_ad[i] = rows_dd[i] = 0
    for left in range(0, whole, _TILE):
        right = min(left + _TILE, whole)
        for i in range(top, by_four, 4):
            a0, a1, a2, a3 = a[i], a[i + 1], a[i + 2], a[i + 3]
            c0, c1, c2, c3 = c[i], c[i + 1], c[i + 2], c[i + 3]
            coming = ahead[i - top]
            ad0 = ad1 = ad2 = ad3 = dd0 = dd1 = dd2 = dd3 = zeros(like)
            for j in range(left, right, 8):
                of_ad, of_dd = load(columns_ad, j, like), load(columns_dd, j, like)
                fetch(coming, 4 * j)
                fetch(coming, 4 * j + 16)
                x = load(a0, j, like)
                ad0, dd0, of_ad, of_dd = _products(x, minus(load(c0, j, like), x), ad0, dd0, of_ad, of_dd)
                x = load(a1, j, like)
                ad1, dd1, of_ad, of_dd = _products(x, minus(load(c1, j, like), x), ad1, dd1, of_ad, of_dd)
                x = load(a2, j, like)
                ad2, dd2, of_ad, of_dd = _products(x, minus(load(c2, j, like), x), ad2, dd2, of_ad, of_dd)
                x = load(a3, j, like)
                ad3, dd3, of_ad, of_dd = _products(x, minus(load(c3, j, like), x), ad3, dd3, of_ad, of_dd)
                store(columns_ad, j, of_ad)
                store(columns_dd, j, of_dd)
            _add(rows_ad, i, ad0, ad1, ad2, ad3)
            _add(rows_dd, i, dd0, dd1, dd2, dd3)
    _left_of_pair(a, c, top, bottom, by_four, whole, rows_ad, rows_dd, columns_ad, columns_dd)


@inlined
def _products(x: Any, d: Any, ad: Any, dd: Any, of_ad: Any, of_dd: Any) -> Any:
    """Add a·d and d² to the sums of a row, and to those of some columns."""
    return fused(x, d, ad), fused(d, d, dd), fused(x, d, of_ad), fused(d, d, of_dd)


@inlined
def _squares(x: Any, aa: Any, of_aa: Any) -> Any:
    """Add a² to the sums of a row, and to those of some columns; the units for products have enough to do."""
    square = times(x, x)
    return plus(aa, square), plus(of_aa, square)


@inlined
def _add(rows: NDArray[Any], i: int, of_0: Any, of_1: Any, of_2: Any, of_3: Any) -> None:
    rows[i] += total(of_0)
    rows[i + 1] += total(of_1)
    rows[i + 2] += total(of_2)
    rows[i + 3] += total(of_3)


@inlined
def _left_of_pair(
    a: NDArray[Any],
    c: NDArray[Any],
    top: int,
    bottom: int,
    by_four: int,
    whole: int,
    rows_ad: NDArray[Any],
    rows_dd: NDArray[Any],
    columns_ad: NDArray[Any],
    columns_dd: NDArray[Any],
) -> None:
    """Add what is no multiple of four rows and of eight columns: Σ a·d and Σ d²."""
    like, width = columns_ad, a.shape[1]
    for left in range(0, whole, _TILE):
        right = min(left + _TILE, whole)
        for i in range(by_four, bottom):
            a0, c0 = a[i], c[i]
            ad = dd = zeros(like)
            for j in range(left, right, 8):
                x = load(a0, j, like)
                of_ad, of_dd = load(columns_ad, j, like), load(columns_dd, j, like)
                ad, dd, of_ad, of_dd = _products(x, minus(load(c0, j, like), x), ad, dd, of_ad, of_dd)
                store(columns_ad, j, of_ad)
                store(columns_dd, j, of_dd)
            rows_ad[i] += total(ad)
            rows_dd[i] += total(dd)
    for i in range(top, bottom):
        for j in range(whole, width):
            x = np.float64(a[i, j])
            d = np.float64(c[i, j]) - x
            rows_ad[i] += x * d
            rows_dd[i] += d * d
            columns_ad[j] += x * d
            columns_dd[j] += d * d


@inlined
def _left_of_squares(
    a: NDArray[Any],
    top: int,
    bottom: int,
    by_four: int,
    whole: int,
    rows_aa: NDArray[Any],
    columns_aa: NDArray[Any],
) -> None:
    """Add what is no multiple of four rows and of eight columns: Σ a²."""
    like, width = columns_aa, a.shape[1]
    for left in range(0, whole, _TILE):
        right = min(left + _TILE, whole)
        for i in range(by_four, bottom):
            a0, aa = a[i], zeros(like)
            for j in range(left, right, 8):
                aa, of_aa = _squares(load(a0, j, like), aa, load(columns_aa, j, like))
                store(columns_aa, j, of_aa)
            rows_aa[i] += total(aa)
    for i in range(top, bottom):
        for j in range(whole, width):
            x = np.float64(a[i, j])
            rows_aa[i] += x * x
            columns_aa[j] += x * x
