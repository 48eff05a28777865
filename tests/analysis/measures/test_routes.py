"""Every way to the singular values is the float64 SVD, within the bound that it states."""

import math

import mpmath
import pytest
import torch

from deltaw.analysis.measures.factors import triangle
from deltaw.analysis.measures.gram import BLOCK, gram, squares
from deltaw.analysis.measures.routes import SMALL, of_dense
from deltaw.analysis.measures.spectrum import spectrum

SCALARS = ["rank", "stable_rank", "effective_rank", "participation_ratio", "nuclear", "frobenius", "spectral"]


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def known(sigma, out, columns, seed=0):
    """A matrix (out, columns) with these singular values."""
    k = len(sigma)
    left, right = (torch.linalg.qr(random(n, k, seed=seed + i)).Q for i, n in enumerate((out, columns)))
    return left * torch.as_tensor(sigma, dtype=torch.float64) @ right.T


def falling(count, last):
    return torch.logspace(0, math.log10(last), count, dtype=torch.float64)


SPECTRA = {
    "down to 1e-2": falling(160, 1e-2),
    "down to 1e-5": falling(160, 1e-5),
    "down to 1e-9": falling(160, 1e-9),
    "flat": torch.ones(160, dtype=torch.float64),
    "one large": torch.tensor([1.0] + [1e-3] * 159, dtype=torch.float64),
    "rank 5": torch.tensor([1.0, 0.5, 0.1, 1e-2, 1e-3] + [0.0] * 155, dtype=torch.float64),
    "as of random entries": torch.linalg.svdvals(random(160, 160)),
}


@pytest.mark.parametrize("shape", [(160, 700), (700, 160), (160, 160)])
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("scale", [1.0, 1e300, 1e-290])
def test_squares_are_within_their_bound(shape, name, scale):
    sigma = SPECTRA[name]
    update = known(sigma, *shape) * scale
    matrix = gram(update)
    values, bound = squares(matrix)
    true = (torch.linalg.svdvals(update) / matrix.scale).square()
    assert bound < 1e-10 * float(true[0])
    assert float((values - true).abs().max()) <= bound  # in fact a tenth


@pytest.mark.parametrize("last", [1e-3, 1e-6, 1e-9])
def test_squares_are_within_their_bound_of_the_exact_ones(last):
    update = known(falling(6, last), 6, 40)
    matrix = gram(update)
    values, bound = squares(matrix)
    with mpmath.workdps(50):
        exact = mpmath.svd_r(mpmath.matrix(update.tolist()).T, compute_uv=False)
        for value, sigma in zip(values.tolist(), exact, strict=True):
            assert abs(value - (sigma / matrix.scale) ** 2) <= bound


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_gram_matrix_widens_by_blocks(dtype):
    update = random(2 * BLOCK + 7, 3 * BLOCK + 5).to(dtype)
    matrix = gram(update)
    whole = (update.double() / matrix.scale) @ (update.double() / matrix.scale).T
    torch.testing.assert_close(matrix.lower.tril(), whole.tril(), rtol=1e-13, atol=1e-12)


def plain(update, floor=0.0):
    """The definition: the float64 SVD."""
    found = torch.linalg.svdvals(update.double())
    eps = torch.finfo(torch.float32 if update.dtype == torch.float32 else torch.float64).eps
    relative = max(max(update.shape) * eps, torch.finfo(update.dtype).eps)
    return found, max(relative * float(found[0]), floor)


FEW_WEAK = [1.0] * 8 + [1e-4] * 284 + [1e-7 * k for k in range(8, 0, -1)]
CASES = {
    "full rank": (known(falling(300, 1e-3), 300, 300), 0.0, "gram"),
    "full rank, weak": (known(falling(300, 1e-4), 300, 400), 0.0, "gram"),
    "random": (random(300, 300), 0.0, "gram"),
    "full rank, a few too weak": (
        known(FEW_WEAK, 300, 400),
        0.0,
        "gram",
    ),
    "and taller": (known(FEW_WEAK, 400, 300), 0.0, "gram"),
    "a few on both sides of a floor": (
        known(FEW_WEAK, 300, 400),
        2.5e-7,
        "gram",
    ),
    "many too weak": (known([1.0] * 8 + [1e-4] * 200 + [1e-7] * 92, 300, 400), 0.0, "svd"),
    "too weak to tell": (known(falling(300, 1e-8), 300, 300), 0.0, "svd"),
    "rank 8": (random(300, 8) @ random(8, 300, seed=1), 0.0, "svd"),
    "rank 8, float32": ((random(300, 8) @ random(8, 300, seed=1)).float(), 0.0, "gram"),
    "rank 8, bfloat16": ((random(300, 8) @ random(8, 300, seed=1)).bfloat16(), 0.0, "gram"),
    "above a floor": (known(falling(300, 1e-3), 300, 300), 1e-2, "gram"),
    "a floor below the bound": (known([1.0] * 8 + [1e-9] * 292, 300, 300), 5e-9, "svd"),
    "a floor in a crowd": (known([1.0] + [1e-6] * 299, 300, 300), 1e-6, "svd"),
    "noise alone": (random(300, 300), 1e9, "gram"),
    "zeros": (torch.zeros(300, 300, dtype=torch.float64), 0.0, "gram"),
    "zeros above a floor": (torch.zeros(300, 300), 1.0, "gram"),
    "small": (random(SMALL - 1, 300), 0.0, "svd"),
    "huge": (known(falling(300, 1e-3), 300, 300) * 1e300, 0.0, "gram"),
    "tiny": (known(falling(300, 1e-3), 300, 300) * 1e-290, 0.0, "gram"),
}


