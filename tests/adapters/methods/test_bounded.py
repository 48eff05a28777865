"""What DeLoRA, MAP and OFT bound: the strength of an update, the length of a matrix, the norms of rows."""

import pytest
import torch
from torch import nn

from deltaw.adapters import MAP, OFT, DeLoRA, OptionError, adapted, effective_weight, inject
from deltaw.analysis import change


def moved(method, size=1.0, rows=12, columns=20):
    """A layer whose method's tensors have gone far."""
    torch.manual_seed(0)
    layer = adapted(inject(nn.Sequential(nn.Linear(columns, rows)).double(), method, ["0"], seed=1))["0"]
    with torch.no_grad():
        for name in layer._trainable:
            layer.tensor(name).add_(size * torch.randn_like(layer.tensor(name)))
    return layer


@pytest.mark.parametrize("size", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("share", [False, True])
def test_the_exact_null_of_oft_is_the_norms_of_the_rows(size, share):
    """ΔM along "row" is nothing but rounding, however far the rotation goes; the columns and the directions do move."""
    layer = moved(OFT(block_size=5, block_share=share), size)
    W, base = effective_weight(layer), layer.base
    rows, columns = change(base, W, axis="row"), change(base, W, axis="column")
    assert rows.magnitude.max() <= 1e-14 * torch.linalg.vector_norm(base, dim=1).max()
    assert columns.delta_m > 1e-5
    assert rows.delta_d > 1e-5
    torch.testing.assert_close(W @ W.T, base @ base.T)  # and so are the angles between rows


def test_the_series_of_oft_is_orthogonal_only_for_small_rotations():
    for size, bound in (1e-3, 1e-8), (0.3, 10.0):
        layer = moved(OFT(block_size=5, neumann_terms=5), size)
        R = layer.method.rotations(layer.tensor("oft_R").detach(), 20)
        error = (R @ R.mT - torch.eye(5)).norm()
        assert bound / 1e6 < error < bound


def test_the_blocks_of_oft_divide_the_inputs():
    assert [OFT(block_size=4).block(n) for n in (3, 4, 6, 8, 13, 20)] == [3, 4, 6, 4, 13, 4]
    with pytest.raises(OptionError, match="block_size"):
        OFT(block_size=1)


@pytest.mark.parametrize("size", [0.1, 1.0, 100.0])
def test_the_strength_of_delora_is_bounded_by_lambda(size):
    """‖ΔW diag(ω)⁻¹‖_F ≤ λ for what is trained, whatever A and B have become (equation 7)."""
    layer = moved(DeLoRA(rank=3, alpha=4), size)
    U, V = layer.method.trained(layer.state())
    strength = abs(layer.tensor("delora_lambda").item())
    norms = torch.linalg.vector_norm(layer.base, dim=0)
    assert 0 < (U @ (V / norms)).norm() <= strength * (1 + 1e-12)
    with torch.no_grad():  # the lengths of A's rows and B's columns do not matter
        layer.tensor("delora_A").mul_(3)
        layer.tensor("delora_B").mul_(torch.tensor([0.5, 2.0, 7.0]))
    again = layer.method.trained(layer.state())
    torch.testing.assert_close(again[0] @ again[1], U @ V, rtol=1e-12, atol=1e-12)


def test_delora_subtracts_what_it_was_at_the_start():
    layer = moved(DeLoRA(rank=3, alpha=4), 0.0)
    assert torch.equal(effective_weight(layer), layer.base)
    assert layer.holds_residual
    start = layer.method.subtracted(layer.state())
    torch.testing.assert_close(layer.residual, layer.base - start[0] @ start[1])
    with torch.no_grad():  # λ₀ stays in what is subtracted (equation 9), other than in the authors' code
        layer.tensor("delora_lambda").mul_(2)
    torch.testing.assert_close(layer.update(), start[0] @ start[1])


def test_the_two_magnitudes_of_map_are_norms_of_whole_matrices():
    layer = moved(MAP(rank=3))
    state, base = layer.state(), layer.base
    B_A = state["lora_B"] @ state["lora_A"]
    wanted = state["magnitude_base"] * base / base.norm() + state["magnitude_update"] * B_A / B_A.norm()
    torch.testing.assert_close(effective_weight(layer), wanted)


def test_map_learns_from_its_start():
    """β first, for which the gradient is that of a direction; then A and B."""
    torch.manual_seed(0)
    model = inject(nn.Sequential(nn.Linear(6, 4)), MAP(rank=2), targets=["0"], seed=0)
    layer, x, y = adapted(model)["0"], torch.randn(32, 6), torch.randn(32, 4)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(60):
        losses.append((model(x) - y).square().mean())
        losses[-1].backward()
        if len(losses) == 1:
            assert layer.tensor("magnitude_update").grad.abs() > 0
            assert layer.tensor("lora_A").grad.abs().max() == 0
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.8 * losses[0]
    assert layer.tensor("magnitude_update").abs() > 0.05


def test_a_zero_product_of_map_stays_zero():
    layer = moved(MAP(rank=2))
    with torch.no_grad():
        layer.tensor("lora_B").zero_()
    x = torch.randn(3, 20, dtype=torch.float64)
    layer(x).square().sum().backward()
    assert all(layer.tensor(name).grad.isfinite().all() for name in layer._trainable)
    ratio = layer.tensor("magnitude_base") / layer.tensor("norm")
    torch.testing.assert_close(effective_weight(layer), ratio * layer.base)
