"""What an approximate spectrum leaves out is what it says, and no more than is allowed."""

import math

import pytest
import torch

from deltaw.adapters.errors import OptionError
from deltaw.analysis.measures.spectrum import spectrum


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def known(sigma, out, columns):
    k = len(sigma)
    left, right = (torch.linalg.qr(random(n, k, seed=i)).Q for i, n in enumerate((out, columns)))
    return left * torch.as_tensor(sigma, dtype=torch.float64) @ right.T


def falling(count, last):
    return torch.logspace(0, math.log10(last), count, dtype=torch.float64)


UPDATES = {
    "falling": known(falling(300, 1e-6), 300, 500),
    "taller": known(falling(300, 1e-6), 500, 300),
    "low rank and a tail": random(300, 8) @ random(8, 500, seed=1) * 0.1 + random(300, 500, seed=2) * 0.02,
    "rank 8": random(300, 8) @ random(8, 500, seed=1),
    "clustered": known([1.0] * 20 + [0.01] * 280, 300, 400),
    "huge": known(falling(300, 1e-6), 300, 300) * 1e200,
    "tiny": known(falling(300, 1e-6), 300, 300) * 1e-200,
    "bfloat16": (random(300, 8) @ random(8, 500, seed=1)).bfloat16(),
}


@pytest.mark.parametrize("name", UPDATES)
@pytest.mark.parametrize("allowed", [0.1, 0.01, 1e-4])
def test_the_error_is_the_share_that_is_missing(name, allowed):
    update = UPDATES[name]
    found, sigma = spectrum(update, approximate=allowed), torch.linalg.svdvals(update.double())
    first = float(sigma[0])
    relative, near = sigma / first, found.singular_values / first
    energy = float(relative.square().sum())
    assert found.route == ("krylov" if len(near) < 300 else "gram")
    assert found.error <= allowed
    assert found.error == pytest.approx(1 - float(near.square().sum()) / energy, abs=1e-12)
    gap = relative[: len(near)].square() - near.square()  # Cauchy: at most ΔW's own; and no further than the error
    assert float(gap.min()) >= -1e-12
    assert float(gap.max()) <= found.error * energy + 1e-12
    whole = spectrum(update)
    assert found.frobenius == pytest.approx(whole.frobenius, rel=1e-4)
    assert found.rank <= whole.rank
    assert found.tolerance == pytest.approx(whole.tolerance, rel=0.05)


def test_energy_ranks_are_shares_of_all():
    update = known(falling(300, 1e-3), 300, 300)
    found, whole = spectrum(update, approximate=0.05), spectrum(update)
    assert 0 < found.error <= 0.05
    assert abs(found.energy_rank(0.9) - whole.energy_rank(0.9)) <= 1
    assert found.frobenius == pytest.approx(whole.frobenius, rel=1e-9)


@pytest.mark.parametrize("kind", ["flat", "small", "zeros", "factors"])
def test_where_nothing_can_be_saved_it_is_exact(kind):
    update = {
        "flat": torch.linalg.qr(random(300, 300)).Q,
        "small": random(20, 30),
        "zeros": torch.zeros(300, 300),
        "factors": random(300, 4) @ random(4, 300, seed=1),
    }[kind]
    given = {"factors": (random(300, 4), random(4, 300, seed=1))} if kind == "factors" else {"update": update}
    found, whole = spectrum(**given, approximate=0.01), spectrum(**given)
    assert found.error == 0
    assert found.route == whole.route
    assert torch.equal(found.singular_values, whole.singular_values)


def test_any_number_of_threads_gives_the_same_bits():
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            found.append([spectrum(UPDATES["falling"], approximate=0.01).singular_values, torch.get_num_threads()])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(values, found[0][0]) for values, _ in found)
    assert [threads for _, threads in found] == [1, 2, 3, 8]


@pytest.mark.parametrize("wrong", [0, 1, -0.1, 1.5, math.nan, "0.1", True])
def test_what_is_no_share_is_named(wrong):
    with pytest.raises(OptionError, match=r"approximate is .*choose the share"):
        spectrum(UPDATES["rank 8"], approximate=wrong)
