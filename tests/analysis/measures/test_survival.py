"""What survives merging, against numpy's own rounding and the known case of bfloat16."""

import numpy as np
import pytest
import torch

from deltaw.adapters import OptionError, ShapeError
from deltaw.analysis.measures.survival import survival


def test_float16_against_numpy():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(33, 21, generator=generator)
    update = 1e-3 * torch.randn(33, 21, generator=generator, dtype=torch.float64)
    update[0] = 0
    there = base.numpy().astype(np.float16).astype(np.float64)
    merged = (there + update.numpy()).astype(np.float16).astype(np.float64) - there
    found = survival(base, update, torch.float16)
    moved = update.numpy() != 0
    assert found.entries == (merged[moved] != 0).mean()
    assert found.error == pytest.approx(np.linalg.norm(merged - update.numpy()) / np.linalg.norm(update.numpy()), 1e-12)
    assert 0.3 < found.entries < 1


def test_a_relative_update_of_1e_4_is_lost_in_bfloat16():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(512, 512, generator=generator).bfloat16()
    product = torch.randn(512, 8, generator=generator).double() @ torch.randn(8, 512, generator=generator).double()
    update = 1e-4 * torch.linalg.vector_norm(base.double()) / torch.linalg.vector_norm(product) * product
    found = survival(base, update, torch.bfloat16)
    assert 0.01 < found.entries < 0.05  # about 97.7 % of the entries stay as they are
    assert found.error > 0.9  # next to nothing of the update is found in the merged weights
    assert survival(base, update, torch.float32).error < 1e-2


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_no_update_loses_nothing(dtype):
    found = survival(torch.ones(3, 2), torch.zeros(3, 2), dtype)
    assert (found.entries, found.error) == (1.0, 0.0)


def test_bad_input():
    with pytest.raises(ShapeError, match=r"\(2, 3\), the update \(3, 2\)"):
        survival(torch.ones(2, 3), torch.ones(3, 2), torch.bfloat16)
    with pytest.raises(OptionError, match=r"torch.int8.*floating"):
        survival(torch.ones(2, 2), torch.ones(2, 2), torch.int8)
