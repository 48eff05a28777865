"""The loop that puts changes together: its definition in torch, and a pair as it would be alone."""

import pytest
import torch
from torch import Tensor

from deltaw.adapters.compiled.changes import put_together
from deltaw.analysis.measures.change import _SQUARES, _TOLERANCE, _defined, _unit
from deltaw.analysis.measures.sums import Sums

BROKEN = 0.0, torch.nan
BEYOND = torch.inf, 1e-310, 1e301  # of float64 weights alone


def _sums(vectors: int, odd: tuple[float, ...] = BROKEN, pairs: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of squares from tiny to huge, with every kind of difference, and some that cannot be."""
    generator = torch.Generator().manual_seed(0)

    def random() -> Tensor:
        return torch.randn(pairs, vectors, dtype=torch.float64, generator=generator)

    aa = 10 ** (4 * random())
    dd = aa * 10 ** (8 * random() - 8)
    ad = (aa * dd).sqrt() * random().clamp(-1, 1) * (random() > 0)
    for place, (a, d) in enumerate((a, d) for a in odd for d in odd):
        if place < vectors:
            aa[1, place], dd[1, place], ad[1, place] = a, d, 0.0
    aa[2], ad[2], dd[2] = 1.0, 0.1, 0.5  # all settled
    aa[3], ad[3], dd[3] = 1.0, 0.0, 0.0  # no change, which the bound vouches for too
    return aa, ad, dd


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("vectors", [1, 7, 8, 61])
def test_loop_is_its_definition(vectors: int, dtype: torch.dtype) -> None:
    matrix = torch.empty(vectors, 5, dtype=dtype)
    squares, odd = (_SQUARES, BROKEN + BEYOND) if dtype == torch.float64 else (None, BROKEN)
    sums = Sums(*_sums(vectors, odd))
    magnitude, direction, which, about = put_together(*sums, _unit(matrix, "row"), _TOLERANCE, squares)
    expected = _defined(matrix, matrix, "row", sums)
    # Torch's square root may be off by a unit in the last place, which a direction magnifies where much cancels.
    torch.testing.assert_close(magnitude, expected[0], rtol=1e-15, atol=0, equal_nan=True)
    torch.testing.assert_close(direction[expected[3]], expected[1][expected[3]], rtol=1e-6, atol=0)
    assert direction.isnan().equal(expected[1].isnan())
    assert which.equal(expected[2].long() + 2 * expected[3].long())
    settled = (expected[2] & expected[3]).all(1)
    assert (about[:, 2] == 1).tolist() == settled.tolist()
    assert bool(settled[2])
    assert not bool(settled[1])
    means = torch.stack([magnitude[settled].mean(1), direction[settled].mean(1)], 1)
    torch.testing.assert_close(about[settled, :2], means, rtol=1e-14, atol=0)


def test_a_pair_is_as_alone() -> None:
    sums, (low, high) = _sums(20000, BROKEN + BEYOND, pairs=8), _SQUARES  # enough for a chunk a pair
    together = put_together(*sums, 1e-13, _TOLERANCE, (low, high))
    for pair in range(8):
        alone = put_together(*(t[pair : pair + 1] for t in sums), 1e-13, _TOLERANCE, (low, high))
        for one, many in zip(alone, together, strict=True):
            assert one[0].view(torch.int64).equal(many[pair].view(torch.int64))
