"""Intruder dimensions against the algorithm's loops, and updates of which it is known what they are."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaw.adapters.errors import NonFiniteError, OptionError, ShapeError
from deltaw.analysis.measures.intruders import intruders
from deltaw.analysis.measures.subspace import directions


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(n, seed):
    return torch.linalg.qr(random(n, n, seed=seed)).Q


def by_loops(before, after, k, epsilon):
    """Algorithm 1, line by line."""
    base = np.linalg.svd(before.numpy(), full_matrices=False)[0].T
    trained = np.linalg.svd(after.numpy(), full_matrices=False)[0].T
    best, count = [], 0
    for y in trained[:k]:
        cosines = [abs(float(x @ y)) / (np.linalg.norm(x) * np.linalg.norm(y)) for x in base]
        best.append(max(cosines))
        count += all(cosine < epsilon for cosine in cosines)
    return best, count


@given(st.integers(1, 12), st.integers(1, 12), st.floats(0.05, 1), st.floats(0.01, 10), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_it_is_the_algorithm(out, columns, epsilon, size, seed):
    before = random(out, columns, seed=seed)
    after = before + size * random(out, columns, seed=seed + 1)
    k = min(out, columns, 4)
    found = intruders(before, after, k=k, epsilon=epsilon)
    best, count = by_loops(before, after, k, epsilon)
    np.testing.assert_allclose(found.similarity, best, rtol=0, atol=1e-8)
    np.testing.assert_allclose(found.singular_values, np.linalg.svd(after.numpy())[1][:k])
    if not any(math.isclose(value, epsilon, abs_tol=1e-8) for value in best):
        assert found.count == count
    p, q = orthogonal(out, seed), orthogonal(columns, seed)
    turned = intruders(p @ before @ q, 3 * p @ after @ q, k=k, epsilon=epsilon)
    np.testing.assert_allclose(turned.similarity, found.similarity, rtol=0, atol=1e-6)
    torch.testing.assert_close(intruders(directions(before), after, k=k).similarity, found.similarity)


def spaced(out, columns):
    """A matrix whose singular values are well apart, and its left singular vectors."""
    u, v = orthogonal(out, 1)[:, :columns], orthogonal(columns, 2)
    return u * torch.linspace(columns, 1, columns, dtype=torch.float64) @ v.T, u, v


def test_a_strong_new_direction_is_an_intruder():
    before, u, v = spaced(20, 12)
    assert intruders(before, before).count == 0
    assert float(intruders(before, before, k=12).similarity.min()) == pytest.approx(1)
    assert intruders(before, -5 * before, k=12).count == 0
    new = u.sum(1, keepdim=True) / math.sqrt(12)  # cosine 0.29 with every direction there is
    found = intruders(before, before + 100 * new @ v.sum(1, keepdim=True).T / math.sqrt(12))
    assert found.found.tolist()[0] is True
    assert float(found.similarity[0]) == pytest.approx(1 / math.sqrt(12), abs=0.02)
    assert float(found.singular_values[0]) > 90
    # a direction that was there, made stronger, moves to the front and is none
    assert intruders(before, before + 100 * u[:, 9:10] @ v[:, 9:10].T).count == 0


def test_directions_without_weight_in_the_base_do_not_count():
    """The base has rank 2 of 4; a new direction in the rest is like no vector of it, whatever an SVD puts there."""
    before = torch.diag(torch.tensor([2.0, 1.0, 0.0, 0.0]))
    after = before.clone()
    after[2, 2] = 5
    found = intruders(before, after, k=3)
    assert found.similarity.tolist() == pytest.approx([0, 1, 1])
    assert found.found.tolist() == [True, False, False]


def test_the_threshold_decides():
    before, _, _ = spaced(15, 10)
    after = before + random(15, 10)
    counts = [intruders(before, after, k=10, epsilon=epsilon).count for epsilon in (0.05, 0.5, 0.7, 0.9, 1.0)]
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] == 10


def test_weights_of_any_dtype_are_what_they_are():
    before, _, _ = spaced(20, 12)
    small = before.float()
    after = small + 1e-3 * random(20, 12).float()
    wide = intruders(small.double(), after.double())
    assert torch.equal(intruders(small, after).similarity, wide.similarity)


def test_errors_name_the_argument():
    before = random(6, 4)
    for k in (0, 5, True, 2.0):
        with pytest.raises(OptionError, match=f"k is {k}; choose a whole number from 1 to 4"):
            intruders(before, before, k=k)
    for epsilon in (0, 1.1, math.nan, "0.5"):
        with pytest.raises(OptionError, match="epsilon is"):
            intruders(before, before, k=1, epsilon=epsilon)
    with pytest.raises(ShapeError, match=r"before has shape \(6, 4\) and after has shape \(4, 6\)"):
        intruders(before, before.T, k=1)
    with pytest.raises(OptionError, match="before is zero"):
        intruders(torch.zeros(6, 4), before, k=1)
    with pytest.raises(OptionError, match="after is zero"):
        intruders(before, torch.zeros(6, 4), k=1)
    with pytest.raises(NonFiniteError, match="after"):
        intruders(before, before * math.nan, k=1)
    with pytest.raises(NonFiniteError, match="before"):
        intruders(before * math.nan, before, k=1)
