"""The largest singular values by Krylov's method lie within their bounds, and their measures are the exact ones."""

import math

import pytest
import torch

from deltaw.adapters.errors import NonFiniteError
from deltaw.analysis.measures import leading as module
from deltaw.analysis.measures.krylov import leading
from deltaw.analysis.measures.leading import leading_spectrum
from deltaw.analysis.measures.spectrum import spectrum


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def known(sigma, out, columns):
    k = len(sigma)
    left, right = (torch.linalg.qr(random(n, k, seed=i)).Q for i, n in enumerate((out, columns)))
    return left * torch.as_tensor(sigma, dtype=torch.float64) @ right.T


def falling(count, last):
    return torch.logspace(0, math.log10(last), count, dtype=torch.float64)


LOW_RANK_AND_TAIL = random(400, 8) @ random(8, 500, seed=1) * 0.1 + random(400, 500, seed=2) * 0.02
UPDATES = {
    "low rank and a tail": LOW_RANK_AND_TAIL,
    "taller": LOW_RANK_AND_TAIL.T,
    "falling": known(falling(400, 1e-8), 400, 500),
    "rank 8": random(400, 8) @ random(8, 500, seed=1),
    "rank 1": random(400, 1) @ random(1, 500, seed=1),
    "a gap after many": known([1.0] * 20 + [0.3] * 380, 400, 500),
}


@pytest.fixture(autouse=True)
def _small_is_large(monkeypatch):
    monkeypatch.setattr(module, "LARGE", 300)
    monkeypatch.setattr(module, "_BASIS", 3)


@pytest.mark.parametrize("name", UPDATES)
@pytest.mark.parametrize("count", [1, 3, 8])
def test_the_bounds_hold(name, count):
    update = UPDATES[name]
    found = leading(update, lambda values, settled: count, 200)
    true = torch.linalg.svdvals(update)[: 1 if found is None else len(found.lower)].square()
    if found is None:
        assert name in ("rank 1", "a gap after many")  # nothing sets them apart
        return
    rounding = 1e-13 * float(true[0])
    assert bool((found.lower <= true + rounding).all())
    assert bool((true <= found.upper + rounding).all())
    assert float((found.upper - found.lower).max()) <= 1e-9 * float(true[0])


def test_flat_spectra_are_given_up():
    assert leading(torch.linalg.qr(random(500, 400)).Q, lambda values, settled: 1, 200) is None
    assert leading_spectrum(random(400, 400), energy=[0.9]) is None


@pytest.mark.parametrize("name", ["low rank and a tail", "taller", "falling", "rank 8"])
@pytest.mark.parametrize("energy", [(), (0.5,), (0.5, 0.8)])
@pytest.mark.parametrize("scale", [1.0, 1e250, 1e-250])
def test_its_measures_are_those_of_the_spectrum(name, energy, scale):
    update = UPDATES[name] * scale
    found, whole = leading_spectrum(update, energy=energy), spectrum(update)
    assert found.route == "krylov"
    for measure in ("frobenius", "spectral", "stable_rank", "tolerance"):
        assert getattr(found, measure) == pytest.approx(getattr(whole, measure), rel=1e-6), measure
    for share in energy:
        assert found.energy_rank(share) == whole.energy_rank(share)
    assert (found.zero_rows, found.zero_columns) == (whole.zero_rows, whole.zero_columns)


def test_noise_that_weighs_takes_the_exact_way():
    base = (random(400, 400) * 0.02).bfloat16()
    merged = (base.double() + random(400, 8, seed=1) @ random(8, 400, seed=2) * 1e-3).bfloat16()
    read = merged.double() - base.double()
    assert leading_spectrum(read, stored=torch.bfloat16, weight=merged) is None  # of ‖·‖_F² a percent is noise
    found = leading_spectrum(read, stored=torch.float32, weight=merged)
    assert found is None or found.tolerance == spectrum(read, stored=torch.float32, weight=merged).tolerance


def test_an_energy_rank_on_the_edge_is_left_to_the_spectrum():
    update = known([1.0] * 2 + [0.0] * 398, 400, 400)
    assert leading_spectrum(update, energy=[0.5]) is None  # one half to rounding: 1 or 2
    assert leading_spectrum(update, energy=[0.4]).energy_rank(0.4) == 1


def test_zeros_and_small_and_damaged_ones():
    found = leading_spectrum(torch.zeros(400, 400), energy=[0.9])
    assert (found.frobenius, found.spectral, found.stable_rank, found.energy_rank(0.9)) == (0, 0, 0, 0)
    assert (found.zero_rows, found.zero_columns) == (1, 1)
    assert leading_spectrum(torch.ones(20, 20)) is None
    with pytest.raises(NonFiniteError, match="update"):
        leading_spectrum(torch.full((400, 400), math.nan))


def test_the_random_numbers_of_the_caller_stay():
    before = torch.get_rng_state()
    first, second = (leading_spectrum(UPDATES["falling"]) for _ in range(2))
    assert first == second
    assert torch.equal(before, torch.get_rng_state())
