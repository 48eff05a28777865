"""Equality with PEFT's LoRA, rsLoRA and DoRA for the same parameters; reading PEFT's layers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deltaw.adapters import TargetError, adapted, base_weight, create, effective_weight, inject

peft = pytest.importorskip("peft")
PAIRS = {"lora": {}, "rslora": {"use_rslora": True}, "dora-row": {"use_dora": True}}


def pair(method, dtype=torch.float64, options=None):
    """Our layer and PEFT's over the same weights, with the same parameters."""
    torch.manual_seed(0)
    base = nn.Linear(12, 9).to(dtype)
    theirs = nn.Sequential(nn.Linear(12, 9).to(dtype))
    theirs[0].load_state_dict(base.state_dict())
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["0"], **PAIRS[method])
    theirs = peft.get_peft_model(theirs, config).to(dtype).base_model.model[0]
    chosen = create(method, rank=3, alpha=5.0, **(options or {}))
    ours = adapted(inject(nn.Sequential(base), chosen, targets=["0"]))["0"]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in zip(("lora_A", "lora_B"), (ours.lora_A, ours.lora_B), strict=True):
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=dtype))
            getattr(theirs, name)["default"].weight.copy_(parameter)
        if method == "dora-row":
            ours.magnitude.mul_(1 + 0.3 * torch.rand(9, generator=generator, dtype=dtype))
            theirs.lora_magnitude_vector["default"].weight.copy_(ours.magnitude)
    return ours, theirs


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("method", PAIRS)
def test_forward_and_gradients(method, dtype, tolerance):
    ours, theirs = pair(method, dtype)
    x = torch.randn(4, 6, 12, dtype=dtype)
    a, b = x.clone().requires_grad_(True), x.clone().requires_grad_(True)
    mine, other = ours(a), theirs(b)
    torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)
    g = torch.randn_like(mine)
    mine.backward(g)
    other.backward(g)
    torch.testing.assert_close(a.grad, b.grad, rtol=tolerance, atol=10 * tolerance)
    gradients = [(ours.lora_A, theirs.lora_A), (ours.lora_B, theirs.lora_B)]
    if method == "dora-row":
        gradients.append((ours.magnitude, theirs.lora_magnitude_vector))
    for own, their in gradients:
        wanted = their["default"].weight.grad
        scale = wanted.abs().max().item()
        torch.testing.assert_close(own.grad, wanted.view_as(own.grad), rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("method", PAIRS)
def test_a_peft_layer_is_read(method):
    ours, theirs = pair(method)
    torch.testing.assert_close(effective_weight(theirs), effective_weight(ours), rtol=1e-12, atol=1e-12)
    assert torch.equal(base_weight(theirs), base_weight(ours))
    merged = effective_weight(theirs)
    theirs.merge()
    torch.testing.assert_close(effective_weight(theirs), merged, rtol=1e-12, atol=1e-12)
    with pytest.raises(TargetError, match="merged"):
        base_weight(theirs)


@pytest.mark.parametrize(
    "config",
    [
        peft.IA3Config(target_modules=["0"], feedforward_modules=[], init_ia3_weights=False),
        peft.LoHaConfig(r=2, target_modules=["0"], init_weights=False),
        peft.VeraConfig(r=2, target_modules=["0"], init_weights=False, projection_prng_key=0),
        peft.HiraConfig(r=2, target_modules=["0"], init_weights=False) if hasattr(peft, "HiraConfig") else None,
    ],
)
def test_other_peft_layers_are_asked_for_their_forward(config):
    if config is None:
        pytest.skip("this PEFT has no HiRA")
    torch.manual_seed(0)
    model = peft.get_peft_model(nn.Sequential(nn.Linear(12, 9)), config)
    layer = model.base_model.model[0]
    model.eval()
    x = torch.randn(5, 12)
    W = effective_weight(layer)
    bias = layer(torch.zeros(1, 12))  # IA³ scales the bias as well
    torch.testing.assert_close(layer(x), F.linear(x, W) + bias, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(W, base_weight(layer))
