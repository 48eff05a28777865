"""Equality with PEFT's layers for the same parameters; reading PEFT's layers.

Everything that is expected here comes from PEFT's own layers, as installed: its ``forward``, its ``pissa_init`` and
``preprocess_corda`` (which follows the authors' iboing/CorDA, as its header says).
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deltaw.adapters import TargetError, adapted, base_weight, create, effective_weight, inject, input_covariances

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


def beside(theirs_config, dtype=torch.float64, rows=9, columns=12):
    """PEFT's layer, evaluated and moved from its start, and the plain layer it stands on."""
    torch.manual_seed(0)
    base = nn.Linear(columns, rows).to(dtype)
    theirs = nn.Sequential(copy.deepcopy(base))
    layer = peft.get_peft_model(theirs, theirs_config).to(dtype).base_model.model[0]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=dtype)
    return nn.Sequential(base), layer


def put(layer, **values):
    """Give our layer PEFT's tensors."""
    with torch.no_grad():
        for name, value in values.items():
            layer.tensor(name).copy_(value)


def same_forward_and_gradients(ours, theirs, pairs, tolerance=1e-12):
    """``pairs``: our parameter, PEFT's, and what turns PEFT's gradient into ours."""
    dtype = ours.weight.dtype
    x = torch.randn(4, 6, ours.in_features, dtype=dtype, generator=torch.Generator().manual_seed(2))
    a, b = x.clone().requires_grad_(True), x.clone().requires_grad_(True)
    mine, other = ours(a), theirs(b)
    torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)
    g = torch.randn(mine.shape, dtype=dtype, generator=torch.Generator().manual_seed(3))
    mine.backward(g)
    other.backward(g)
    torch.testing.assert_close(a.grad, b.grad, rtol=tolerance, atol=10 * tolerance)
    for name, their, turned in pairs:
        wanted, got = turned(their.grad), ours.tensor(name).grad
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance * wanted.abs().max().item())


def as_it_is(gradient):
    return gradient


@pytest.mark.parametrize(("rows", "columns"), [(9, 12), (12, 9)])
def test_vera(rows, columns):
    config = peft.VeraConfig(r=5, target_modules=["0"])
    model, theirs = beside(config, rows=rows, columns=columns)
    ours = adapted(inject(model, create("vera", rank=5), ["0"]))["0"]
    d, b = theirs.vera_lambda_d["default"], theirs.vera_lambda_b["default"]
    put(ours, vera_d=d, vera_b=b, vera_A=theirs.vera_A["default"], vera_B=theirs.vera_B["default"])
    same_forward_and_gradients(ours, theirs, [("vera_d", d, as_it_is), ("vera_b", b, as_it_is)])


@pytest.mark.skipif(not hasattr(peft, "HiraConfig"), reason="this PEFT has no HiRA")
def test_hira():
    model, theirs = beside(peft.HiraConfig(r=3, target_modules=["0"]))
    ours = adapted(inject(model, create("hira", rank=3), ["0"]))["0"]
    A, B = theirs.hira_A["default"], theirs.hira_B["default"]
    put(ours, hira_A=A, hira_B=B)
    same_forward_and_gradients(ours, theirs, [("hira_A", A, as_it_is), ("hira_B", B, as_it_is)])


@pytest.mark.parametrize(("rows", "columns"), [(9, 12), (12, 9), (9, 9)])
def test_randlora(rows, columns):
    """PEFT pairs row k of A, scaled for base j, with column k·n + j of its bases as they lie in memory."""
    rank, n = 4, 3  # ⌈9 / 4⌉
    config = peft.RandLoraConfig(r=rank, randlora_alpha=10, target_modules=["0"])
    model, theirs = beside(config, rows=rows, columns=columns)
    ours = adapted(inject(model, create("randlora", rank=rank, alpha=10.0), ["0"]))["0"]
    lambda_, gamma = theirs.randlora_lambda["default"], theirs.randlora_gamma["default"]
    flat = theirs.randlora_B["default"].flatten(1)  # (larger side, n·r)
    B = torch.stack([flat[:, k * n + j] for j in range(n) for k in range(rank)])
    A = theirs.randlora_A["default"][:, 0]
    put(ours, randlora_lambda=lambda_.T, randlora_gamma=gamma, randlora_A=A, randlora_B=B)
    pairs = [("randlora_lambda", lambda_, torch.t), ("randlora_gamma", gamma, as_it_is)]
    same_forward_and_gradients(ours, theirs, pairs)


