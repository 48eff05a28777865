"""Factors as they are stored against their widened product: every dtype and order in memory, streamed and in pieces."""

import math

import mpmath
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from deltaw.adapters.errors import NonFiniteError, ShapeError
from deltaw.analysis.measures import factors as module
from deltaw.analysis.measures.factors import grams
from deltaw.analysis.measures.gram import EPS
from deltaw.analysis.measures.spectrum import factored_spectrum, spectrum

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def orders(matrix):
    """The same matrix in different orders of the memory."""
    padded = torch.zeros(len(matrix) + 3, 2 * matrix.shape[1] + 1, dtype=matrix.dtype)
    padded[1:-2, 1::2] = matrix
    return matrix, matrix.T.contiguous().T, padded[1:-2, 1::2]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scaling", [1.0, 0.3, -2.0])
def test_what_is_stored_is_the_scaled_and_widened_product(dtype, scaling):
    u, v = random(700, 6, dtype=dtype), random(6, 900, seed=1, dtype=dtype)
    u[3], u[5, 0], v[:, 7], v[0, 9] = 0, 0, 0, 0
    wanted = spectrum(scaling * u.double() @ v.double())
    for left in orders(u):
        for right in orders(v):
            found = factored_spectrum(left, right, scaling)
            torch.testing.assert_close(found.singular_values, wanted.singular_values[:6], rtol=1e-11, atol=0)
            assert (found.zero_rows, found.zero_columns) == (1 / 700, 1 / 900)
            assert (found.rank, found.route) == (6, "factors")
    assert found.tolerance == pytest.approx(spectrum(factors=(scaling * u.double(), v.double())).tolerance, rel=1e-9)


def test_a_scaling_of_zero_makes_all_zero():
    found = factored_spectrum(random(30, 4), random(4, 20), 0.0)
    assert (found.rank, found.zero_rows, found.zero_columns, found.tolerance) == (0, 1, 1, 0)


def test_zeros_need_no_decomposition(monkeypatch):
    monkeypatch.setattr(torch.linalg, "qr", None)
    u = torch.zeros(3000, 8)
    for factors in ((u, random(8, 50)), (random(50, 8), u.T), (torch.zeros(3, 8), random(8, 50))):
        found = factored_spectrum(*factors)
        assert (found.rank, found.zero_rows, found.zero_columns) == (0, 1, 1)


def test_the_smallest_numbers_are_no_zeros():
    found = factored_spectrum(torch.full((30, 1), 1e-200, dtype=torch.float64), torch.ones(1, 20))
    assert (found.rank, found.zero_rows) == (1, 0)
    assert found.spectral == pytest.approx(1e-200 * math.sqrt(600), rel=1e-12)


@pytest.mark.parametrize("rows", [1, 255, 511, 512, 513, 3000, 9001])
@pytest.mark.parametrize("rank", [1, 3, 64, 300])
def test_sums_in_pieces_are_the_product(rows, rank, monkeypatch):
    monkeypatch.setattr(module, "_WIDENED", 2**14)
    monkeypatch.setattr(module, "_ALONE", 2**15)
    for tall in orders(random(rows, rank, dtype=torch.bfloat16)):
        found = grams(tall, random(5, 2))
        torch.testing.assert_close(found[0], tall.double().T @ tall.double(), rtol=1e-12, atol=1e-10)
        torch.testing.assert_close(found[1], random(5, 2).T @ random(5, 2), rtol=1e-14, atol=1e-14)


def test_any_number_of_threads_gives_the_same_bits():
    before = torch.get_num_threads()
    u, v = random(9000, 96, dtype=torch.bfloat16), random(96, 5000, seed=1, dtype=torch.float32)
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(factored_spectrum(u, v, 0.7).singular_values)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_where_the_bytes_stand_changes_no_bit():
    """As in a file: a tensor may begin at any of its numbers."""
    for dtype in DTYPES:
        u, v = random(700, 5, dtype=dtype), random(5, 300, seed=1, dtype=dtype)
        found = set()
        for offset in (0, 1, 3):
            moved = [torch.empty(t.numel() + offset, dtype=dtype)[offset:].view(t.shape).copy_(t) for t in (u, v)]
            found.add(tuple(factored_spectrum(*moved).singular_values.tolist()))
        assert len(found) == 1


class Largest(TorchDispatchMode):
    """How many numbers the largest new tensor has."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        given = [arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, torch.Tensor)]
        for tensor in found if isinstance(found, tuple | list) else (found,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in given:
                self.most = max(self.most, tensor.numel())
        return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_nothing_as_large_as_the_factors_is_set_aside(dtype):
    u, v = random(30_000, 16, dtype=dtype), random(16, 40_000, seed=1, dtype=dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the mode sees this thread alone
    try:
        with Largest() as largest:
            factored_spectrum(u, v, 0.5)
    finally:
        torch.set_num_threads(before)
    assert 0 < largest.most <= 2 * module._WIDENED


def test_factors_that_nearly_cancel_against_exact_arithmetic():
    u, v = random(9, 2), random(2, 8, seed=1)
    left = torch.cat([u, u * (1 + 1e-9 * random(9, 2, seed=2))], 1).float()
    right = torch.cat([v, -v]).float()
    with mpmath.workdps(50):
        product = 0.7 * mpmath.matrix(left.tolist()) * mpmath.matrix(right.tolist())
        exact = [float(value) for value in mpmath.svd_r(product, compute_uv=False)][:4]
    found = factored_spectrum(left, right, 0.7)
    terms = 0.7 * float(left.double().norm(dim=0) @ right.double().norm(dim=1))
    assert max(abs(a - b) for a, b in zip(found.singular_values.tolist(), exact, strict=True)) <= 4 * EPS * terms
    assert found.tolerance >= 4 * EPS * terms * (1 - 1e-9)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_named(value):
    u, v = random(600, 4, dtype=torch.bfloat16), random(4, 300, dtype=torch.bfloat16)
    for place, factors in enumerate(((u.clone(), v), (u, v.clone()))):
        factors[place][-1, -1] = value
        with pytest.raises(NonFiniteError, match=rf"factors\[{place}\] holds NaN or infinity"):
            factored_spectrum(*factors, 0.5)
    with pytest.raises(NonFiniteError, match="exceeds float64"):
        factored_spectrum(u, v, math.inf)


def test_squares_beyond_float64_are_no_infinity():
    u, v = 1e200 * random(600, 4), random(4, 300, seed=1)
    wanted = 1e200 * factored_spectrum(u / 1e200, v).singular_values
    torch.testing.assert_close(factored_spectrum(u, v).singular_values, wanted, rtol=1e-11, atol=0)


def test_factors_that_do_not_fit():
    with pytest.raises(ShapeError, match=r"shapes \(30, 4\) and \(5, 20\)"):
        factored_spectrum(random(30, 4), random(5, 20))


def test_a_caller_in_inference_mode_leaves_nothing_behind():
    u, v = random(600, 4), random(4, 600)
    with torch.inference_mode():
        first = factored_spectrum(u, v).singular_values
    assert torch.equal(factored_spectrum(u, v).singular_values, first)
    assert torch.equal(factored_spectrum(u.requires_grad_(), v).singular_values, first)
