"""The linear map diag(ρ) W₀ diag(γ), also in less precision than W₀ and the factors have (autocast).

In bfloat16 there is no number between 1 and 1.0078. A factor of 1.001 that is rounded to it is 1, and one that
multiplies what is rounded already does nothing: every product is rounded back to where it was. So what a magnitude
moves in its first steps would be lost in the forward pass. The factors therefore multiply W₀ before that is rounded,
each entry once: the roundings of many entries have no direction in common. A W₀ that is itself stored in bfloat16
leaves no such way.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deltaw.adapters.linear.blocks import row_blocks


def scaled_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, rho: Tensor | None = None, gamma: Tensor | None = None
) -> Tensor:
    """Return x (diag(ρ) W₀ diag(γ))ᵀ + b, (tokens, out), in the precision of x, or that of autocast.

    Arguments:
        x: (tokens, in).
        weight, bias: W₀ (out, in) and b (out,) or ``None``.
        rho, gamma: Factors of the outputs (out,) and of the inputs (in,); ``None`` for ones.
    """
    dtype = working_dtype(x)
    if weight.dtype != dtype and not (rho is None and gamma is None):
        rounded: Tensor = _RoundedOnce.apply(x, weight, rho, gamma, dtype)  # type: ignore[no-untyped-call]
        return rounded if bias is None else rounded + bias.to(dtype)
    if gamma is not None:
        x = x * gamma.to(x.dtype)
    result = F.linear(x, weight, bias if rho is None else None)
    if rho is not None:
        rho = rho.to(result.dtype)
        result = result * rho if bias is None else torch.addcmul(bias.to(result.dtype), result, rho)
    return result


def working_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which a linear map of x is computed."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _rounded(weight: Tensor, rho: Tensor | None, gamma: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return diag(ρ) W₀ diag(γ) (out, in), each entry rounded once."""
    if torch.compiler.is_compiling():
        weight = weight if gamma is None else weight * gamma
        return (weight if rho is None else weight * rho[:, None]).to(dtype)
    result = weight.new_empty(weight.shape, dtype=dtype)
    for rows, block in row_blocks(weight):
        columns = block if gamma is None else block * gamma
        result[rows] = columns if rho is None else columns * rho[rows, None]
    return result


class _RoundedOnce(torch.autograd.Function):
    """y = x W̃ᵀ with W̃ = diag(ρ) W₀ diag(γ), which is made again for the backward pass and not kept.

    From g = ∂L/∂y the gradients are

        x: g W̃        ρ: Σ_t g_t ∘ y_t / ρ        γ: Σ_t x_t ∘ (g W̃)_t / γ        W₀: diag(ρ) gᵀ x diag(γ)

    where a factor of 0 is divided by nowhere: its entry is summed from W₀ itself.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, rho: Tensor | None, gamma: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        y = F.linear(x.to(dtype), _rounded(weight, rho, gamma, dtype))
        ctx.save_for_backward(x, weight, rho, gamma, y if ctx.needs_input_grad[2] else None)
        ctx.dtype = dtype
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (x, weight, rho, gamma, y) = gradients, ctx.saved_tensors
        wanted = ctx.needs_input_grad
        if torch.is_grad_enabled():  # to be differentiated again
            inputs = (x, weight, rho, gamma)
            chosen = [value for value, wants in zip(inputs, wanted, strict=False) if wants]
            found = iter(torch.autograd.grad(_defined(*inputs), chosen, g, create_graph=True))
            return tuple(next(found) if wants else None for wants in wanted)

        result: list[Tensor | None] = [None] * 5
        if wanted[0] or wanted[3]:
            grad_x = g @ _rounded(weight, rho, gamma, ctx.dtype)
            result[0] = grad_x.to(x.dtype)
            if wanted[3]:
                of_gamma = (x * grad_x.to(gamma.dtype)).sum(0) / gamma
                for j in (gamma == 0).nonzero()[:, 0]:
                    column = weight[:, j] if rho is None else weight[:, j] * rho
                    of_gamma[j] = (g.to(gamma.dtype) @ column.to(gamma.dtype)) @ x[:, j].to(gamma.dtype)
                result[3] = of_gamma
        if wanted[2]:
            of_rho = (g.to(rho.dtype) * y).sum(0) / rho
            for i in (rho == 0).nonzero()[:, 0]:
                row = weight[i] if gamma is None else weight[i] * gamma
                of_rho[i] = (x.to(rho.dtype) @ row.to(rho.dtype)) @ g[:, i].to(rho.dtype)
            result[2] = of_rho
        if wanted[1]:
            of_rounded = (g.T @ x.to(ctx.dtype)).to(weight.dtype)
            of_rounded = of_rounded if gamma is None else of_rounded * gamma
            result[1] = (of_rounded if rho is None else of_rounded * rho[:, None]).to(weight.dtype)
        return tuple(result)


def _defined(x: Tensor, weight: Tensor, rho: Tensor | None, gamma: Tensor | None) -> Tensor:
    """``scaled_linear`` from PyTorch's own operations, in the widest dtype among them."""
    x = x if gamma is None else x * gamma
    wide = torch.promote_types(x.dtype, weight.dtype)
    y = F.linear(x.to(wide), weight.to(wide))
    return y if rho is None else y * rho
