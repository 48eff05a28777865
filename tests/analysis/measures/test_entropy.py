"""The entropy of a spectrum: against the definition in many digits, its bounds, and the effective rank."""

import math

import mpmath
import pytest
import torch

from deltaw.adapters import NonFiniteError, OptionError, ShapeError
from deltaw.analysis import spectral_entropy, spectrum


@pytest.mark.parametrize("power", [1, 2])
def test_it_is_the_definition(power):
    sigma = torch.rand(30, generator=torch.Generator().manual_seed(0), dtype=torch.float64).sort(descending=True).values
    with mpmath.workdps(40):
        weights = [mpmath.mpf(x) ** power for x in sigma.tolist()]
        p = [x / mpmath.fsum(weights) for x in weights]
        want = -mpmath.fsum(x * mpmath.log(x) for x in p) / mpmath.log(50)
    assert spectral_entropy(sigma, power=power, size=50) == pytest.approx(float(want), rel=1e-14)
    assert spectral_entropy(1e-180 * sigma, power=power, size=50) == pytest.approx(float(want), rel=1e-14)


def test_it_is_the_logarithm_of_the_effective_rank():
    update = torch.randn(20, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = spectrum(update)
    assert spectral_entropy(found.signal) == pytest.approx(math.log(found.effective_rank) / math.log(12), rel=1e-12)


def test_its_bounds():
    assert spectral_entropy(torch.ones(8)) == pytest.approx(1.0)
    assert spectral_entropy(torch.ones(8), size=64) == pytest.approx(0.5)
    assert spectral_entropy(torch.tensor([3.0])) == 0.0
    assert math.isnan(spectral_entropy(torch.zeros(3)))
    few = torch.tensor([1.0, 0.1, 0.1, 0.1])
    assert spectral_entropy(few, power=2) < spectral_entropy(few)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"power": 3}, OptionError),
        ({"size": 1}, OptionError),
        ({"singular_values": torch.ones(2, 2)}, ShapeError),
        ({"singular_values": torch.tensor([1.0, math.nan])}, NonFiniteError),
        ({"singular_values": -torch.ones(2)}, OptionError),
    ],
    ids=["power", "size", "shape", "nan", "negative"],
)
def test_bad_input(wrong, error):
    with pytest.raises(error):
        spectral_entropy(**({"singular_values": torch.ones(2)} | wrong))
