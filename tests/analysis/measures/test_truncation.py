"""The best approximation of lower rank, and the error of what is stored, held to dense arithmetic."""

import pytest
import torch

from deltaw.adapters.method import ScaledFactors
from deltaw.analysis.measures.truncation import decomposed, distance


def factors(rows=20, columns=15, rank=6, scaling=0.5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    U = torch.randn(rows, rank, generator=generator, dtype=torch.float64) * torch.logspace(0, -3, rank)
    V = torch.randn(rank, columns, generator=generator, dtype=torch.float64)
    return ScaledFactors(U.to(dtype), V.to(dtype), scaling)


def dense(of):
    return of.scaling * (of.U.double() @ of.V.double())


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_no_matrix_of_the_rank_is_nearer(rank):
    """Eckart and Young: the error is that of the dense decomposition, in both norms."""
    of = factors()
    values = torch.linalg.svdvals(dense(of))
    for found in (decomposed(of), decomposed(dense(of))):
        B, A = found.halves(rank, of.scaling, torch.float64)
        rest = dense(of) - of.scaling * (B @ A)
        assert (B.shape, A.shape) == ((20, rank), (rank, 15))
        frobenius, spectral = found.beyond(rank)
        whole = float(values[0])
        assert float(rest.norm()) == pytest.approx(float(values[rank:].norm()), rel=1e-9, abs=1e-13 * whole)
        assert frobenius == pytest.approx(float(values[rank:].norm()), rel=1e-9, abs=1e-13 * whole)
        assert spectral == pytest.approx(float(values[rank]), rel=1e-9, abs=1e-13 * whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_error_counts_the_rounding(dtype, stored):
    """From small matrices as from the dense difference."""
    of = factors(dtype=dtype)
    B, A = decomposed(of).halves(4, of.scaling, stored)
    rest = dense(of) - of.scaling * (B.double() @ A.double())
    for update in (of, dense(of)):
        found = distance(update, B, A, of.scaling)
        wanted = (float(rest.norm()), float(torch.linalg.matrix_norm(rest, 2)))
        assert found == pytest.approx(wanted, rel=1e-9)


def test_what_the_rank_has_too_much_adds_nothing_and_can_be_trained():
    of = factors(rank=2)
    B, A = decomposed(of).halves(5, of.scaling, torch.float64)
    assert float((dense(of) - of.scaling * (B @ A)).norm()) < 1e-12
    assert not B[:, 2:].any()
    assert A[2:].any(1).all()
    B, A = decomposed(torch.zeros(4, 3)).halves(2, 1.0, torch.float32)
    assert not B.any()
    assert distance(torch.zeros(4, 3), B, A, 1.0) == (0.0, 0.0)
