"""ΔM and ΔD of long vectors, a whole matrix, heads and experts, against their definition in many digits."""

import math

import mpmath
import numpy as np
import pytest
import torch

from deltaw.adapters.errors import NonFiniteError, OptionError, ShapeError
from deltaw.analysis.measures.blocks import Blocks, equal_blocks, whole_matrix
from deltaw.analysis.measures.built import Built, built_sums
from deltaw.analysis.measures.built_on_device import sums_on_device
from deltaw.analysis.measures.change import PairChanges, change, changes
from deltaw.analysis.measures.long_vectors import PART, long_change
from tests.analysis.measures.test_built import states, wide

PROMISE = 1e-5
BLOCKS = {
    "matrix": whole_matrix((12, 20)),
    "rows": equal_blocks("row", 12, 3),
    "columns": equal_blocks("column", 20, 4),
    "uneven": Blocks("row", [(0, 1), (5, 12), (3, 5)]),
}


def exact(before, after, blocks):
    """The definition, word by word, with 120 digits: [(magnitude, direction)] of every block."""
    found = []
    with mpmath.workdps(120):
        for start, stop in blocks.bounds:
            part = (slice(start, stop), slice(None)) if blocks.side == "row" else (slice(None), slice(start, stop))
            a, b = ([mpmath.mpf(x) for x in t.double()[part].flatten().tolist()] for t in (before, after))
            a_norm, b_norm = mpmath.sqrt(mpmath.fdot(a, a)), mpmath.sqrt(mpmath.fdot(b, b))
            turned = 1 - mpmath.fdot(a, b) / (a_norm * b_norm) if a_norm and b_norm else mpmath.nan
            found.append((abs(b_norm - a_norm), mpmath.mpf(0) if a_norm == b_norm == 0 else turned))
    return found


def hold(magnitude, direction, wanted):
    with mpmath.workdps(120):
        for m, d, (dm, dd) in zip(magnitude.tolist(), direction.tolist(), wanted, strict=True):
            assert abs(m - dm) <= PROMISE * dm
            if mpmath.isnan(dd):
                assert math.isnan(d)
            else:
                assert abs(d - dd) <= (PROMISE * dd if dd >= 1e-12 else 1e-11 * mpmath.sqrt(abs(dd)) + 1e-28)


def moved(w, how, generator):
    """The matrix after a change that is easy, or of which nearly all cancels."""
    noise = torch.randn(w.shape, generator=generator, dtype=torch.float64)
    if how == "turned":  # hardly a change of the norm
        noise -= w.double() * (noise * w.double()).sum() / w.double().square().sum()
        turned = w.double() + 1e-3 * noise
        return turned * (w.double().norm() / turned.norm())
    found = {"large": w + noise, "small": w + 1e-6 * noise, "scaled": w * 1.25, "equal": w, "zero": w * 0}
    return found[how]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("how", ["large", "small", "scaled", "turned", "equal", "zero"])
@pytest.mark.parametrize("which", BLOCKS)
def test_a_long_vector_is_its_definition(which, how, dtype):
    generator = torch.Generator().manual_seed(3)
    before = torch.randn(12, 20, generator=generator, dtype=torch.float64).to(dtype)
    after, blocks = moved(before, how, generator).to(dtype), BLOCKS[which]
    wanted = exact(before, after, blocks)
    axis = "matrix" if which == "matrix" else "head"
    for a, b in ((before, after), (before.T.contiguous().T, after.T.contiguous().T)):
        found = change(a, b, axis, blocks=None if which == "matrix" else blocks)
        hold(found.magnitude, found.direction, wanted)
        assert found.undefined == (len(wanted) if how == "zero" else 0)
        assert found.magnitude.shape == (len(wanted),)
        assert found.delta_m == pytest.approx(float(found.magnitude.mean()), rel=1e-14)
    again = [long_change(before, after, blocks, block) for block in range(len(wanted))]
    hold(*(torch.tensor([of[place] for of in again], dtype=torch.float64) for place in (0, 1)), wanted)


@pytest.mark.parametrize("size", [1e-170, 1e-60, 1e120, 1e180])
def test_of_any_size(size):
    generator = torch.Generator().manual_seed(4)
    before = torch.randn(12, 20, generator=generator, dtype=torch.float64) * size
    after = before + size * 1e-3 * torch.randn(12, 20, generator=generator, dtype=torch.float64)
    for blocks in BLOCKS.values():
        found = change(before, after, "head", blocks=blocks)
        hold(found.magnitude, found.direction, exact(before, after, blocks))