@pytest.mark.parametrize("name", CASES)
def test_every_route_is_the_svd(name):
    update, floor, route = CASES[name]
    found, (values, tolerance) = of_dense(update, floor), plain(update, floor)
    assert found.route == route
    assert found.tolerance == pytest.approx(tolerance, rel=1e-9)
    signal = values > tolerance
    assert torch.equal(found.values > found.tolerance, signal)
    torch.testing.assert_close(found.values[signal], values[signal], rtol=1e-4, atol=0)
    assert float(found.values[signal].sum()) == pytest.approx(float(values[signal].sum()), rel=1e-8)
    first = float(values[0])
    assert float((found.values - values).abs().max()) <= 1e-6 * first
    assert bool((found.values.diff() <= 0).all())


@pytest.mark.parametrize("kind", ["full rank", "rank 8, float32", "above a floor"])
def test_the_measures_of_the_gram_matrix_are_the_svds(kind, monkeypatch):
    update = CASES[kind][0]
    floored = {"stored": torch.bfloat16, "weight": torch.eye(300) * 0.5} if kind == "above a floor" else {}
    cheap = spectrum(update, **floored)
    monkeypatch.setattr("deltaw.analysis.measures.routes.SMALL", 10**9)
    dear = spectrum(update, **floored)
    assert (cheap.route, dear.route) == ("gram", "svd")
    for name in SCALARS:
        assert getattr(cheap, name) == pytest.approx(getattr(dear, name), rel=1e-8), name
    assert [cheap.energy_rank(f) for f in (0.5, 0.9, 0.99)] == [dear.energy_rank(f) for f in (0.5, 0.9, 0.99)]
    assert cheap.noise == pytest.approx(dear.noise, abs=1e-12)


@pytest.mark.parametrize("name", ["full rank", "rank 8", "rank 8, bfloat16"])
def test_any_number_of_threads_gives_the_same_bits(name):
    update, factors = CASES[name][0], (random(3000, 16), random(16, 2000, seed=1))
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append((spectrum(update).singular_values, spectrum(factors=factors).singular_values))
            floored = spectrum(update, stored=torch.bfloat16, weight=random(*update.shape))
            found[-1] += (torch.tensor(floored.noise_floor),)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again, strict=True))


@pytest.mark.parametrize("condition", [1, 10, 100, 1e4, 1e8])
@pytest.mark.parametrize("rows", [40, 5000, 9001])
def test_triangles_keep_the_small_singular_values(condition, rows):
    tall = known(falling(8, 1 / condition), rows, 8)
    r, full = triangle(tall)
    true = torch.linalg.svdvals(tall)
    torch.testing.assert_close(torch.linalg.svdvals(r), true, rtol=1e-8, atol=2e-15)
    assert full == (condition < 1e8)
    scaled = tall * torch.tensor([1e6, 1.0, 1e-3, 1e2, 1.0, 1.0, 1e-6, 1.0])  # no scale of a column costs a digit
    torch.testing.assert_close(
        torch.linalg.svdvals(triangle(scaled)[0] @ triangle(known(falling(8, 1), 50, 8))[0].T),
        torch.linalg.svdvals(torch.linalg.qr(scaled).R @ torch.linalg.qr(known(falling(8, 1), 50, 8)).R.T),
        rtol=1e-8,
        atol=1e-9,
    )


def test_factors_of_16_bits_are_those_in_float64():
    u, v = random(9000, 6).bfloat16(), random(6, 300, seed=1).bfloat16()
    found, wide = spectrum(factors=(u, v)), spectrum(factors=(u.double(), v.double()))
    assert found.route == wide.route == "factors"
    assert torch.equal(found.singular_values, wide.singular_values)
    assert found.tolerance == wide.tolerance
