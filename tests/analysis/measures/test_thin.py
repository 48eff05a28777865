"""A matrix times a few vectors is what @ says."""

import pytest
import torch

from deltaw.analysis.measures.thin import times_thin


@pytest.mark.parametrize("count", [1, 3, 40])
@pytest.mark.parametrize("turned", [False, True])
def test_it_is_the_product(count, turned):
    draw = torch.Generator().manual_seed(0)
    matrix = torch.randn(50, 50, generator=draw, dtype=torch.float64)
    matrix = matrix.T if turned else matrix
    thin = torch.randn(50, count, generator=draw, dtype=torch.float64)
    torch.testing.assert_close(times_thin(matrix, thin), matrix @ thin, rtol=1e-12, atol=1e-12)
