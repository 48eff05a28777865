"""Leading singular vectors by the block Krylov method: against the whole decomposition, or none at all."""

import math

import pytest
import torch

from deltaw.analysis.measures.strongest import CERTAIN, strongest
from deltaw.analysis.measures.subspace import principal_angles


def with_spectrum(values, out=840, width=780, seed=0):
    generator = torch.Generator().manual_seed(seed)
    u, v = (
        torch.linalg.qr(torch.randn(n, len(values), generator=generator, dtype=torch.float64)).Q for n in (out, width)
    )
    return (u * torch.tensor(values, dtype=torch.float64)) @ v.T, u, v


DECAYS = [0.8**i for i in range(60)]


@pytest.mark.parametrize(
    ("values", "k"),
    [(DECAYS, 8), ([3.0, 2.0, 1.0], 3), ([1.0, 1.0, 1.0, 0.3, *[0.1] * 500], 3), ([1e-200, 5e-201], 2)],
    ids=["decays", "all of a low rank", "a cluster", "tiny"],
)
@pytest.mark.parametrize("transposed", [False, True], ids=["tall", "wide"])
def test_they_span_what_the_decomposition_finds(values, k, transposed):
    matrix, left, right = with_spectrum(values)
    if transposed:
        matrix, left, right = matrix.T, right, left
    found = strongest(matrix, k)
    assert found is not None
    for got, want in zip(found, (left[:, :k], right[:, :k]), strict=True):
        torch.testing.assert_close(got.T @ got, torch.eye(k, dtype=torch.float64), atol=1e-9, rtol=0)
        assert float(principal_angles(got, want)[-1]) <= 2 * CERTAIN
    gram = found[0].T @ (matrix / matrix.abs().max()) @ found[1]
    assert float((gram - torch.diag(gram.diagonal())).abs().max()) <= 1e-6 * float(gram[0, 0])
    assert bool((gram.diagonal() > 0).all())


def test_there_is_none_where_the_span_is_not_determined():
    assert strongest(with_spectrum([1.0, 0.5, 0.5, 0.5 - 1e-12, 0.1])[0], 2) is None
    assert strongest(torch.randn(800, 800, generator=torch.Generator().manual_seed(0)), 8) is None
    assert strongest(with_spectrum([1.0, 0.5], out=100, width=90)[0], 2) is None
    assert strongest(torch.zeros(800, 800), 2) is None


def test_the_same_bits_for_any_number_of_threads():
    matrix, threads = with_spectrum(DECAYS)[0].float(), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(strongest(matrix, 5))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert math.isfinite(float(found[0][0].sum()))
