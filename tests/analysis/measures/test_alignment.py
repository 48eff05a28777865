"""How parallel two updates are: from factors as dense, to the last digits where the numbers cancel."""

import math

import mpmath
import numpy as np
import pytest
import torch

from deltaw.adapters import NonFiniteError, ShapeError
from deltaw.analysis.measures.alignment import alignment


def factors(seed, out=24, width=17, rank=3):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((out, rank), (rank, width)))


def test_factors_and_dense_matrices_give_the_same():
    one, two = factors(0), factors(1, rank=5)
    a, b = (u @ v for u, v in (one, two))
    for first, second in ((one, two), (a, two), (one, b), (a.numpy(), b.numpy())):
        found = alignment(first, second)
        assert found.cosine == pytest.approx(float((a * b).sum() / (a.norm() * b.norm())), rel=1e-12)
        assert found.difference == pytest.approx(float((a - b).norm()), rel=1e-12)
        assert (found.first, found.second) == pytest.approx((float(a.norm()), float(b.norm())), rel=1e-12)
        assert found.relative == pytest.approx(2 * found.difference / (found.first + found.second))


@pytest.mark.parametrize("step", [1e-3, 1e-9])
def test_a_small_difference_of_factors_keeps_its_digits(step):
    u, v = factors(0)
    moved = u + step * factors(2)[0]
    found = alignment((u, v), (moved, v))
    with mpmath.workdps(50):
        d = mpmath.matrix((moved.numpy() - u.numpy()).tolist()) * mpmath.matrix(v.numpy().tolist())
        want = mpmath.sqrt(sum(d[i, j] ** 2 for i in range(d.rows) for j in range(d.cols)))
    assert found.difference == pytest.approx(float(want), rel=1e-14 / step)


def test_zeros_shapes_and_what_is_not_finite():
    zero = torch.zeros(3, 4)
    found = alignment(zero, zero)
    assert math.isnan(found.cosine)
    assert (found.difference, found.relative) == (0.0, 0.0)
    assert alignment(torch.ones(3, 4), -torch.ones(3, 4)).cosine == -1.0
    with pytest.raises(ShapeError, match=r"first has shape \(3, 4\) and second has shape \(4, 3\)"):
        alignment(zero, zero.T)
    with pytest.raises(ShapeError, match="second has factors"):
        alignment(zero, (torch.ones(3, 2), torch.ones(3, 4)))
    with pytest.raises(NonFiniteError):
        alignment(zero, torch.full((3, 4), torch.nan))


def test_unrelated_updates_have_the_spread_that_is_given():
    generator = torch.Generator().manual_seed(0)
    pairs = [[torch.randn(16, 25, generator=generator) for _ in range(2)] for _ in range(400)]
    cosines = [alignment(*pair).cosine for pair in pairs]
    assert np.std(cosines) == pytest.approx(alignment(*pairs[0]).chance, rel=0.1)
    assert abs(np.mean(cosines)) < 4 * alignment(*pairs[0]).chance / 20
