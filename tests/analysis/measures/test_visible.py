"""Which entries change once they are stored, against loops over the bits of the stored values."""

import numpy as np
import pytest
import torch

from deltaw.adapters.errors import NonFiniteError, OptionError, ShapeError
from deltaw.analysis.measures.visible import PATH_NOT_TAKEN, visible_changes, visible_share

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def pair(size, out=37, columns=53, seed=0):
    g = torch.Generator().manual_seed(seed)
    before = torch.randn(out, columns, generator=g, dtype=torch.float64)
    return before, before + size * torch.randn(out, columns, generator=g, dtype=torch.float64)


def bfloat16(value: float) -> int:
    """The bits of bfloat16 nearest to a float32, ties to even, in whole numbers."""
    bits = int(np.float32(value).view(np.uint32))
    return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16


@pytest.mark.parametrize("size", [1e-4, 1e-2])
def test_bfloat16_against_whole_numbers(size):
    before, after = pair(size)
    want = [
        [bfloat16(a) != bfloat16(b) for a, b in zip(*rows, strict=True)] for rows in zip(before, after, strict=True)
    ]
    assert visible_changes(before, after).tolist() == want
    assert 0 < visible_share(before, after) < 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [0.0, 1e-8, 1e-3, 1.0])
def test_shares_are_means_of_the_mask(dtype, size):
    before, after = pair(size, out=3000, columns=401)  # several blocks of rows
    mask = before.to(dtype) != after.to(dtype)
    assert torch.equal(visible_changes(before, after, dtype=dtype), mask)
    assert visible_share(before, after, dtype=dtype) == float(mask.double().mean())
    for axis, dim in (("row", 1), ("column", 0)):
        torch.testing.assert_close(
            visible_share(before, after, dtype=dtype, axis=axis), mask.double().mean(dim), rtol=1e-15, atol=0
        )


def test_a_finer_dtype_shows_more():
    before, after = pair(1e-4)
    shares = [visible_share(before, after, dtype=dtype) for dtype in DTYPES]
    assert shares[0] < shares[1] < shares[2]


def test_the_rule_of_the_path_not_taken_is_bitwise_equality_in_bfloat16():
    """Their remark to definition 2.1, over every finite value of bfloat16 and its neighbours."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = bits.view(torch.bfloat16)
    values = values[values.isfinite()].double().sort().values.unique()
    before, after = values[:-1][None], values[1:][None]  # neighbours differ, the nearest by 2⁻⁸ of the larger
    assert visible_share(before, after, tolerance=PATH_NOT_TAKEN) == 1.0
    assert visible_share(before, before, tolerance=PATH_NOT_TAKEN) == 0.0
    old, new = (matrix.bfloat16() for matrix in pair(3e-3))
    assert torch.equal(visible_changes(old, new), visible_changes(old, new, tolerance=PATH_NOT_TAKEN))


def test_the_two_rules_differ_on_weights_of_finer_dtypes():
    before = torch.tensor([[1.0, 1.00390625 + 1e-7]])
    after = torch.tensor([[1.003, 1.00390625 - 1e-6]])
    assert visible_changes(before, after).tolist() == [[False, True]]
    assert visible_changes(before, after, tolerance=PATH_NOT_TAKEN).tolist() == [[True, False]]


def test_what_counts_as_the_same():
    assert visible_share(torch.tensor([[0.0]]), torch.tensor([[-0.0]])) == 0.0
    assert visible_share(torch.tensor([[0.0]]), torch.tensor([[1e-30]]), tolerance=PATH_NOT_TAKEN) == 1.0
    # Both are infinite once they are stored.
    assert visible_share(torch.tensor([[1e6]]), torch.tensor([[2e6]]), dtype=torch.float16) == 0.0
    assert visible_share(np.eye(2), np.eye(2) * 2) == 0.5


def test_wrong_calls_are_named():
    good = torch.ones(2, 2)
    for call, error, text in (
        (lambda: visible_share(good, torch.ones(2, 3)), ShapeError, "after has shape"),
        (lambda: visible_share(good, good, dtype=torch.int8), OptionError, "dtype is torch.int8"),
        (lambda: visible_share(good, good, dtype="bfloat16"), OptionError, "dtype is 'bfloat16'"),
        (lambda: visible_share(good, good, axis="matrix"), OptionError, "axis is 'matrix'"),
        (lambda: visible_share(good, good, tolerance=-1), OptionError, "tolerance is -1"),
        (lambda: visible_share(good, good, tolerance=True), OptionError, "tolerance is True"),
        (lambda: visible_share(good, good * float("nan")), NonFiniteError, "after holds NaN"),
    ):
        with pytest.raises(error, match=text):
            call()
