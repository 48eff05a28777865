"""Signs of two updates: against torch.sign, from factors and dense, and what chance gives."""

import numpy as np
import pytest
import torch

from deltaw.adapters import NonFiniteError, ShapeError
from deltaw.analysis import sign_agreement
from deltaw.analysis.measures.chance import sign_spread
from deltaw.analysis.measures.inner import operand
from deltaw.analysis.measures.signs import signs


def made(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def slow(a, b):
    return float((a.sign() == b.sign()).double().mean())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_it_is_the_share_of_equal_signs_zeros_among_them(dtype):
    a, b = made(700, 900, dtype=dtype), made(700, 900, seed=1, dtype=dtype)  # more rows than one part has
    a[a.abs() < 0.3], b[b.abs() < 0.2] = 0, 0
    assert sign_agreement(a, b) == slow(a, b)
    found = signs(operand("a", a), operand("b", b))
    for i in range(3):
        for j in range(3):
            assert found.counts[i][j] == int(((a.sign() == i - 1) & (b.sign() == j - 1)).sum())
    shares = [[float((m.sign() == k).double().mean()) for k in (-1, 0, 1)] for m in (a, b)]
    assert found.expected == pytest.approx(sum(p * q for p, q in zip(*shares, strict=True)), rel=1e-12)
    assert sign_agreement(torch.zeros(3, 2), torch.zeros(3, 2)) == 1.0


def test_factors_dense_matrices_and_one_of_each_agree():
    u, v, x, y = made(50, 3), made(3, 40, seed=1), made(50, 2, seed=2), made(2, 40, seed=3)
    x[4] = 0
    a, b = u @ v, x @ y
    for first, second in (((u, v), (x, y)), (a, (x, y)), ((u, v), b), (a.numpy(), b.numpy())):
        assert sign_agreement(first, second) == slow(a, b)
    assert sign_agreement((-u, v), (u, v)) == 0.0


def test_unrelated_updates_of_any_rank_agree_in_half_of_the_entries():
    for rank in (1, 3, 20):
        found = [
            sign_agreement(*((made(20, rank, seed=4 * s + k), made(rank, 30, seed=4 * s + k + 1)) for k in (0, 2)))
            for s in range(400)
        ]
        assert np.mean(found) == pytest.approx(0.5, abs=4 * sign_spread(20, 30) / 20)
        assert np.std(found) == pytest.approx(sign_spread(20, 30), rel=0.15)


def test_bad_input():
    with pytest.raises(ShapeError, match="pass updates of one matrix"):
        sign_agreement(torch.ones(2, 3), torch.ones(3, 2))
    with pytest.raises(NonFiniteError, match="second"):
        sign_agreement(torch.ones(2, 3), torch.full((2, 3), torch.nan))
