"""The energy of one update in another's leading directions, and what chance gives with its spread."""

import math

import numpy as np
import pytest
import torch

from deltaw.adapters import OptionError, ShapeError
from deltaw.analysis import overlap_energy
from deltaw.analysis.measures.chance import energy_spread


def made(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_is_the_share_of_the_energy_after_projection():
    u, v, x, y = made(30, 4), made(4, 20, seed=1), made(30, 3, seed=2), made(3, 20, seed=3)
    a, b = u @ v, 1e-160 * x @ y
    left, _, right = torch.linalg.svd(a)
    left, right, whole = left[:, :2], right[:2].T, torch.linalg.matrix_norm(b * 1e160)
    want = [
        float(torch.linalg.matrix_norm(m * 1e160) / whole) ** 2 for m in (left.T @ b, b @ right, left.T @ b @ right)
    ]
    for first, second in ((a, b), ((u, v), b), (a, (1e-160 * x, y)), ((u, v), (x, 1e-160 * y))):
        found = overlap_energy(first, second, k=2)
        assert [found.left, found.right, found.both] == pytest.approx(want, rel=1e-10)
        values = torch.linalg.svdvals(b * 1e160)
        d = float(values.square().sum()) ** 2 / float((values**4).sum())
        assert found.participation == pytest.approx(d, rel=1e-10)
    assert overlap_energy(a, a, k=4).both == pytest.approx(1.0)
    assert (found.left_expected, found.right_expected) == (2 / 30, 2 / 20)
    assert found.both_expected == pytest.approx(4 / 600)


def test_random_updates_have_the_share_and_the_spread_that_are_given():
    fixed, found = made(24, 16), []
    for seed in range(600):
        q = torch.linalg.qr(made(24, 24, seed=seed)).Q
        found.append(overlap_energy(fixed, q @ torch.diag(torch.arange(24.0).double())[:, :16], k=3))
    shares = [one.left for one in found]
    assert np.mean(shares) == pytest.approx(3 / 24, abs=4 * found[0].spread("left") / math.sqrt(600))
    assert np.std(shares) == pytest.approx(found[0].spread("left"), rel=0.1)
    assert energy_spread(24, 24, 5.0) == 0.0


def test_zeros_and_too_many_directions():
    assert math.isnan(overlap_energy(torch.eye(3), torch.zeros(3, 3), k=1).left)
    with pytest.raises(OptionError, match="has 2 directions above its tolerance"):
        overlap_energy((made(9, 2), made(2, 8)), made(9, 8), k=3)
    with pytest.raises(ShapeError):
        overlap_energy(made(9, 8), made(8, 9), k=3)
