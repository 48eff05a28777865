"""The levels of chance of the geometry, against seeded draws."""

import numpy as np
import pytest

from deltaw.adapters.errors import OptionError
from deltaw.analysis.measures.random_update import expected_off_principal, expected_rotation, random_rotation


def test_an_update_of_independent_entries_off_the_principals():
    generator = np.random.default_rng(0)
    left, right = (np.linalg.qr(generator.normal(size=(n, 3)))[0] for n in (10, 7))
    shares = {"both": [], "left": [], "right": []}
    for _ in range(4000):
        update = generator.choice([-1.0, 1.0], size=(10, 7)) * generator.exponential(size=(10, 7))
        whole = np.sum(update**2)
        within = {"both": left.T @ update @ right, "left": left.T @ update, "right": update @ right}
        for side, part in within.items():
            shares[side].append(1 - np.sum(part**2) / whole)
    for side, found in shares.items():
        expected = expected_off_principal(3, 10, 7, side)
        assert abs(np.mean(found) - expected) < 4 * np.std(found) / np.sqrt(len(found)), side


def test_the_largest_angle_of_random_subspaces():
    generator = np.random.default_rng(0)
    for k, n in ((4, 64), (20, 64)):
        largest = []
        for _ in range(100):
            a, b = (np.linalg.qr(generator.normal(size=(n, k)))[0] for _ in range(2))
            largest.append(np.rad2deg(np.arccos(np.linalg.svd(a.T @ b, compute_uv=False)[-1])))
        assert abs(np.mean(largest) - expected_rotation(k, n)) < 2


@pytest.mark.parametrize(("rows", "columns", "k"), [(40, 40, 4), (60, 30, 5), (30, 60, 1)])
def test_a_random_update_turns_the_subspaces_as_far_as_first_order_says(rows, columns, k):
    generator = np.random.default_rng(1)
    size = min(rows, columns)
    left, right = (np.linalg.qr(generator.normal(size=(n, size)))[0] for n in (rows, columns))
    sigma = np.arange(1, size + 1) ** -0.7
    before = left * sigma @ right.T
    for norm in (0.003, 0.05):
        turned = []
        for _ in range(60):
            update = generator.normal(size=(rows, columns))
            after = before + update * norm / np.linalg.norm(update)
            u, _, v = np.linalg.svd(after, full_matrices=False)
            sides = [
                np.linalg.norm(new - old @ (old.T @ new), 2)
                for old, new in ((left[:, :k], u[:, :k]), (right[:, :k], v[:k].T))
            ]
            turned.append(np.rad2deg(np.arcsin(sides)))
        expected = random_rotation(sigma, rows, columns, k, norm)
        assert expected < 10
        # The draws of both have a standard error of a few percent.
        assert max(np.mean(turned, axis=0)) == pytest.approx(expected, rel=0.1)


def test_where_a_random_update_has_no_honest_angle():
    sigma = np.array([3.0, 2.0, 2.0, 1.0])
    assert np.isnan(random_rotation(sigma, 4, 4, 2, 1e-6))
    assert random_rotation(sigma, 4, 4, 1, 0.0) == 0.0
    assert np.isnan(random_rotation(sigma, 4, 4, 1, 100.0))
    assert random_rotation(sigma, 4, 4, 4, 1.0) == 0.0  # the whole space
    assert random_rotation(1e-300 * sigma, 4, 4, 1, 1e-302) == pytest.approx(random_rotation(sigma, 4, 4, 1, 1e-2))
    for call in (lambda: random_rotation(sigma, 5, 5, 1), lambda: expected_off_principal(5, 4, 9)):
        with pytest.raises(OptionError):
            call()
    with pytest.raises(OptionError, match="sides is 'up'"):
        expected_off_principal(1, 4, 9, "up")
