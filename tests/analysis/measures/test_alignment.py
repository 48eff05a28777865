"""How parallel two updates are: from factors as dense, to the last digits where the numbers cancel."""

import math

import mpmath
import numpy as np
import pytest
import torch

from deltaw.adapters import NonFiniteError, ShapeError
from deltaw.analysis import update_cosine
from deltaw.analysis.measures.alignment import alignment
from deltaw.analysis.measures.chance import cosine_spread


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


def exact(*matrices):
    """⟨A, B⟩/(‖A‖‖B‖) of factor pairs, in 60 digits."""
    with mpmath.workdps(60):
        a, b = (mpmath.matrix(u.numpy().tolist()) * mpmath.matrix(v.numpy().tolist()) for u, v in matrices)
        places = [(i, j) for i in range(a.rows) for j in range(a.cols)]
        inner = mpmath.fsum(a[p] * b[p] for p in places)
        norms = [mpmath.sqrt(mpmath.fsum(m[p] ** 2 for p in places)) for m in (a, b)]
        return float(inner / norms[0] / norms[1])


@pytest.mark.parametrize("share", [1.0, 1e-4, 1e-7])
def test_the_cosine_keeps_its_digits_where_the_factors_columns_cancel(share):
    """Columns that nearly cancel: the textbook sum of products of factors loses them squared."""
    u, v = factors(3, rank=2)
    pairs = []
    for seed in (4, 5):
        d = factors(seed, rank=2)[0] * share
        pairs.append((torch.cat([u + d, u], 1), torch.cat([v, -v], 0)))
    want = exact(*pairs)
    assert update_cosine(*pairs) == pytest.approx(want, abs=3e-14 / share)
    dense = [(a @ b).numpy() for a, b in pairs]
    assert update_cosine(*dense) == pytest.approx(want, abs=3e-14 / share)
    textbook = [float((p[0].T @ q[0] * (p[1] @ q[1].T)).sum()) for p, q in (pairs, pairs[:1] * 2, pairs[1:] * 2)]
    if share == 1e-7:
        assert textbook[0] / math.sqrt(abs(textbook[1] * textbook[2])) != pytest.approx(want, abs=1e-3)


def test_the_cosine_of_every_form_is_that_of_the_dense_updates():
    one, two = factors(0), factors(1, rank=5)
    a, b = (u @ v for u, v in (one, two))
    want = float((a * b).sum() / (a.norm() * b.norm()))
    for first, second in ((one, two), (a, two), (one, b), (a, b), (b, a)):
        assert update_cosine(first, second) == pytest.approx(want, rel=1e-13)
    tiny = [(1e-200 * u, 1e-80 * v) for u, v in (one, two)]
    assert update_cosine(*tiny) == pytest.approx(want, rel=1e-13)
    assert update_cosine(1e-280 * a, 1e-290 * b) == pytest.approx(want, rel=1e-13)
    assert update_cosine(one, tuple(-f for f in one)) == pytest.approx(1.0)
    assert update_cosine(a, -3 * a) == -1.0
    wide = torch.randn(600, 1000, generator=torch.Generator().manual_seed(0))  # more rows than one part has
    assert update_cosine(wide, wide.bfloat16()) == pytest.approx(
        float(torch.nn.functional.cosine_similarity(wide.double().ravel(), wide.bfloat16().double().ravel(), dim=0))
    )


def test_the_spread_of_the_cosine_does_not_depend_on_the_ranks_and_its_tails_do():
    for rank, kurtosis in ((1, 9.0), (12, None)):
        draws = [factors(seed, out=40, width=50, rank=rank) for seed in range(3000)]
        found = np.array([update_cosine(*pair) for pair in zip(draws[::2], draws[1::2], strict=True)])
        assert found.std() == pytest.approx(cosine_spread(40, 50), rel=0.1)
        if kurtosis:
            assert (found**4).mean() / (found**2).mean() ** 2 == pytest.approx(kurtosis, rel=0.35)


def test_a_common_first_factor_is_no_chance():
    """Adapters of one seed start from the same A: their updates share its span."""
    v = factors(0, rank=4, width=400)[1]
    found = [update_cosine((factors(2 * s, rank=4)[0], v), (factors(2 * s + 1, rank=4)[0], v)) for s in range(300)]
    assert np.std(found) == pytest.approx(1 / math.sqrt(24 * 4), rel=0.15)
