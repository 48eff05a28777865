"""diag(ρ) W₀ diag(γ) under autocast, beside its definition in float32."""

import pytest
import torch

from deltaw.adapters.linear.scaled import scaled_linear

OUT, IN, TOKENS = 24, 16, 60


def drawn(*names):
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (TOKENS, IN), "weight": (OUT, IN), "bias": (OUT,), "rho": (OUT,), "gamma": (IN,)}
    found = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    found["rho"][3], found["gamma"][5] = 0, 0
    return {name: found[name].requires_grad_() if name in names else None for name in shapes}


def defined(x, weight, bias, rho, gamma):
    x = x if gamma is None else x * gamma
    y = x @ weight.T
    y = y if rho is None else y * rho
    return y if bias is None else y + bias


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("scales", [("rho", "gamma"), ("rho",), ("gamma",)])
def test_values_and_gradients_also_where_a_factor_is_zero(scales, with_bias):
    names = ("x", "weight", *scales, *(["bias"] if with_bias else []))
    low, exact = drawn(*names), drawn(*names)
    with torch.autocast("cpu", torch.bfloat16):
        y = scaled_linear(**low)
    assert y.dtype == torch.bfloat16
    wanted = defined(**exact)
    g = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1))
    y.float().backward(g)
    wanted.backward(g)
    pairs = {name: (low[name].grad, exact[name].grad) for name in names} | {"y": (y.float(), wanted)}
    for name, (got, right) in pairs.items():
        assert got.dtype == torch.float32
        assert (got - right).norm() <= 2 * torch.finfo(torch.bfloat16).eps * right.norm(), name
    for name, place in (("rho", 3), ("gamma", 5)):
        if name in scales:
            torch.testing.assert_close(low[name].grad[place], exact[name].grad[place], rtol=0.05, atol=0.05)


def test_gradients_of_gradients():
    tensors = drawn("x", "weight", "rho", "gamma")
    with torch.autocast("cpu", torch.bfloat16):
        y = scaled_linear(**tensors)
    (first,) = torch.autograd.grad(y.float().square().sum(), tensors["rho"], create_graph=True)
    second = torch.autograd.grad(first.sum(), tensors["rho"])[0]
    assert second.isfinite().all()
    assert second.norm() > 0


def test_nothing_is_kept_but_what_was_given_and_the_output():
    tensors = drawn("rho", "gamma")
    tensors |= {name: value.detach() for name, value in drawn("x", "weight").items() if value is not None}
    kept = []
    keep = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t)
    with keep, torch.autocast("cpu", torch.bfloat16):
        scaled_linear(**tensors)
    assert {t.data_ptr() for t in kept if t.shape == (OUT, IN)} == {tensors["weight"].data_ptr()}
