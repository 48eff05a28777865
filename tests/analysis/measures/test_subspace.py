"""Directions, their overlap and the angles between them, against loops and exact arithmetic."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaw.adapters.errors import NonFiniteError, OptionError, ShapeError
from deltaw.analysis.measures.spectrum import spectrum
from deltaw.analysis.measures.subspace import directions, overlap, principal_angles


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def basis(n, k, seed=0):
    return torch.linalg.qr(random(n, k, seed=seed)).Q


ONE_HOT = torch.eye(20, dtype=torch.float64)[[3, 17, 0, 8]]
SCALES = torch.tensor([1e6, 1.0, 1e-3, 1e2])
FACTORS = {
    "generic": (random(30, 4), random(4, 20, seed=1), 4),
    "rank 1": (random(30, 1), random(1, 20, seed=1), 1),
    "more factors than rows": (random(5, 9), random(9, 20, seed=1), 5),
    "float32": (random(30, 4).float(), random(4, 20, seed=1).float(), 4),
    "repeated column": (random(30, 2).repeat(1, 2), random(4, 20, seed=1), 2),
    "zero row in V": (random(30, 4), random(4, 20, seed=1) * torch.tensor([1, 0, 1, 1])[:, None], 3),
    "one-hot": (random(30, 4), ONE_HOT, 4),
    "badly scaled": (random(30, 4) * SCALES, random(4, 20) / SCALES[:, None], 4),
}


@pytest.mark.parametrize("name", FACTORS)
def test_directions_rebuild_the_update(name):
    u, v, rank = FACTORS[name]
    update = u.double() @ v.double()
    for found in (directions(factors=(u, v)), directions(update)):
        assert found.count == rank == found.spectrum.rank == found.left.shape[1] == found.right.shape[1]
        values = found.spectrum.singular_values[:rank]
        rebuilt = found.left * values @ found.right.T
        torch.testing.assert_close(rebuilt, update, rtol=0, atol=1e-12 * float(update.abs().max()))
        for side in (found.left, found.right):
            torch.testing.assert_close(side.T @ side, torch.eye(rank, dtype=torch.float64), rtol=0, atol=1e-13)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 6), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_factors_and_their_product_have_the_same_directions(out, columns, rank, seed):
    u, v = random(out, rank, seed=seed), random(rank, columns, seed=seed + 1)
    cheap, dense = directions(factors=(u, v)), directions(u @ v)
    assert cheap.count == dense.count == min(out, columns, rank)
    for side in ("left", "right"):
        same = (cheap.basis(side) * dense.basis(side)).sum(0).abs()
        torch.testing.assert_close(same, torch.ones_like(same), rtol=0, atol=1e-6)  # close values mix their vectors


def test_what_is_noise_is_no_direction():
    assert directions(torch.zeros(3, 5)).count == 0
    assert directions(factors=(torch.zeros(3, 2), random(2, 5))).count == 0
    base = (random(128, 128) * 0.02).bfloat16()
    merged = (base.double() + 1e-3 * random(128, 4, seed=1) @ random(4, 128, seed=2)).bfloat16()
    read = merged.double() - base.double()
    assert directions(read).count == 128
    found = directions(read, stored=torch.bfloat16, weight=merged)
    assert found.count == 4
    assert found.spectrum.tolerance == spectrum(read, stored=torch.bfloat16, weight=merged).tolerance
    factors = directions(factors=(random(128, 4, seed=1), random(4, 128, seed=2)))
    assert overlap(found.right, factors.right)[3, 3] > 0.99


def test_a_basis_has_as_many_directions_as_there_are():
    found = directions(factors=FACTORS["generic"][:2])
    assert torch.equal(found.basis("left"), found.left)
    assert torch.equal(found.basis("right", 2), found.right[:, :2])
    with pytest.raises(OptionError, match=r"rank is 5, and the update has 4 directions; choose .* from 1 to 4"):
        found.basis("left", 5)
    for rank in (0, True, 1.0):
        with pytest.raises(OptionError, match="rank is"):
            found.basis("left", rank)
    with pytest.raises(OptionError, match="the update is zero"):
        directions(torch.zeros(2, 2)).basis("left", 1)
    with pytest.raises(OptionError, match="side is 'up'"):
        found.basis("up")


def by_loops(first, second):
    """φ(i, j) word by word."""
    a, b = first.numpy(), second.numpy()
    table = np.empty((a.shape[1], b.shape[1]))
    for i in range(1, a.shape[1] + 1):
        for j in range(1, b.shape[1] + 1):
            table[i - 1, j - 1] = np.linalg.norm(a[:, :i].T @ b[:, :j], "fro") ** 2 / min(i, j)
    return table


SIZES = {"n": st.integers(1, 15), "k": st.integers(1, 15), "seed": st.integers(0, 10_000)}


@given(**SIZES, m=st.integers(1, 15))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_overlap_is_its_definition_and_keeps_the_laws(n, k, m, seed):
    k, m = min(k, n), min(m, n)
    a, b, q = basis(n, k, seed), basis(n, m, seed + 1), basis(n, n, seed + 2)
    found = overlap(a, b)
    np.testing.assert_allclose(found, by_loops(a, b), rtol=0, atol=1e-13)
    assert bool(((found >= 0) & (found <= 1)).all())
    torch.testing.assert_close(overlap(b, a), found.T)
    torch.testing.assert_close(overlap(q @ a, q @ b), found, rtol=0, atol=1e-13)  # the space turned
    turn, signs = basis(k, k, seed + 3), torch.sign(random(k, seed=seed))
    torch.testing.assert_close(overlap(a @ turn, b)[-1], found[-1], rtol=0, atol=1e-13)  # the span stays the same
    torch.testing.assert_close(overlap(a * signs, b), found)
    torch.testing.assert_close(overlap(a, a), torch.ones(k, k, dtype=torch.float64))  # nested spans
    for i in range(1, min(k, m) + 1):
        cosines = principal_angles(a[:, :i], b[:, :i]).cos()
        assert math.isclose(found[i - 1, i - 1], cosines.square().mean(), abs_tol=1e-13)


def test_random_directions_overlap_by_chance():
    found = torch.stack([overlap(basis(40, 6, seed), basis(40, 10, seed + 1000)) for seed in range(400)]).mean(0)
    i, j = torch.arange(1, 7)[:, None], torch.arange(1, 11)
    torch.testing.assert_close(found, torch.maximum(i, j) / 40, rtol=0.15, atol=0, check_dtype=False)


def planes(angles, n, seed=0):
    """Two bases with the given angles between them, turned at random, in 50 digits and then rounded."""
    k = len(angles)
    q = basis(n, n, seed)
    with mpmath.workdps(50):
        a = mpmath.matrix(n, k)
        b = mpmath.matrix(n, k)
        for m, angle in enumerate(angles):
            a[m, m] = 1
            b[m, m], b[m + k, m] = mpmath.cos(angle), mpmath.sin(angle)
        exact = mpmath.qr(mpmath.matrix(q.tolist()))[0]
        return [torch.tensor((exact * side).tolist(), dtype=torch.float64) for side in (a, b)]


def test_angles_of_every_size_are_told():
    wanted = [0.0, 1e-14, 1e-9, 1e-6, 0.1, math.pi / 4, 1.2, math.pi / 2 - 1e-6, math.pi / 2 - 1e-13, math.pi / 2]
    a, b = planes(wanted, 24)
    found = principal_angles(a, b)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=2e-15)
    assert float(principal_angles(a, a).max()) <= 1e-15


@pytest.mark.parametrize(("k", "m"), [(1, 1), (2, 2), (3, 2), (2, 4)])
def test_angles_are_their_definition_in_exact_arithmetic(k, m):
    """θ = arccos σ(AᵀB) in 60 digits, for spans that are nearly the same or hold each other."""
    near = basis(6, 6)
    a, b = near[:, :k], torch.linalg.qr(near[:, :m] + 1e-7 * random(6, m, seed=2)).Q
    with mpmath.workdps(60):
        q, r = (mpmath.qr(mpmath.matrix(side.tolist()), mode="skinny")[0] for side in (a, b))
        cosines = mpmath.svd_r(q.T * r, compute_uv=False)
        wanted = sorted(float(mpmath.acos(min(cosine, mpmath.mpf(1)))) for cosine in cosines)
    found = principal_angles(a, b)
    assert found.tolist() == pytest.approx(wanted[: min(k, m)], abs=2e-15)
    assert 1e-9 < float(found[0]) < 1e-6  # where arccos alone, in float64, is off by 1e-8


@given(**SIZES, m=st.integers(1, 15))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_angles_keep_the_laws(n, k, m, seed):
    k, m = min(k, n), min(m, n)
    a, b, q = basis(n, k, seed), basis(n, m, seed + 1), basis(n, n, seed + 2)
    found = principal_angles(a, b)
    assert found.shape == (min(k, m),)
    assert bool(((found >= 0) & (found <= math.pi / 2)).all())
    assert bool((found.diff() >= 0).all())
    for same in (principal_angles(b, a), principal_angles(q @ a, q @ b), principal_angles(a @ basis(k, k, seed), b)):
        torch.testing.assert_close(same, found, rtol=0, atol=1e-13)


@pytest.mark.parametrize("measure", [overlap, principal_angles])
def test_errors_name_the_argument(measure):
    good = basis(5, 2)
    with pytest.raises(ShapeError, match=r"first has shape \(5, 2\) and second has shape \(6, 2\)"):
        measure(good, basis(6, 2))
    with pytest.raises(OptionError, match="second: its columns are not orthonormal"):
        measure(good, 2 * good)
    with pytest.raises(OptionError, match="first: its columns are not orthonormal"):
        measure(basis(5, 5)[:, [0, 1, 1]], good)
    with pytest.raises(NonFiniteError, match="first"):
        measure(good * math.nan, good)
    with pytest.raises(ShapeError, match="second"):
        measure(good, good[0])
    with pytest.raises(ShapeError, match=r"first has shape \(5, 0\)"):
        measure(good[:, :0], good)


def test_errors_of_directions_are_those_of_the_spectrum():
    with pytest.raises(OptionError, match="neither"):
        directions()
    with pytest.raises(ShapeError, match="factors have shapes"):
        directions(factors=(random(3, 2), random(3, 2)))
    with pytest.raises(NonFiniteError, match="update"):
        directions(random(2, 2) * math.inf)
