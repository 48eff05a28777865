"""Leading subspaces by products alone: against the whole decompositions, within the bounds, or none at all."""

import math

import pytest
import torch

from deltaw.adapters.errors import NonFiniteError
from deltaw.adapters.method import ScaledLowRank
from deltaw.analysis.measures.krylov import norm_at_most
from deltaw.analysis.measures.principal import Principal, by_svd
from deltaw.analysis.measures.principal_block import principal_block
from deltaw.analysis.measures.principal_rotation import rotation, rotation_of_form
from deltaw.analysis.measures.product import Product

K = 8
SHAPES = [(800, 780), (770, 820)]
FALLS = [1.0 / i**1.2 for i in range(1, 771)]
CLOSE = [*FALLS[:K], FALLS[K - 1] * (1 - 1e-5), *FALLS[K + 1 :]]  # σ_8 and σ_9 nearly agree


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_values(values, out, columns):
    """A dense matrix of these singular values: a diagonal one under a few reflections."""
    matrix = torch.zeros(out, columns, dtype=torch.float64)
    kept = torch.tensor(values[: min(out, columns)], dtype=torch.float64)
    matrix.diagonal()[: len(kept)] = kept
    for seed in range(3):
        u, v = random(out, seed=seed), random(columns, seed=10 + seed)
        matrix -= torch.outer(2 * u / (u @ u), u @ matrix)
        matrix -= torch.outer(matrix @ v, 2 * v / (v @ v))
    return matrix


def moved(before, size, scales):
    """ρ, γ, U and V of an update of this size relative to W₀, and W' built from them."""
    out, columns = before.shape
    U, V = random(out, 4, seed=1), random(4, columns, seed=2)
    U *= size * before.norm() / torch.linalg.matrix_norm(U @ V)
    rho, gamma = (1 + scales * size * random(n, seed=3).clamp(-2, 2) / 8 for n in before.shape)
    return ScaledLowRank(rho, gamma, U, V), rho[:, None] * (before + U @ V) * gamma


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def base(request):
    found = Principal(with_values(FALLS, *request.param), K)
    assert found.block is not None
    return found


def check(found, base, after):
    """Hold a rotation to both whole decompositions, by the bounds of both."""
    before, slow = base.matrix, (base.exact, by_svd(after, lambda _: K))
    slack = math.degrees(sum(one.turned for one in slow)) + found.error
    for name in ("left", "right"):
        one, other = (getattr(side, name) for side in slow)
        sine = float(torch.linalg.matrix_norm(other - one @ (one.T @ other), 2))
        cosine = float(torch.linalg.svdvals(one.T @ other)[-1])
        assert getattr(found, name) == pytest.approx(math.degrees(math.atan2(sine, cosine)), abs=slack)
    want = torch.linalg.matrix_norm(slow[0].left.T @ (after - before) @ slow[0].right)
    assert found.block_change == pytest.approx(float(want / slow[0].values[:K].norm()), rel=1e-7, abs=1e-12)
    for gap, one in zip((found.gap, found.gap_after), slow, strict=True):
        assert gap == pytest.approx(one.gap, rel=2e-6)


def test_the_subspaces_of_the_base(base):
    found, slow = base.block, base.exact
    assert found.settled
    assert found.turned <= 3 * slow.turned
    for one, other in ((found.left, slow.left), (found.right, slow.right)):
        assert float(torch.linalg.matrix_norm(other - one @ (one.T @ other), 2)) <= found.turned + slow.turned
        torch.testing.assert_close(one.T @ one, torch.eye(K, dtype=torch.float64), rtol=0, atol=1e-12)
    assert bool(((found.values - slow.values[: K + 1]).abs() <= found.errors + slow.errors[: K + 1]).all())
    beside = base.matrix if base.matrix.shape[1] <= base.matrix.shape[0] else base.matrix.T
    outside = beside - beside @ found.start.T @ found.start
    assert float(torch.linalg.matrix_norm(outside, 2)) <= found.rest


@pytest.mark.parametrize("size", [1e-9, 1e-6, 1e-3, 0.03, 1.0])
def test_every_update_is_turned_as_the_decompositions_say(base, size):
    for scales in (0.0, 1.0):
        form, after = moved(base.matrix, size, scales)
        found = rotation_of_form(base, form)
        assert found.route == "krylov" or (size == 1.0 and scales)
        check(found, base, after)
    after = base.matrix + size * base.matrix.norm() / 800 * random(*base.shape, seed=7)
    found = rotation(base, after)
    assert found.route == "krylov" or size == 1.0
    check(found, base, after)


@pytest.mark.parametrize("size", [1e-9, 1e-6, 1e-3])
def test_where_neighbours_are_close_the_bound_grows(size):
    base = Principal(with_values(CLOSE, 800, 780), K)
    assert base.gap == pytest.approx(1e-5, rel=1e-6)
    form, after = moved(base.matrix, size, 1.0)
    check(rotation_of_form(base, form), base, after)


def test_where_the_bound_is_not_met_the_decompositions_are_taken():
    flat = random(780, 780)
    assert principal_block(flat, K) is None  # the edge of a random matrix is crowded
    assert principal_block(with_values(FALLS, 400, 500), K) is None  # small
    assert principal_block(with_values([*FALLS[:7], 0.08, 0.08, *FALLS[9:]], 780, 780), K) is None  # no subspace
    assert principal_block(torch.zeros(780, 780, dtype=torch.float64), K) is None
    assert Principal(with_values(FALLS, 780, 780), 0.9).block is None
    found = rotation(flat, flat + 1e-3 * random(780, 780, seed=1), K)
    assert found.route == "gram"
    check(found, Principal(flat, K), flat + 1e-3 * random(780, 780, seed=1))


def test_products_are_those_of_the_matrix_that_is_built():
    matrix = random(30, 20)
    form, after = moved(matrix, 0.5, 1.0)
    product = Product(matrix, form)
    x, y = random(3, 20, seed=5), random(3, 30, seed=6)
    for made, want in (
        (product.times(x), x @ after.T),
        (product.back(y), y @ after),
        (product.turned_over.times(y), y @ after),
        (product.turned_over.dense(), after.T),
        (product.dense(), after),
        (Product(matrix).back(y), y @ matrix),
    ):
        torch.testing.assert_close(made, want, rtol=1e-12, atol=1e-12)


def test_nothing_moved_and_nothing_finite(base):
    out, columns = base.shape
    still = ScaledLowRank(
        *(torch.ones(n).double() for n in base.shape), torch.zeros(out, 2).double(), random(2, columns)
    )
    assert rotation_of_form(base, still).route == "same"
    assert rotation_of_form(base, still).left == 0.0
    with pytest.raises(NonFiniteError, match="after holds NaN"):
        rotation_of_form(base, still._replace(rho=still.rho * math.nan))


def test_a_norm_is_bounded():
    for matrix in (
        random(90, 70),
        with_values([5.0, 1e-3], 60, 80),
        1e-160 * random(90, 80),
        torch.zeros(9, 8).double(),
    ):
        norm, most = float(torch.linalg.matrix_norm(matrix, 2)), norm_at_most(matrix)
        assert norm <= most <= 1.25 * norm


def test_the_same_bits_for_any_number_of_threads(base):
    form, _ = moved(base.matrix, 1e-3, 1.0)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            fresh = Principal(base.matrix, K)
            turned = rotation_of_form(fresh, form)
            found.append((turned.left, turned.right, turned.error, turned.block_change, fresh.block.turned))
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1]