def test_a_vector_of_many_parts():
    generator = torch.Generator().manual_seed(5)
    before = torch.randn(3, 2 * PART + 5, generator=generator, dtype=torch.float64)
    after = before * 1.5
    found = long_change(before, after, whole_matrix(before.shape), 0)
    a, b = (t.numpy().astype(np.longdouble) for t in (before, after))
    assert found.magnitude == pytest.approx(float(np.sqrt((b * b).sum()) - np.sqrt((a * a).sum())), rel=1e-12)
    assert found.direction < 1e-28
    assert float(change(before, after, "matrix").direction) < 1e-28


@pytest.mark.parametrize("name", ["lora", "dora", "bora"])
@pytest.mark.parametrize("size", [1e-4, 1e-2])
@pytest.mark.parametrize("sums", [built_sums, sums_on_device], ids=["loop", "blocks"])
def test_from_recorded_forms(sums, size, name):
    method, base, two = states(name, size, (24, 40))
    forms = [method.scaled_low_rank(base, wide(state)) for state in two]
    dense = [method.weight(base.double(), wide(state)) for state in two]
    axes, blocks = ("row", "matrix", "head", "expert"), {"head": equal_blocks("column", 40, 5)}
    blocks["expert"] = equal_blocks("row", 24, 3)
    of_pair = PairChanges([(Built(base, forms[0]), Built(base, forms[1]))], sums(base, forms, [(0, 1)]))
    found, wanted = of_pair.of(0, axes, blocks=blocks), changes(*dense, axes, blocks=blocks)
    for axis in axes:
        torch.testing.assert_close(found[axis].magnitude, wanted[axis].magnitude, rtol=1e-5, atol=1e-13)
        torch.testing.assert_close(found[axis].direction, wanted[axis].direction, rtol=1e-5, atol=0)
    for own in (*blocks.values(), whole_matrix(base.shape)):  # the slow way, from the form
        for block in range(len(own.bounds)):
            slow = long_change(Built(base, forms[0]), Built(base, forms[1]), own, block)
            of_dense = long_change(*dense, own, block)
            assert slow.magnitude == pytest.approx(of_dense.magnitude, rel=1e-6, abs=1e-13)
            assert slow.direction == pytest.approx(of_dense.direction, rel=1e-6)


def test_the_same_bits_for_any_number_of_threads():
    generator = torch.Generator().manual_seed(6)
    before = torch.randn(640, 512, generator=generator)
    after = before + 1e-3 * torch.randn(640, 512, generator=generator)
    blocks = {"head": equal_blocks("column", 512, 8)}
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            of = changes(before, after, ("matrix", "head"), blocks=blocks)
            found.append([t.tolist() for c in of.values() for t in (c.magnitude, c.direction)])
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1]


def test_a_stack_of_experts():
    generator = torch.Generator().manual_seed(7)
    before = torch.randn(3, 4, 5, generator=generator)
    after = before + 0.1 * torch.randn(3, 4, 5, generator=generator)
    found = change(before, after, "expert")
    for number in range(3):
        alone = change(before[number], after[number], "matrix")
        assert float(found.magnitude[number]) == pytest.approx(alone.delta_m, rel=1e-12)
        assert float(found.direction[number]) == pytest.approx(alone.delta_d, rel=1e-12)


def test_what_is_not_finite_is_named():
    before = torch.ones(4, 6)
    after = before.clone()
    after[3, 2] = torch.nan
    with pytest.raises(NonFiniteError, match="in after, the matrix; repair"):
        change(before, after, "matrix")
    blocks = equal_blocks("row", 4, 2)
    with pytest.raises(NonFiniteError, match="in after, head 1; repair"):
        change(before, after, "head", blocks=blocks)
    found = change(before, after, "head", blocks=blocks, allow_nonfinite=True)
    assert found.nonfinite == 1
    assert found.delta_m == 0.0


def test_wrong_calls_are_named():
    matrix = torch.ones(4, 6)
    with pytest.raises(OptionError, match="axis is 'head', and blocks is None; pass blocks="):
        change(matrix, matrix, "head")
    with pytest.raises(OptionError, match="or a stack"):
        change(matrix, matrix, "expert")
    with pytest.raises(ShapeError, match=r"ends at row 5, and the matrix \(4, 6\) has 4"):
        change(matrix, matrix, "head", blocks=Blocks("row", [(0, 5)]))
    with pytest.raises(OptionError, match="each start below its stop"):
        Blocks("row", [(2, 2)])
    with pytest.raises(OptionError, match="side is 'rows'"):
        Blocks("rows", [(0, 2)])
    with pytest.raises(OptionError, match="2 names and 1 blocks"):
        Blocks("row", [(0, 2)], [("a", 0), ("b", 1)])
    with pytest.raises(OptionError, match="axis is 'heads'; choose one of"):
        change(matrix, matrix, "heads")
