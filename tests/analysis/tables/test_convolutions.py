"""The axes of a convolution: a filter, an input channel's slice, one place of it; held to the definition."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from deltaw.analysis import Trajectory, change
from deltaw.analysis.measures.blocks import kernel_blocks

OUT, INTO, KERNEL = 6, 4, (3, 2)


def drawn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def pair(tmp_path):
    before = {"conv.weight": drawn(OUT, INTO, *KERNEL, seed=0), "q.weight": drawn(5, 3, seed=1)}
    after = {name: value + 0.1 * drawn(*value.shape, seed=2) for name, value in before.items()}
    for name, state in (("before", before), ("after", after)):
        save_file(state, tmp_path / f"{name}.safetensors")
    return Trajectory.from_pair(tmp_path / "before.safetensors", tmp_path / "after.safetensors"), before, after


def defined(before, after, axis):
    """ΔM and ΔD of the vectors of a kernel (out, in, h, w), as the docs define them."""
    vectors = {
        "row": lambda W: W.flatten(1),
        "column": lambda W: W.transpose(0, 1).flatten(1),  # W[:, c, …]
        "entry": lambda W: W.flatten(1).T,  # W[:, c, i, j]
    }[axis]
    a, b = vectors(before), vectors(after)
    lengths = a.norm(dim=1), b.norm(dim=1)
    return (lengths[1] - lengths[0]).abs(), 1 - (a * b).sum(1) / (lengths[0] * lengths[1])


@pytest.mark.parametrize("axis", ["row", "column", "entry"])
def test_the_vectors_of_a_kernel(axis, pair):
    run, before, after = pair
    magnitude, direction = defined(before["conv.weight"], after["conv.weight"], axis)
    row = run.changes([(None, 1)], axes=[axis]).set_index("module").loc["conv"]
    assert row.delta_m == pytest.approx(float(magnitude.mean()), rel=1e-12)
    assert row.delta_d == pytest.approx(float(direction.mean()), rel=1e-9)
    flat = [state["conv.weight"].flatten(1) for state in (before, after)]
    blocks = kernel_blocks(flat[0].shape, KERNEL).get(axis)
    found = change(*flat, axis, blocks=blocks)
    np.testing.assert_allclose(found.magnitude, magnitude, rtol=1e-12)
    np.testing.assert_allclose(found.direction, direction, rtol=1e-9)


def test_a_linear_layer_has_no_entries_and_its_columns_stay(pair):
    run, before, after = pair
    assert set(run.changes([(None, 1)], axes=["entry"]).module) == {"conv"}
    columns = run.changes([(None, 1)], axes=["column"]).set_index("module").loc["q"]
    found = change(before["q.weight"], after["q.weight"], "column")
    assert (columns.delta_m, columns.delta_d) == (found.delta_m, found.delta_d)


def test_a_kernel_of_one_place_is_a_linear_layer():
    assert set(kernel_blocks((4, 3), (1, 1))) == {"entry"}
    assert kernel_blocks((4, 3), ()) == {}
