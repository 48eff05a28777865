"""The largest singular values by Krylov's method lie within their bounds, and their measures are the exact ones."""

import math

import pytest
import torch

from deltaw.adapters.errors import NonFiniteError
from deltaw.analysis.measures import leading as module
from deltaw.analysis.measures.krylov import leading
from deltaw.analysis.measures.leading import leading_spectrum
from deltaw.analysis.measures.norms import NoiseFloor, Norms
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


DECAYING = {
    "down to 1e-4": (known(falling(400, 1e-4), 400, 500), 8),
    "down to 1e-6": (known(falling(400, 1e-6), 400, 500), 30),
    "taller": (known(falling(400, 1e-6), 700, 400), 30),
    "low rank and a tail": (LOW_RANK_AND_TAIL, 8),
    "a cluster": (known([1.0, *[0.5 + 1e-9 * k for k in range(5)], *falling(100, 1e-3) * 0.1], 400, 400), 6),
    "rank-deficient": (random(400, 30) * falling(30, 1e-3) @ random(30, 500, seed=1), 20),
    "huge": (known(falling(400, 1e-6), 400, 500) * 1e200, 30),
    "tiny": (known(falling(400, 1e-6), 400, 500) * 1e-200, 30),
    "float32": (LOW_RANK_AND_TAIL.float(), 8),
}


@pytest.mark.parametrize("name", DECAYING)
def test_the_largest_values_alone_are_those_of_the_whole(name):
    update, count = DECAYING[name]
    found, whole = module.leading_values(update, count), spectrum(update)
    assert found is not None
    torch.testing.assert_close(found.values, whole.singular_values[:count], rtol=1e-6, atol=0)
    energy = (whole.signal / whole.spectral).square()
    torch.testing.assert_close(found.shares, energy[:count] / energy.sum(), rtol=2e-6, atol=0)
    assert found.tolerance == pytest.approx(whole.tolerance, rel=1e-6)


@pytest.mark.parametrize("kind", ["flat", "falls slowly", "too many", "bfloat16", "below a floor", "zeros"])
def test_the_largest_values_are_left_to_the_whole(kind):
    update, count, floor = LOW_RANK_AND_TAIL, 8, None
    if kind == "flat":
        update = torch.linalg.qr(random(400, 400)).Q
    elif kind == "falls slowly":
        update = known(falling(400, 0.5), 400, 400)
    elif kind == "too many":
        count = 100
    elif kind == "bfloat16":
        update = (random(400, 8) @ random(8, 500, seed=1)).bfloat16()  # its own rounding weighs more than 1e-6
    elif kind == "below a floor":
        floor = NoiseFloor(torch.bfloat16, Norms(lambda: 1e3 * LOW_RANK_AND_TAIL))
    else:
        update = torch.zeros(400, 400)
    assert module.leading_values(update, count, floor) is None


@pytest.mark.parametrize("shape", [(801, 1333), (1333, 801), (900, 900)])
def test_any_number_of_threads_gives_the_same_bits(shape):
    update = random(shape[0], 8) @ random(8, shape[1], seed=1) + random(*shape, seed=2) * 0.01
    floor = {"stored": torch.bfloat16, "weight": random(*shape, seed=3)}
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            values = module.leading_values(update, 8)
            found.append(
                (
                    leading_spectrum(update, energy=[0.9]),
                    values.values.tolist(),
                    values.shares.tolist(),
                    spectrum(update, **floor).noise_floor,
                    spectrum(update).singular_values.tolist(),
                )
            )
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(again == found[0] for again in found[1:])


def test_what_needs_no_singular_value_computes_none(monkeypatch):
    monkeypatch.setattr(module, "leading", None)
    floor = NoiseFloor(torch.float32, Norms(lambda: random(400, 500)))
    monkeypatch.setattr(NoiseFloor, "of", None)
    for scale in (1.0, 1e-200, 1e200):
        update = UPDATES["falling"] * scale
        update[3], update[:, 7] = 0, 0
        found = leading_spectrum(update, measures=["frobenius", "zero_rows", "zero_columns"])
        assert found.route == "sums"
        assert found.frobenius == pytest.approx(math.sqrt(math.fsum((update / scale).flatten().square())) * scale)
        assert (found.zero_rows, found.zero_columns) == (1 / 400, 1 / 500)
        assert math.isnan(found.spectral)
    assert leading_spectrum(UPDATES["falling"], floor=floor, measures=["frobenius"]).route == "sums"
    assert leading_spectrum(torch.eye(5), measures=["zero_rows"]).zero_rows == 0  # of any size
