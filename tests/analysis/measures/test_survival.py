"""What survives merging, against numpy's own rounding and the known case of bfloat16."""

import numpy as np
import pytest
import torch

from deltaw.adapters import OptionError, ShapeError
from deltaw.adapters.bitsandbytes import load_bitsandbytes
from deltaw.analysis.measures.four_bits import rounded_to_four_bits
from deltaw.analysis.measures.survival import OtherBase, other_base, survival


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


def test_four_bits_are_bitsandbytes():
    library = load_bitsandbytes()
    weight = torch.randn(96, 50, generator=torch.Generator().manual_seed(0)) * 0.05
    for kind in ("nf4", "fp4"):
        packed, state = library.functional.quantize_4bit(weight, quant_type=kind, blocksize=64)
        state.shape = torch.Size((75, 64))  # the library's AVX512 kernel errs where a block runs through a row's end
        wanted = library.functional.dequantize_4bit(packed, state).reshape(96, 50)
        torch.testing.assert_close(rounded_to_four_bits(weight, kind).float(), wanted, rtol=1e-6, atol=1e-8)


def test_what_survives_in_four_bits():
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    base = rounded_to_four_bits(weight, "nf4")
    assert torch.equal(rounded_to_four_bits(base, "nf4"), base)  # what is stored so is stored the same again
    update = 1e-4 * torch.randn(64, 64, generator=torch.Generator().manual_seed(1)).double()
    found = survival(base, update, "nf4")
    merged = rounded_to_four_bits(base + update, "nf4") - base
    assert found.error == pytest.approx(float((merged - update).norm() / update.norm()), rel=1e-12)
    assert found.entries == float((merged != 0).double().mean())
    assert survival(base, 1e3 * update, "nf4").error < found.error  # what is larger than the steps survives


def test_merging_into_the_model_before_it_was_quantised():
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    base = rounded_to_four_bits(weight, "nf4")
    update = 1e-3 * torch.randn(64, 64, generator=torch.Generator().manual_seed(1)).double()
    found = other_base(base, update, weight)
    assert found.distance == pytest.approx(float((weight.double() - base).norm() / update.norm()), rel=1e-12)
    merged = (weight.double() + update).bfloat16().double()
    assert found.error == pytest.approx(float((merged - base - update).norm() / update.norm()), rel=1e-12)
    assert found.distance > 50  # the error of 4 bits is far larger than such an update
    assert other_base(base, update, base) == OtherBase(0.0, 0.0)
    assert other_base(base, 0 * update, weight).distance == float("inf")
    with pytest.raises(ShapeError, match="must be alike"):
        other_base(base, update, weight[:3])
