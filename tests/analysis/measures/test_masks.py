"""Jaccard of two masks: against sets, by row and column, and what independence gives."""

import math

import numpy as np
import pytest
import torch

from deltaw.adapters import OptionError, ShapeError
from deltaw.analysis import mask_agreement


def drawn(share, seed, shape=(60, 80)):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


def test_it_is_that_of_the_sets_of_entries():
    a, b = drawn(0.4, 0), drawn(0.2, 1)
    one, two = ({tuple(place) for place in mask.nonzero().tolist()} for mask in (a, b))
    found = mask_agreement(a, b.numpy())
    assert found.jaccard == len(one & two) / len(one | two)
    assert (found.first, found.second) == (len(one) / 4800, len(two) / 4800)
    for axis, dim in (("row", 1), ("column", 0)):
        each = mask_agreement(a, b, axis=axis)
        torch.testing.assert_close(each.jaccard, (a & b).sum(dim) / (a | b).sum(dim).double())
        torch.testing.assert_close(each.first, a.double().mean(dim))
        p, q = a.double().mean(dim), b.double().mean(dim)
        torch.testing.assert_close(each.expected, p * q / (p + q - p * q))
        within = getattr(found, f"expected_{axis}s")
        assert within == pytest.approx(float((p * q).sum() / (p + q - p * q).sum()), rel=1e-12)


def test_independent_masks_have_what_is_expected():
    found = [mask_agreement(drawn(0.6, 2 * s), drawn(0.3, 2 * s + 1)) for s in range(100)]
    assert np.mean([one.jaccard for one in found]) == pytest.approx(np.mean([one.expected for one in found]), rel=0.01)


def test_common_rows_are_told_from_common_entries():
    rows = torch.linspace(0, 1, 400)[:, None]  # both change late rows more, and choose within them by themselves
    a, b = (torch.rand(400, 300, generator=torch.Generator().manual_seed(seed)) < rows for seed in (0, 1))
    found = mask_agreement(a, b)
    assert found.jaccard > found.expected + 0.1
    assert found.jaccard == pytest.approx(found.expected_rows, abs=0.01)
    assert found.expected_columns == pytest.approx(found.expected, abs=0.01)


def test_empty_masks_and_bad_input():
    none = torch.zeros(3, 4, dtype=torch.bool)
    assert math.isnan(mask_agreement(none, none).jaccard)
    assert mask_agreement(none, ~none).jaccard == mask_agreement(none, ~none).expected == 0.0
    with pytest.raises(OptionError, match=r"first is a tensor of torch\.float32"):
        mask_agreement(torch.ones(3, 4), none)
    with pytest.raises(OptionError, match="axis"):
        mask_agreement(none, none, axis="layer")
    with pytest.raises(ShapeError):
        mask_agreement(none, none.T)
