"""Where a method differs from its authors' code, as docs/methods.md says."""

import peft
import pytest
import torch
from torch import nn

from deltaw.adapters import CorDA, DoRA, DualLoRA, LoRA, RandLoRA, inject


def test_dropout_of_dora_spares_the_base_and_pefts_does_not():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(8, 6))
    x, weight, bias = torch.randn(5, 8), plain[0].weight.detach().clone(), plain[0].bias.detach().clone()
    expected = 2 * (x @ weight.T) + bias  # B is zero, the magnitudes are doubled
    ours = inject(plain, DoRA(axis="row", rank=2, dropout=0.5), ["0"], seed=0).train()
    config = peft.LoraConfig(r=2, use_dora=True, lora_dropout=0.5, target_modules=["0"])
    other = nn.Sequential(nn.Linear(8, 6))
    other.load_state_dict({"0.weight": weight, "0.bias": bias})
    theirs = peft.get_peft_model(other, config).train()
    with torch.no_grad():
        for model in (ours, theirs):
            for name, parameter in model.named_parameters():
                if "magnitude" in name:
                    parameter *= 2
        assert torch.allclose(ours(x), expected, atol=1e-6)
        assert not torch.allclose(theirs(x), expected, atol=1e-2)
        assert torch.allclose(theirs.eval()(x), expected, atol=1e-5)


def test_a_factor_on_cordas_covariance_moves_between_its_two_matrices():
    torch.manual_seed(0)
    base, inputs = torch.randn(6, 8, dtype=torch.float64), torch.randn(50, 8, dtype=torch.float64)
    C, method = inputs.T @ inputs / 50, CorDA(rank=3)
    one, other = (method.start(base, torch.Generator(), {"covariance": factor * C}) for factor in (1.0, 16.0))
    assert torch.allclose(one["lora_B"] @ one["lora_A"], other["lora_B"] @ other["lora_A"])
    assert torch.allclose(other["lora_B"].abs(), 4 * one["lora_B"].abs())
    assert torch.allclose(other["lora_A"].abs(), one["lora_A"].abs() / 4)


@pytest.mark.parametrize(
    ("method", "scaling"),
    [
        (LoRA(rank=16), 1.0),
        (LoRA(rank=16, rank_stabilized=True), 4.0),
        (LoRA(rank=16, alpha=8, rank_stabilized=True), 2.0),
        (DualLoRA(rank=16), 1.0),
        (DualLoRA(rank=4, direction_rank=9, alpha=12), 2.0),
        (RandLoRA(rank=32, alpha=640), 20.0),
    ],
)
def test_the_scaling_is_what_the_page_says(method, scaling):
    assert method.scaling == pytest.approx(scaling)
