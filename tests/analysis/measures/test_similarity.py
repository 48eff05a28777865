"""CKA against its definition in exact arithmetic, and the invariances it is named for."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltaw.adapters.errors import NonFiniteError, OptionError, ShapeError
from deltaw.analysis.measures.similarity import dissimilarity, similarity


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(n, seed):
    return torch.linalg.qr(random(n, n, seed=seed)).Q


def exact(first, second):
    """1 − CKA from HSIC(K, L) = tr(K H L H)/(n − 1)², H = I − 1/n, rows as examples, in 100 digits."""
    with mpmath.workdps(100):
        n = len(first)
        X, Y = (mpmath.matrix(t.double().tolist()) for t in (first, second))
        H = mpmath.eye(n) - mpmath.ones(n) / n

        def hsic(K, L):
            product = K * H * L * H
            return mpmath.fsum(product[i, i] for i in range(n)) / (n - 1) ** 2

        K, L = X * X.T, Y * Y.T
        return float(1 - hsic(K, L) / mpmath.sqrt(hsic(K, K) * hsic(L, L)))


@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (2, 5), (5, 1), (4, 4)])
@pytest.mark.parametrize("change", [10, 1, 1e-3, 1e-6, 1e-9, 1e-11])
@pytest.mark.parametrize("scale", [1, 1e3])
def test_it_is_its_definition_with_its_digits(shape, change, scale):
    first = random(*shape)
    second = scale * (first + change * random(*shape, seed=1))
    wanted = exact(first, second)
    assert dissimilarity(first, second) == pytest.approx(wanted, rel=1e-12 + 1e-14 / change, abs=1e-31)
    assert similarity(first, second) == pytest.approx(1 - wanted, rel=1e-12)
    assert dissimilarity(first.T, second.T, examples="column") == dissimilarity(first, second)


@given(st.integers(2, 12), st.integers(1, 12), st.integers(1, 12), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_it_is_numpys_and_keeps_the_laws(n, p, q, seed):
    X, Y = random(n, p, seed=seed), random(n, q, seed=seed + 1)
    found = similarity(X, Y)
    x, y = (t.numpy() - t.numpy().mean(0) for t in (X, Y))
    numpys = np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    assert found == pytest.approx(numpys, abs=1e-12)
    assert 0 <= found <= 1
    same = [
        similarity(Y, X),
        similarity(X @ orthogonal(p, seed), Y),  # the features turned
        similarity(1e-7 * X, -3e5 * Y),
        similarity(X + random(1, p, seed=seed + 2), Y),  # every example shifted by the same
    ]
    assert same == pytest.approx([found] * 4, abs=1e-10)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert similarity(X[order], Y[order]) == pytest.approx(found, abs=1e-12)
    assert dissimilarity(X, X) == 0
    assert dissimilarity(X, X @ orthogonal(p, seed)) == pytest.approx(0, abs=1e-14)


def test_the_sizes_of_the_numbers_do_not_matter():
    X, Y = random(6, 4), random(6, 4, seed=1)
    wanted = dissimilarity(X, Y)
    for scale in (1e-300, 1e-160, 1e160, 1e300):
        assert dissimilarity(scale * X, Y) == pytest.approx(wanted)
        assert dissimilarity(scale * X, scale * Y) == pytest.approx(wanted)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_without_a_pattern_there_is_nothing_to_compare(shape):
    for flat in (
        torch.zeros(shape),
        torch.full(shape, 0.1),
        0.1 * torch.ones(shape[0], 1) @ random(1, shape[1]).float(),
    ):
        assert math.isnan(similarity(flat, random(*shape)))
        assert math.isnan(similarity(random(*shape), flat))


def test_16_bits_are_widened():
    X, Y = random(6, 4).bfloat16(), random(6, 4, seed=1).half()
    assert similarity(X, Y) == similarity(X.double(), Y.double())


def test_errors_name_the_argument():
    X = random(4, 3)
    with pytest.raises(OptionError, match="examples is 'diagonal'"):
        similarity(X, X, examples="diagonal")
    with pytest.raises(ShapeError, match=r"first has shape \(4, 3\) and second \(5, 3\); .* number of rows"):
        similarity(X, random(5, 3))
    with pytest.raises(ShapeError, match="number of columns"):
        similarity(X, random(4, 4), examples="column")
    with pytest.raises(NonFiniteError, match="second"):
        similarity(X, X * math.inf)
    with pytest.raises(OptionError, match="first"):
        similarity(X.long(), X)
