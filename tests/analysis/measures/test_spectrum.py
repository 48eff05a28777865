"""Singular values, ranks and norms against dense definitions, and the noise floor against experiments."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaw.adapters.errors import NonFiniteError, OptionError, ShapeError
from deltaw.analysis.measures.leading import leading_spectrum
from deltaw.analysis.measures.norms import spectral_norm as _spectral_norm
from deltaw.analysis.measures.spectrum import Spectrum, spectrum

SCALARS = ["rank", "stable_rank", "effective_rank", "participation_ratio", "nuclear", "frobenius", "spectral"]


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def definitions(sigma):
    """What the docstrings say, in 50 digits, from singular values."""
    with mpmath.workdps(50):
        s = [mpmath.mpf(float(x)) for x in sigma if x > 0]
        energy = mpmath.fsum(x**2 for x in s)
        p = [x / mpmath.fsum(s) for x in s]
        return {
            "stable_rank": float(energy / s[0] ** 2),
            "effective_rank": float(mpmath.exp(-mpmath.fsum(x * mpmath.log(x) for x in p))),
            "participation_ratio": float(energy**2 / mpmath.fsum(x**4 for x in s)),
            "nuclear": float(mpmath.fsum(s)),
            "frobenius": float(mpmath.sqrt(energy)),
            "spectral": float(s[0]),
        }


@pytest.mark.parametrize("sigma", [[1.0], [5.0, 3.0, 1e-3], [2.0, 2.0, 2.0], [1e200, 1e190], [1e-200, 1e-201, 0.0]])
def test_definitions(sigma):
    found = spectrum(torch.diag(torch.tensor(sigma, dtype=torch.float64)))
    for name, wanted in definitions(sigma).items():
        assert getattr(found, name) == pytest.approx(wanted, rel=1e-12), name
    assert found.rank == sum(s > 0 for s in sigma)


def test_equal_singular_values_have_every_rank_equal():
    found = spectrum(torch.linalg.qr(random(9, 4)).Q)
    for name in ("rank", "stable_rank", "effective_rank", "participation_ratio"):
        assert getattr(found, name) == pytest.approx(4)
    assert [found.energy_rank(f) for f in (0.2, 0.26, 0.9, 1)] == [1, 2, 4, 4]


@pytest.mark.parametrize("update", [torch.zeros(3, 5), torch.zeros(1, 1, dtype=torch.bfloat16)])
def test_an_update_of_zeros_has_zeros_everywhere(update):
    factors = (torch.zeros(len(update), 2), random(2, update.shape[1]))
    for found in (spectrum(update), spectrum(factors=factors), spectrum(update, stored=torch.float16, weight=update)):
        assert [getattr(found, name) for name in SCALARS] == [0] * len(SCALARS)
        assert found.energy_rank(0.9) == 0
        assert (found.zero_rows, found.zero_columns) == (1, 1)


def agree(factors):
    """Hold the spectrum from factors against that of the product."""
    u, v = (t.double() for t in factors)
    cheap, dense = spectrum(factors=factors), spectrum(u @ v)
    size = min(len(cheap.singular_values), len(dense.singular_values))
    scale = dense.spectral or 1.0
    torch.testing.assert_close(
        cheap.singular_values[:size] / scale, dense.singular_values[:size] / scale, rtol=1e-9, atol=1e-13
    )
    assert dense.singular_values.shape == (min(len(u), v.shape[1]),)
    assert cheap.zero_rows == pytest.approx(dense.zero_rows)
    assert cheap.zero_columns == pytest.approx(dense.zero_columns)
    for name in SCALARS:
        if name == "effective_rank":  # rounding errors in place of zeros count in −p log p
            assert getattr(cheap, name) == pytest.approx(getattr(dense, name), rel=1e-9), name
        else:
            assert getattr(cheap, name) == pytest.approx(getattr(dense, name), rel=1e-12), name
    return cheap


def one_hot(rows, columns, seed=0):
    places = torch.randperm(columns, generator=torch.Generator().manual_seed(seed))[:rows]
    return torch.eye(columns, dtype=torch.float64)[places]


SCALES = torch.tensor([1e6, 1.0, 1e-3, 1e2])
FACTORS = {
    "generic": (random(30, 4), random(4, 20, seed=1), 4),
    "rank 1": (random(30, 1), random(1, 20, seed=1), 1),
    "wider than it is tall": (random(6, 4), random(4, 50, seed=1), 4),
    "more factors than rows": (random(5, 9), random(9, 20, seed=1), 5),
    "float32": (random(30, 4, dtype=torch.float32), random(4, 20, seed=1, dtype=torch.float32), 4),
    "bfloat16": (random(30, 4, dtype=torch.bfloat16), random(4, 20, seed=1, dtype=torch.bfloat16), 4),
    "repeated column": (random(30, 2).repeat(1, 2), random(4, 20, seed=1), 2),
    "zero row in V": (random(30, 4), random(4, 20, seed=1) * torch.tensor([1, 0, 1, 1])[:, None], 3),
    "zero column in U": (random(30, 4) * torch.tensor([1, 0, 1, 1]), random(4, 20, seed=1), 3),
    "SBoRA-FA: V one-hot": (random(30, 4), one_hot(4, 20), 4),
    "SBoRA-FB: U one-hot": (one_hot(4, 30).T, random(4, 20), 4),
    "one-hot, some untrained": (one_hot(4, 30).T, random(4, 20) * torch.tensor([1, 0, 1, 1])[:, None], 3),
    "badly scaled": (random(30, 4) * SCALES, random(4, 20) / SCALES[:, None], 4),
}


@pytest.mark.parametrize("name", FACTORS)
def test_factors_are_their_product(name):
    u, v, rank = FACTORS[name]
    assert agree((u, v)).rank == rank


@pytest.mark.parametrize("condition", [1, 1e3, 1e6, 1e8, 1e10, 1e15, math.inf])
def test_factors_of_any_condition_keep_their_singular_values(condition):
    q = torch.linalg.qr(random(300, 8)).Q
    sigma = torch.tensor([1 / condition ** (k / 7) if k else 1.0 for k in range(8)], dtype=torch.float64)
    for u in (q * sigma, (q * sigma) @ torch.linalg.qr(random(8, 8, seed=2)).Q, 1e-200 * q * sigma, 1e200 * q * sigma):
        found = spectrum(factors=(u, torch.linalg.qr(random(200, 8, seed=1)).Q.T)).singular_values
        torch.testing.assert_close(found, sigma * torch.linalg.matrix_norm(u, 2), rtol=0, atol=1e-14 * float(found[0]))


def test_zero_rows_and_columns_of_factors():
    found = spectrum(factors=(one_hot(4, 30).T, random(4, 20)))
    assert (found.zero_rows, found.zero_columns) == (26 / 30, 0)
    found = spectrum(factors=(random(30, 4), one_hot(4, 20)))
    assert (found.zero_rows, found.zero_columns) == (0, 16 / 20)
    # V's second row repeats its first, so a row (1, −1) of U is zero in the product
    u = torch.tensor([[1.0, -1.0], [1.0, 1.0], [0.0, 0.0], [0.1, -0.1]])
    found = spectrum(factors=(u, random(1, 20).repeat(2, 1)))
    assert (found.zero_rows, found.zero_columns) == (3 / 4, 0)


def test_factors_that_cancel_are_zero():
    u, v = random(300, 4), random(4, 200, seed=1)
    found = spectrum(factors=(torch.cat((u, u), 1), torch.cat((v, -v))))
    assert (found.rank, found.zero_rows, found.zero_columns) == (0, 1, 1)
    w = random(1, 200, seed=2)
    found = spectrum(factors=(torch.cat((u, u[:, :1], u), 1), torch.cat((v, w, -v))))
    assert found.rank == 1


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 6), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_factors_of_any_shape(out, columns, rank, seed):
    found = agree((random(out, rank, seed=seed), random(rank, columns, seed=seed + 1)))
    assert found.rank == min(out, columns, rank)


@pytest.mark.parametrize("name", FACTORS)
def test_turning_and_transposing_leave_the_spectrum(name):
    u, v = (t.double() for t in FACTORS[name][:2])
    q = torch.linalg.qr(random(len(u), len(u))).Q
    wanted = spectrum(factors=(u, v)).singular_values
    for factors in ((q @ u, v), (v.T, u.T)):
        torch.testing.assert_close(spectrum(factors=factors).singular_values, wanted, rtol=1e-9, atol=1e-12)


def test_scaling_scales_values_and_threshold():
    u, v = random(20, 3), random(3, 10)
    one, two = spectrum(u @ v), spectrum(u @ v * 1e150)
    assert two.rank == one.rank
    assert two.tolerance == pytest.approx(one.tolerance * 1e150)
    assert two.effective_rank == pytest.approx(one.effective_rank)


def test_the_threshold_of_a_float32_update_is_numpys():
    u, v = random(200, 3, dtype=torch.float32), random(3, 100, dtype=torch.float32)
    found = spectrum(u @ v)
    assert found.rank == 3 == np.linalg.matrix_rank((u @ v).numpy())
    assert found.tolerance == pytest.approx(200 * 2.0**-23 * found.spectral)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_update_keeps_its_rank(dtype):
    assert spectrum((random(300, 3) @ random(3, 200, seed=1)).to(dtype)).rank == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(300, 300), (600, 40), (40, 600)])
@pytest.mark.parametrize("kind", ["plain", "uneven rows", "one large direction", "almost constant"])
def test_rounding_noise_stays_below_the_floor(dtype, shape, kind):
    weight = random(*shape) * 0.02
    if kind == "uneven rows":
        weight = weight * torch.exp(random(shape[0], 1, seed=1))
    elif kind == "one large direction":
        weight = weight + 0.02 * random(shape[0], 1, seed=1) @ random(1, shape[1], seed=2)
    elif kind == "almost constant":
        weight = 0.02 + 1e-3 * weight
    rounded = weight.to(dtype)
    found = spectrum(rounded.double() - weight, stored=dtype, weight=rounded)
    assert found.rank == 0
    assert found.spectral <= 0.35 * found.noise_floor  # the docstring's "never above 0.3", with a little room
    assert found.noise_floor == pytest.approx(
        torch.finfo(dtype).eps * float(torch.linalg.matrix_norm(rounded.double(), 2)), rel=0.01
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_merged_update_has_the_rank_it_was_made_with(dtype):
    base = (random(256, 256) * 0.02).to(dtype).double()
    update = random(256, 8, seed=1) @ random(8, 256, seed=2) * 1e-3
    merged = (base + update).to(dtype)
    read = merged.double() - base
    assert spectrum(read).rank == 256
    assert spectrum(read, stored=dtype, weight=merged).rank == 8


@pytest.mark.parametrize("shape", [(400, 400), (900, 300), (300, 900), (20, 2000), (1, 5)])
@pytest.mark.parametrize("kind", ["flat", "gaussian", "decaying"])
def test_spectral_norm(shape, kind):
    weight = random(*shape)
    if kind == "flat":
        weight = torch.linalg.qr(weight).Q
    elif kind == "decaying":
        weight = weight * torch.logspace(0, -3, shape[1], dtype=torch.float64)
    norm = float(torch.linalg.matrix_norm(weight, 2))
    assert 0.99 * norm <= _spectral_norm(weight) <= norm * (1 + 1e-12)
    before = torch.random.get_rng_state()
    _spectral_norm(weight)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("kind", [1e-200, 1e200, 1e-20, torch.bfloat16, torch.float16, torch.float32])
def test_spectral_norm_of_any_size_and_dtype(kind):
    weight = random(300, 400)
    weight = weight.to(kind) if isinstance(kind, torch.dtype) else weight * kind
    norm = float(torch.linalg.matrix_norm(weight.double(), 2))
    assert 0.99 * norm <= _spectral_norm(weight) <= norm * (1 + 1e-12)


def test_energy_rank():
    found = spectrum(torch.diag(torch.tensor([3.0, 1.0, 1e-3], dtype=torch.float64)))
    assert [found.energy_rank(f) for f in (0.5, 0.89, 0.95, 1.0)] == [1, 1, 2, 3]
    for fraction in (0, -0.1, 1.5, math.nan):
        with pytest.raises(OptionError, match="fraction is"):
            found.energy_rank(fraction)


def test_errors_name_the_argument():
    update, u, v = torch.ones(3, 4), torch.ones(3, 2), torch.ones(2, 4)
    with pytest.raises(OptionError, match="neither"):
        spectrum()
    with pytest.raises(OptionError, match="both"):
        spectrum(update, factors=(u, v))
    with pytest.raises(OptionError, match="stored is given without weight"):
        spectrum(update, stored=torch.float16)
    with pytest.raises(OptionError, match="weight is given without stored"):
        spectrum(update, weight=update)
    with pytest.raises(OptionError, match="factors are exact"):
        spectrum(factors=(u, v), stored=torch.float16, weight=update)
    with pytest.raises(OptionError, match=r"stored is torch\.int8"):
        spectrum(update, stored=torch.int8, weight=update)
    with pytest.raises(OptionError, match=r"update is .*int64"):
        spectrum(update.long())
    with pytest.raises(ShapeError, match=r"factors have shapes \(3, 2\) and \(3, 2\)"):
        spectrum(factors=(u, u))
    with pytest.raises(ShapeError, match=r"weight has shape \(4, 3\)"):
        spectrum(update, stored=torch.float16, weight=update.T)
    with pytest.raises(ShapeError, match=r"update has shape \(3,\)"):
        spectrum(torch.ones(3))
    with pytest.raises(NonFiniteError, match="update"):
        spectrum(update / 0)
    with pytest.raises(NonFiniteError, match=r"factors\[1\]"):
        spectrum(factors=(u, v * math.nan))
    with pytest.raises(NonFiniteError, match="weight"):
        spectrum(update, stored=torch.float16, weight=update * math.inf)
    with pytest.raises(NonFiniteError, match="product"):
        spectrum(factors=(u.double() * 1e200, v.double() * 1e200))


def test_the_update_is_left_alone():
    update = random(4, 4).requires_grad_()
    kept = update.detach().clone()
    found = spectrum(update)
    assert isinstance(found, Spectrum)
    assert not found.singular_values.requires_grad
    assert torch.equal(update, kept)


def test_noise_is_no_signal_in_any_measure():
    """A rank-8 update recorded in bfloat16 has the measures of the update, not those of the rounding."""
    base = (random(256, 256) * 0.02).bfloat16()
    update = random(256, 8, seed=1) @ random(8, 256, seed=2) * 1e-3
    merged = (base.double() + update).bfloat16()
    found = spectrum(merged.double() - base.double(), stored=torch.bfloat16, weight=merged)
    true = spectrum(update)
    for name in SCALARS:
        assert getattr(found, name) == pytest.approx(getattr(true, name), rel=0.05), name
    assert found.energy_rank(0.99) == true.energy_rank(0.99)
    assert found.energy_rank(1.0) == 8
    assert 0 < found.noise < 0.1
    assert true.noise < 1e-20
    assert int((found.singular_values > 0).sum()) == 256  # they are all there
    assert torch.equal(found.signal[8:], torch.zeros(248, dtype=torch.float64))


def test_noise_alone_has_zeros_everywhere():
    weight = random(64, 64) * 0.02
    rounded = weight.bfloat16()
    found = spectrum(rounded.double() - weight, stored=torch.bfloat16, weight=rounded)
    assert [getattr(found, name) for name in SCALARS] == [0] * len(SCALARS)
    assert found.energy_rank(0.9) == 0
    assert found.noise == 1
    assert spectrum(torch.zeros(2, 2)).noise == 0


def test_its_repr_says_the_ranks():
    found = spectrum(torch.diag(torch.tensor([2.0, 1.0, 0.0])))
    assert repr(found) == "Spectrum(rank=2, stable_rank=1.25, effective_rank=1.89, of 3 singular values)"


def test_arrays_are_taken_and_other_things_named():
    u, v = random(6, 2), random(2, 5)
    assert torch.equal(spectrum((u @ v).numpy()).singular_values, spectrum(u @ v).singular_values)
    assert spectrum(factors=(u.numpy(), v.numpy())).rank == 2
    assert spectrum((u @ v).numpy(), stored=torch.bfloat16, weight=np.ones((6, 5))).noise_floor > 0
    for wrong in ("x", 3, [[1.0]], np.ones((2, 2), dtype=int), np.ones((2, 2), dtype=np.longdouble)):
        with pytest.raises(OptionError, match=r"update is .*; pass a dense tensor or NumPy array"):
            spectrum(wrong)
    for wrong in (3, u, (u,), {"u": u}):
        with pytest.raises(OptionError, match=r"factors is .*pass a pair"):
            spectrum(factors=wrong)
    with pytest.raises(OptionError, match="stored is 'bfloat16'"):
        spectrum(u @ v, stored="bfloat16", weight=u @ v)
    with pytest.raises(OptionError, match=r"fraction is '0\.9'"):
        spectrum(u @ v).energy_rank("0.9")


@pytest.mark.parametrize("shape", [(20, 30), (150, 150), (800, 800)])
def test_a_singular_value_beyond_float64_is_an_error_and_not_zero(shape):
    largest = torch.full(shape, 1.7e308, dtype=torch.float64)
    for measure in (spectrum, lambda update: spectrum(update, approximate=0.1)):
        with pytest.raises(NonFiniteError, match="exceeds float64"):
            measure(largest)
    assert leading_spectrum(largest, energy=[0.9]) is None
    assert leading_spectrum(largest, measures=["frobenius"]) is None
    assert spectrum(largest / 1e4).rank == 1
