"""What unrelated directions and weights share: against the formulas written out, and against seeded draws."""

from math import comb, perm

import numpy as np
import pytest
import torch

from deltaw.adapters.errors import DeltawError
from deltaw.analysis.measures.chance import expected_angles, expected_similarity
from deltaw.analysis.measures.similarity import similarity
from deltaw.analysis.measures.subspace import overlap, principal_angles

SIZES = [(1, 1, 16), (2, 2, 64), (8, 8, 64), (8, 3, 32), (4, 16, 128), (16, 16, 33), (6, 6, 12)]


def drawn(first: int, second: int, size: int, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(size, first), (size, second)]
    return [
        tuple(torch.linalg.qr(torch.randn(shape, generator=generator, dtype=torch.float64))[0] for shape in shapes)
        for _ in range(count)
    ]


@pytest.mark.parametrize(("first", "second", "size"), SIZES)
def test_angles_are_the_zeros_of_the_expected_polynomial(first, second, size) -> None:
    found = expected_angles(first, second, size)
    k, m = sorted((first, second))
    polynomial = [(-1) ** term * comb(k, term) * perm(m, term) / perm(size, term) for term in range(k + 1)]
    np.testing.assert_allclose(np.poly(np.cos(found) ** 2), polynomial, atol=1e-12)
    assert list(found) == sorted(found)


def test_the_polynomial_and_the_overlap_are_those_of_random_subspaces() -> None:
    pairs = drawn(3, 5, 12, 4000)
    squares = [np.cos(principal_angles(a, b).numpy()) ** 2 for a, b in pairs]
    mean = np.mean([np.poly(found) for found in squares], axis=0)
    np.testing.assert_allclose(np.poly(np.cos(expected_angles(3, 5, 12)) ** 2), mean, rtol=0.05)
    assert np.mean([float(overlap(a, b)[2, 4]) for a, b in pairs]) == pytest.approx(5 / 12, rel=0.01)  # max(i, j)/n


def test_angles_lie_near_the_means_of_the_ordered_angles() -> None:
    mean = np.mean([principal_angles(a, b).numpy() for a, b in drawn(8, 8, 128, 400)], axis=0)
    np.testing.assert_allclose(np.rad2deg(expected_angles(8, 8, 128)), np.rad2deg(mean), atol=1.5)


def test_subspaces_too_large_to_be_apart_share_directions() -> None:
    found = expected_angles(10, 12, 16)
    assert list(found[:6]) == [0.0] * 6
    np.testing.assert_allclose(found[6:], expected_angles(4, 6, 16))
    assert list(expected_angles(4, 4, 4)) == [0.0] * 4
    np.testing.assert_allclose(expected_angles(3, 4, 4), 0.0)


def test_a_large_space_keeps_its_digits() -> None:
    found = np.rad2deg(expected_angles(64, 64, 8192))
    assert np.isfinite(found).all()
    assert 79 < found[0] < 81
    assert 89.9 < found[-1] < 90


@pytest.mark.parametrize(("n", "p", "q"), [(64, 64, 64), (96, 32, 32), (32, 128, 64)])
def test_similarity_is_that_of_normal_matrices(n, p, q) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(n, p), (n, q)]
    found = [
        similarity(*(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes))
        for _ in range(20)
    ]
    assert np.mean(found) == pytest.approx(expected_similarity(n, p, q), rel=0.03)


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(DeltawError, match="first is 9; choose at most 8"):
        expected_angles(9, 2, 8)
    with pytest.raises(DeltawError, match="second"):
        expected_angles(2, 0, 8)
    with pytest.raises(DeltawError, match="features"):
        expected_similarity(4, 0)
