"""Leading subspaces, their rotation, drift and off-principal share, against plain algebra and exact arithmetic."""

import math

import mpmath
import numpy as np
import pytest
import torch

from deltaw.adapters.errors import NonFiniteError, OptionError, ShapeError
from deltaw.analysis.measures.drift import spectral_drift
from deltaw.analysis.measures.off_principal_share import off_principal
from deltaw.analysis.measures.principal import Principal, by_gram, by_svd, held_by
from deltaw.analysis.measures.principal_rotation import rotation

SIDES = ("both", "left", "right")


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def decaying(out, columns, seed=0, power=0.5):
    """A matrix whose singular values fall off, as those of trained weights do."""
    m = min(out, columns)
    left, right = (torch.linalg.qr(random(n, m, seed=seed + i)).Q for i, n in enumerate((out, columns)))
    return left * torch.arange(1, m + 1, dtype=torch.float64) ** -power @ right.T


def exact(before, after, k, digits=60):
    """The largest angles in degrees, the drift and the off-principal shares in exact arithmetic."""
    with mpmath.workdps(digits):
        old, new = (mpmath.matrix(matrix.tolist()) for matrix in (before, after))
        (u, s, v), (u1, s1, v1) = (mpmath.svd_r(matrix) for matrix in (old, new))
        n = len(s)
        angles = []
        for one, other in ((u[:, :k], u1[:, :k]), (v[:k, :].T, v1[:k, :].T)):
            sine = max(mpmath.svd_r(other - one * (one.T * other), compute_uv=False))
            angles.append(float(mpmath.degrees(mpmath.asin(min(sine, mpmath.mpf(1))))))
        size = mpmath.sqrt(sum(x**2 for x in s))
        drift = mpmath.sqrt(sum((s1[i] - s[i]) ** 2 for i in range(n))) / size
        update = new - old

        def squared(matrix):
            return sum(x**2 for x in matrix)

        p, q = u[:, :k] * u[:, :k].T, v[:k, :].T * v[:k, :]
        shares = [float(1 - squared(part) / squared(update)) for part in (p * update * q, p * update, update * q)]
        return angles, float(drift), dict(zip(SIDES, shares, strict=True))


