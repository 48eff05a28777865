"""What works on 64 bytes at once does what it says, number for number, and sums in the order that it says."""

import numba
import numpy as np
import pytest

from deltaw.adapters.compiled.lanes import (
    aligned,
    count,
    fetch,
    fused,
    load,
    minus,
    plus,
    spread,
    store,
    times,
    total,
    totals,
    zeros,
)


@numba.njit
def worked(x, y, out):
    """Write y at an odd place, x[1] everywhere, a·b, a + b, a − b, a·b + c and zeros; return the total of the first."""
    a, b, c = load(y, 3, x), spread(x, 1), load(x, 5, x)
    fetch(x, 10**6)  # beyond the end: nothing happens
    store(out[0], 0, a)
    store(out[1], 0, b)
    store(out[2], 0, times(a, c))
    store(out[3], 0, plus(a, c))
    store(out[4], 0, minus(a, c))
    store(out[5], 0, fused(a, b, c))
    store(out[6], 0, zeros(x))
    return total(a), count(x)


@numba.njit
def places(x, length):
    room = aligned(length, x)
    return room.ctypes.data % 64, len(room), room.sum()


@pytest.mark.parametrize(("wide", "narrow"), [("float64", "float64"), ("float64", "float32"), ("float32", "float32")])
def test_every_operation_is_numpys(wide, narrow):
    draw = np.random.default_rng(0)
    lanes = 64 // np.dtype(wide).itemsize
    x, y = draw.standard_normal(40).astype(wide), draw.standard_normal(40).astype(narrow)
    out = np.full((7, lanes), 9, wide)
    found, counted = worked(x, y, out)
    a, b, c = y[3 : 3 + lanes].astype(wide), np.full(lanes, x[1]), x[5 : 5 + lanes]
    assert counted == lanes
    for row, want in zip(out, (a, b, a * c, a + c, a - c), strict=False):
        assert np.array_equal(row, want)
    np.testing.assert_allclose(out[5], a * b + c, rtol=4 * np.finfo(wide).eps, atol=np.finfo(wide).eps)
    assert not out[6].any()
    while len(a) > 1:
        a = a[: len(a) // 2] + a[len(a) // 2 :]
    assert found == a[0]


@pytest.mark.parametrize("length", [1, 7, 1000])
def test_memory_begins_at_a_line_of_the_cache(length):
    for dtype in ("float32", "float64"):
        assert places(np.ones(3, dtype), length) == (0, length, 0)


@numba.njit
def eight_totals(x, out):
    a, b, c, d = load(x[0], 0, x), load(x[1], 0, x), load(x[2], 0, x), load(x[3], 0, x)
    e, f, g, h = load(x[4], 0, x), load(x[5], 0, x), load(x[6], 0, x), load(x[7], 0, x)
    store(out, 0, totals(a, b, c, d, e, f, g, h))


def test_eight_totals_at_once():
    x, out = np.random.default_rng(0).standard_normal((8, 8)), np.empty(8)
    eight_totals(x, out)
    pairs = x[:, ::2] + x[:, 1::2]
    fours = pairs[:, ::2] + pairs[:, 1::2]
    assert np.array_equal(out, fours[:, 0] + fours[:, 1])
