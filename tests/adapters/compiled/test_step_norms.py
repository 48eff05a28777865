"""The norms of many steps are those of each step alone, to the bit, and those of the dense matrices."""

import pytest
import torch

from deltaw.adapters import create
from deltaw.adapters.compiled import norms as kernels
from deltaw.adapters.compiled import step_norms
from deltaw.adapters.compiled.product import FEWEST, packed, rows_in_chunk
from deltaw.adapters.linear import norms

RANKS = (2, 5, 0)


def drawn(shape, dtype=torch.float32, ranks=RANKS):
    generator = torch.Generator().manual_seed(sum(shape))

    def draw(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    U, V = [draw(shape[0], rank) for rank in ranks], [draw(rank, shape[1]) for rank in ranks]
    return draw(*shape).to(dtype), U, V, draw(len(ranks), shape[0])


def of_definition(W, U, V, magnitude):
    """‖v_i‖, ‖v_j‖ and ‖(diag(m / ‖v_i‖) V)_j‖ of every step, dense."""
    found = []
    for left, right, m in zip(U, V, magnitude, strict=True):
        dense = W.double() + left @ right
        rows = dense.norm(dim=1)
        p = (m / rows).where(rows > 0, 0)
        found.append((rows, dense.norm(dim=0), (p[:, None] * dense).norm(dim=0)))
    return [torch.stack(part) for part in zip(*found, strict=True)]


def found_of(W, U, V, magnitude):
    """The norms of rows, of columns, and both of BoRA's, by the compiled loops."""
    both = step_norms.norms_of_both(W, U, V, magnitude)
    return step_norms.row_norms(W, U, V), step_norms.column_norms(W, U, V), *both


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (8, 16), (130, 515), (65, 1030), (300, 40)])
def test_the_norms_of_steps_are_the_dense_ones(shape, dtype):
    W, U, V, m = drawn(shape, dtype)
    W[0] = 0
    for left in U:
        left[0] = 0  # a zero row has no factor, and adds nothing
    rows, columns, weighted = of_definition(W, U, V, m)
    found = found_of(W, U, V, m)
    for got, want in zip(found, (rows, columns, rows, weighted), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-13, atol=0)
    assert not rows[:, 0].any()
    assert not found[0][:, 0].any()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_neighbours_and_threads_make_no_difference(threads):
    W, U, V, m = drawn((2 * FEWEST + 9, 150))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = [found_of(W, [u], [v], m[k : k + 1]) for k, (u, v) in enumerate(zip(U, V, strict=True))]
        torch.set_num_threads(threads)
        found = found_of(W, U, V, m)
    finally:
        torch.set_num_threads(before)
    for k, want in enumerate(alone):
        assert all(torch.equal(got[k], own[0]) for got, own in zip(found, want, strict=True))


@pytest.mark.parametrize("loop", ["for steps", "for each", "torch"])
def test_where_the_loop_cannot_read_each_step_is_done_alone(loop, monkeypatch):
    W, U, V, m = drawn((20, 33))
    if loop == "for each":
        monkeypatch.setattr(kernels, "_MANY_VECTORS", False)
    elif loop == "torch":
        monkeypatch.setattr(norms, "loop_reads", lambda *tensors: False)
        W = W.double()
    rows, columns, weighted = of_definition(W, U, V, m)
    found = norms.norms_of_steps(W, U, V, "row"), norms.norms_of_steps(W, U, V, "column")
    both = norms.norms_of_both_of_steps(W, U, V, m)
    for got, want in zip((*found, *both), (rows, columns, rows, weighted), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-13, atol=0)


def test_factors_are_laid_out_in_blocks():
    _, U, V, _ = drawn((11, 18), ranks=(3, 1))
    P, Q, ranks = packed(U, V)
    assert ranks.tolist() == [3, 1]
    for k, rank in enumerate(ranks.tolist()):
        left = P[k, :, : 8 * rank].reshape(2, rank, 8).transpose(1, 2).reshape(16, rank)
        right = Q[k, :, : 16 * rank].reshape(2, rank, 16).transpose(0, 1).reshape(rank, 32)
        assert torch.equal(left[:11], U[k])
        assert torch.equal(right[:, :18], V[k])
        assert not left[11:].any()
        assert not right[:, 18:].any()


def test_chunks_follow_from_the_number_of_rows():
    assert [rows_in_chunk(rows) for rows in (1, 128, 768, 2048, 4096, 4097)] == [128, 128, 128, 128, 256, 264]


@pytest.mark.parametrize("name", ["dora", "dora-row", "bora", "dvora", "lora", "map"])
def test_the_forms_of_steps_are_those_of_each_step(name):
    generator = torch.Generator().manual_seed(1)
    method, base = create(name, rank=3), torch.randn(40, 30, generator=generator)
    start = method.start(base, generator, {})
    states = [{key: (value + 0.1 * k).double() for key, value in start.items()} for k in range(3)]
    together = method.scaled_low_ranks(base, states)
    for state, form in zip(states, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(form, method.scaled_low_rank(base, state), strict=True))
