"""The amplification factor against numpy's dense definition, and the laws it keeps."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaw.adapters.errors import NonFiniteError, OptionError, ShapeError
from deltaw.analysis.measures.amplification import amplification
from deltaw.analysis.measures.subspace import directions


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(n, seed):
    return torch.linalg.qr(random(n, n, seed=seed)).Q


@given(st.integers(1, 10), st.integers(1, 10), st.integers(1, 10), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_it_is_its_definition(out, columns, rank, seed):
    rank = min(rank, out, columns)
    W, D = random(out, columns, seed=seed), random(out, columns, seed=seed + 1)
    found = amplification(W, directions(D), rank)
    u, s, vt = np.linalg.svd(D.numpy())
    u_w, _, vt_w = np.linalg.svd(W.numpy())
    norm = np.linalg.norm(W, "fro")
    projected = np.linalg.norm(u[:, :rank].T @ W.numpy() @ vt[:rank].T, "fro")
    assert found.projected == pytest.approx(projected, rel=1e-9)
    assert found.factor == pytest.approx(np.linalg.norm(D, "fro") / projected, rel=1e-9)
    own = np.linalg.norm(u_w[:, :rank].T @ W.numpy() @ vt_w[:rank].T, "fro")
    assert found.projected_own == pytest.approx(own, rel=1e-12)
    assert found.projected <= found.projected_own * (1 + 1e-12)
    assert found.projected_random == pytest.approx(rank * norm / math.sqrt(out * columns))
    assert (found.weight_norm, found.update_norm) == pytest.approx((norm, np.linalg.norm(D, "fro")))
    assert found.share == pytest.approx((s[:rank] ** 2).sum() / (s**2).sum())


def test_factors_give_what_the_update_gives():
    U, V, W = random(30, 4), random(4, 20, seed=1), random(30, 20, seed=2)
    for rank in (1, 3, 4):
        cheap, dense = (amplification(W, found, rank) for found in (directions(factors=(U, V)), directions(U @ V)))
        assert dataclasses.astuple(cheap) == pytest.approx(dataclasses.astuple(dense))
    known = amplification(W, directions(U @ V), 3, singular_values=torch.linalg.svdvals(W))
    assert known == amplification(W, directions(U @ V), 3)


def test_random_directions_hold_what_is_said():
    W = random(12, 20) * torch.logspace(0, -2, 20, dtype=torch.float64)
    squares = []
    for seed in range(2000):
        U, V = torch.linalg.qr(random(12, 3, seed=seed)).Q, torch.linalg.qr(random(20, 3, seed=seed + 9999)).Q
        squares.append(float((U.T @ W @ V).square().sum()))
    wanted = amplification(W, directions(W), 3).projected_random
    error = np.std(squares) / math.sqrt(len(squares))
    assert abs(np.mean(squares) - wanted**2) < 4 * error < 0.2 * wanted**2


@given(st.integers(0, 10_000), st.floats(0.01, 100))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_laws(seed, scale):
    W, D = random(9, 7, seed=seed), random(9, 7, seed=seed + 1)
    factor = amplification(W, directions(D), 2).factor
    p, q = orthogonal(9, seed), orthogonal(7, seed + 1)
    assert amplification(W, directions(scale * D), 2).factor == pytest.approx(scale * factor)
    assert amplification(scale * W, directions(D), 2).factor == pytest.approx(factor / scale)
    assert amplification(p @ W @ q, directions(p @ D @ q), 2).factor == pytest.approx(factor, rel=1e-6)
    assert amplification(W.T, directions(D.T), 2).factor == pytest.approx(factor, rel=1e-6)


def test_an_update_along_the_weights_own_directions():
    W = random(9, 7)
    u, s, vt = torch.linalg.svd(W, full_matrices=False)
    found = amplification(W, directions(factors=(3 * u[:, :2] * s[:2], vt[:2])), 2)
    assert found.factor == pytest.approx(3)
    assert found.projected == pytest.approx(found.projected_own)
    assert found.share == 1
    aside = torch.zeros(3, 3)
    aside[2, 2] = 1
    assert amplification(torch.eye(3) - aside, directions(aside), 1).factor == math.inf


def test_errors_name_the_argument():
    W = random(4, 3)
    moved = directions(factors=(random(4, 2), random(2, 3)))
    with pytest.raises(OptionError, match="rank is 3, and the update has 2 directions"):
        amplification(W, moved, 3)
    with pytest.raises(OptionError, match="the update is zero"):
        amplification(W, directions(torch.zeros(4, 3)), 1)
    with pytest.raises(ShapeError, match=r"weight has shape \(3, 4\) and the update \(4, 3\)"):
        amplification(W.T, moved, 1)
    with pytest.raises(NonFiniteError, match="weight"):
        amplification(W * math.nan, moved, 1)