@pytest.mark.parametrize("alpha", [3, 5])
def test_pissa(alpha):
    """PEFT makes the start in float32 and writes the residual over W₀."""
    torch.manual_seed(0)
    base = nn.Linear(12, 9)
    config = peft.LoraConfig(r=3, lora_alpha=alpha, target_modules=["0"], init_lora_weights="pissa")
    theirs = peft.get_peft_model(nn.Sequential(copy.deepcopy(base)), config).base_model.model[0]
    ours = adapted(inject(nn.Sequential(base), create("pissa", rank=3, alpha=float(alpha)), ["0"]))["0"]
    A, B = theirs.lora_A["default"].weight, theirs.lora_B["default"].weight
    start = ours.start_B @ ours.start_A
    torch.testing.assert_close(start, (B @ A).detach(), rtol=1e-5, atol=1e-6)
    residual = base.weight - ours.method.scaling * start
    torch.testing.assert_close(residual, theirs.base_layer.weight, rtol=1e-5, atol=1e-6)

    put(ours, start_A=A, start_B=B)
    with torch.no_grad():
        A += 0.3 * torch.randn_like(A)
        B += 0.3 * torch.randn_like(B)
    put(ours, lora_A=A, lora_B=B)
    same_forward_and_gradients(ours, theirs, [("lora_A", A, as_it_is), ("lora_B", B, as_it_is)], 1e-5)
    torch.testing.assert_close(effective_weight(theirs), effective_weight(ours), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("alpha", [3, 5])
@pytest.mark.parametrize("mode", ["ipm", "kpm"])
def test_corda(mode, alpha):
    """PEFT divides the covariance by calls and scales the inputs; a factor of C leaves B₀ A₀ as it is."""
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    torch.manual_seed(0)
    base, x = nn.Linear(12, 9), torch.randn(60, 12) * torch.linspace(0.5, 2, 12)
    config = peft.LoraConfig(
        r=3,
        lora_alpha=alpha,
        target_modules=["0"],
        init_lora_weights="corda",
        corda_config=CordaConfig(corda_method=mode),
    )
    theirs = nn.Sequential(copy.deepcopy(base))
    preprocess_corda(theirs, config, run_model=lambda: theirs(x))
    theirs = peft.get_peft_model(theirs, config).base_model.model[0]
    model = nn.Sequential(base)
    context = input_covariances(model, "0", [x])
    ours = adapted(inject(model, create("corda", rank=3, alpha=float(alpha), mode=mode), ["0"], context=context))["0"]
    A, B = theirs.lora_A["default"].weight, theirs.lora_B["default"].weight
    start = ours.start_B @ ours.start_A
    torch.testing.assert_close(start, (B @ A).detach(), rtol=1e-4, atol=1e-5)
    residual = base.weight - ours.method.scaling * start
    torch.testing.assert_close(residual, theirs.base_layer.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(effective_weight(theirs), base.weight, rtol=1e-5, atol=1e-6)

    put(ours, start_A=A, start_B=B)
    with torch.no_grad():
        A += 0.3 * torch.randn_like(A)
        B += 0.3 * torch.randn_like(B)
    put(ours, lora_A=A, lora_B=B)
    same_forward_and_gradients(ours, theirs, [("lora_A", A, as_it_is), ("lora_B", B, as_it_is)], 1e-5)