@pytest.mark.parametrize("size", [1e-1, 1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize("shape", [(7, 5), (5, 8), (6, 6)], ids=str)
def test_against_exact_arithmetic(size, shape):
    before = random(*shape)
    after = before + size * random(*shape, seed=1)
    (left, right), drift, shares = exact(before, after, k=2)
    found = rotation(before, after, k=2)
    for got, want in ((found.left, left), (found.right, right)):
        assert abs(got - want) <= found.error
        assert got == pytest.approx(want, rel=max(1e-12, 1e-15 / size))
    moved = spectral_drift(before, after)
    assert abs(float(moved) - drift) <= moved.error
    assert float(moved) == pytest.approx(drift, rel=max(1e-12, 1e-15 / size))
    for side, want in shares.items():
        assert off_principal(before, after, 2, sides=side) == pytest.approx(want, rel=max(1e-12, 1e-14 / size))


@pytest.mark.parametrize("outside", [1e-3, 1e-6, 1e-9])
def test_a_small_share_outside_is_not_lost_in_the_difference_from_one(outside):
    before = torch.diag(torch.tensor([5.0, 4.0, 2.0, 1.0], dtype=torch.float64))
    update = torch.zeros(4, 4, dtype=torch.float64)
    update[0, 1] = 1.0
    update[0, 3] = outside  # within the left subspace, outside the right one
    share = outside**2 / (1 + outside**2)
    u, v = torch.eye(4, dtype=torch.float64)[:, :1], update[:1]
    for found in (
        {side: off_principal(torch.diag(torch.diag(before)), before + update, 2, sides=side) for side in SIDES},
        {side: off_principal(before, k=2, sides=side, factors=(u, v)) for side in SIDES},
    ):
        assert found["left"] == 0.0
        assert found["both"] == pytest.approx(share, rel=1e-9)
        assert found["right"] == pytest.approx(share, rel=1e-9)


@pytest.mark.parametrize("shape", [(150, 130), (130, 200), (160, 160)], ids=str)
@pytest.mark.parametrize("size", [1e-1, 1e-3, 1e-5])
def test_the_gram_matrix_gives_what_the_decomposition_gives(shape, size):
    before = decaying(*shape)
    after = before + size * random(*shape, seed=5) / 10
    found, slow = rotation(before, after, k=8), [by_svd(matrix, lambda _: 8) for matrix in (before, after)]
    assert found.route == "gram"
    for got, one, other in ((found.left, slow[0].left, slow[1].left), (found.right, slow[0].right, slow[1].right)):
        sine = float(torch.linalg.svdvals(other - one @ (one.T @ other))[0])
        assert got == pytest.approx(math.degrees(math.asin(sine)), rel=2e-6)
    torch.testing.assert_close(found.block.abs(), (slow[0].left.T @ after @ slow[0].right).abs(), rtol=0, atol=1e-9)
    values = slow[0].values, slow[1].values
    want = float((values[1] - values[0]).norm() / values[0].norm())
    assert float(spectral_drift(before, after)) == pytest.approx(want, rel=2e-6)


@pytest.mark.parametrize("shape", [(150, 130), (130, 200)], ids=str)
def test_the_bounds_hold(shape):
    matrix = decaying(*shape, power=1.0)
    quick, slow = by_gram(matrix, lambda _: 10), by_svd(matrix, lambda _: 10)
    assert bool(((quick.values - slow.values).abs() <= quick.errors + slow.errors).all())
    for one, other in ((quick.left, slow.left), (quick.right, slow.right)):
        assert float(torch.linalg.svdvals(other - one @ (one.T @ other))[0]) <= quick.turned + slow.turned
        torch.testing.assert_close(one.T @ one, torch.eye(10, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(quick.left.T @ matrix @ quick.right, torch.diag(slow.values[:10]), rtol=0, atol=1e-10)


def test_a_tiny_update_of_a_large_matrix_goes_by_the_decomposition():
    before = decaying(140, 140)
    found = rotation(before, before + 1e-11 * random(140, 140, seed=3), k=8)
    assert found.route == "svd"
    assert 0 < found.left < 1e-5
    assert found.error < 1e-8


def test_nothing_moved_and_only_the_scale_moved():
    before = decaying(140, 150)
    same = rotation(before, before.clone(), k=5)
    assert (same.left, same.right, same.error, same.route, same.block_change) == (0.0, 0.0, 0.0, "same", 0.0)
    assert float(spectral_drift(before, before.clone())) == 0.0
    assert math.isnan(off_principal(before, before))
    twice = rotation(before, 2 * before, k=5)
    assert max(twice.left, twice.right) < 1e-10
    assert twice.block_change == pytest.approx(1.0)
    assert float(spectral_drift(before, 2 * before)) == pytest.approx(1.0)
    assert spectral_drift(before, 2 * before).relative.tolist() == pytest.approx([1.0] * 140)


def test_a_rotation_turns_and_does_not_drift():
    before = decaying(20, 12)
    turn = torch.linalg.qr(random(20, 20, seed=9)).Q
    found = rotation(before, turn @ before, k=3)
    assert found.left > 10
    assert found.right < 1e-6
    assert float(spectral_drift(before, turn @ before)) < 1e-14


def test_equal_singular_values_have_no_subspace():
    before = torch.diag(torch.tensor([3.0, 2.0, 2.0, 1.0], dtype=torch.float64))
    after = before + 1e-3 * random(4, 4)
    found = rotation(before, after, k=2)
    assert found.gap == 0.0
    assert math.isnan(found.left)
    assert math.isnan(found.right)
    assert math.isnan(off_principal(before, after, 2))
    for k in (1, 3):  # the others are well defined
        assert 0 < rotation(before, after, k=k).left < 1
        assert 0 < off_principal(before, after, k) < 1
    zero = torch.zeros(3, 4)
    assert math.isnan(rotation(zero, torch.ones(3, 4), k=2).left)
    assert math.isnan(float(spectral_drift(zero, torch.ones(3, 4))))


def test_the_whole_space_does_not_turn():
    before, after = random(3, 9), random(3, 9, seed=1)
    found = rotation(before, after, k=3)
    assert found.left == 0.0
    assert found.right > 10
    assert off_principal(before, after, 3, sides="left") < 1e-30


def test_k_by_energy():
    values = torch.tensor([3.0, 2.0, 1.0, 0.5])
    energy = values.double().square().cumsum(0) / values.double().square().sum()
    for share in (0.1, 0.5, 0.63, 0.64, 0.9, 0.99, 0.999999):
        assert held_by(values, share) == int((energy < share).sum()) + 1
    assert held_by(1e-200 * values.double(), 0.9) == held_by(values, 0.9)
    before = torch.diag(values)
    assert rotation(before, before + 0.01, k=0.9).k == Principal(before, 0.9).k == 2
    assert Principal(torch.zeros(2, 2), 0.9).k == 1


@pytest.mark.parametrize("rank", [1, 4, 30])
def test_factors_give_the_share_of_their_product(rank):
    before = decaying(40, 28)
    u, v = random(40, rank, seed=1), random(rank, 28, seed=2)
    base = Principal(before, 6)
    for side in SIDES:
        dense = off_principal(before, before + u @ v, 6, sides=side)
        assert off_principal(base, sides=side, factors=(u, v)) == pytest.approx(dense, rel=1e-12)
        assert off_principal(base, sides=side, factors=(1e-170 * u, 1e-170 * v)) == pytest.approx(dense, rel=1e-12)
    assert math.isnan(off_principal(base, factors=(u, 0 * v)))


def test_a_share_is_a_share():
    before = decaying(12, 9)
    for seed in range(50):
        shares = [off_principal(before, before + random(12, 9, seed=seed), 4, sides=side) for side in SIDES]
        assert 0 <= max(shares[1:]) <= shares[0] <= 1


def test_arrays_and_dtypes():
    before = np.diag([3.0, 2.0, 1.0]).astype(np.float32)
    after = before.copy()
    after[2, 0] = 0.25
    assert rotation(before, after, 1).left == pytest.approx(rotation(torch.from_numpy(before), after, 1).left)
    half = torch.from_numpy(before).bfloat16()
    assert rotation(half, torch.from_numpy(after).bfloat16(), 1).left == rotation(before, after, 1).left
    assert off_principal(before, after, 1) == 1.0


def test_wrong_calls_are_named():
    good = random(4, 3)
    for call, error, text in (
        (lambda: rotation(good, good, k=0), OptionError, "k is 0; choose a whole number from 1 to 3"),
        (lambda: rotation(good, good, k=4), OptionError, "k is 4"),
        (lambda: rotation(good, good, k=1.5), OptionError, "k is 1.5"),
        (lambda: rotation(good, good, k=True), OptionError, "k is True"),
        (lambda: rotation(good, random(3, 4), k=1), ShapeError, "after has shape"),
        (lambda: rotation(good, "x", k=1), OptionError, "after is str"),
        (lambda: rotation(good * math.inf, good, k=1), NonFiniteError, "before holds NaN"),
        (lambda: spectral_drift(good, random(3, 4)), ShapeError, "after has shape"),
        (lambda: off_principal(good, good, 1, sides="up"), OptionError, "sides is 'up'"),
        (lambda: off_principal(good, k=1), OptionError, "pass either after"),
        (lambda: off_principal(good, good, 1, factors=(good, good)), OptionError, "pass either after"),
        (lambda: off_principal(good, k=1, factors=(good, good)), ShapeError, "factors have shapes"),
    ):
        with pytest.raises(error, match=text):
            call()
