"""The linear map of the low-rank methods, without W'.

LoRA, rsLoRA, DoRA and BoRA are all W' = diag(ρ) (W₀ + s·B A) diag(γ). So x W'ᵀ is: scale the input by γ, one linear
with W₀, the low-rank product, scale the output by ρ. Nothing here ever holds a dense B A or W'; what ρ and γ need of
the norms of W₀ + s·B A is in ``deltaw.adapters.linear.norms``.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deltaw.adapters.linear.blocks import scaled_and_dots, thin_product
from deltaw.adapters.linear.scaled import scaled_linear


def kaiming_uniform(out_features: int, in_features: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Return LoRA's initial A (out, in): uniform in ±1/√in, the ``kaiming_uniform_(a=√5)`` of ``nn.Linear``."""
    bound = 1 / math.sqrt(in_features)
    drawn = torch.rand(out_features, in_features, generator=generator, dtype=torch.float64)
    return ((2 * drawn - 1) * bound).to(like.dtype)


def low_rank_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    scaling: float,
    dropout: float = 0.0,
    rho: Tensor | None = None,
    gamma: Tensor | None = None,
    start: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return x W'ᵀ + b for W' = diag(ρ) (W₀ − s·B₀ A₀ + s·B A) diag(γ), (…, out).

    Arguments:
        x: (…, in).
        weight, bias: W₀ (out, in) and b (out,) or ``None``.
        A, B: (r, in) and (out, r).
        scaling: s.
        dropout: Probability of dropping an entry of γ∘x on the low-rank path; 0 outside training.
        rho, gamma: Factors of the outputs (out,) and of the inputs (in,); ``None`` for ones.
        start: Constants A₀ (r, in) and B₀ (out, r), which dropout spares as it does W₀; ``None`` for none.
    """
    flat = x.reshape(-1, x.shape[-1])  # (tokens, in)
    one_dtype = all(t is None or t.dtype == flat.dtype for t in (weight, bias, A, B, rho, gamma, *(start or ())))
    if dropout or not one_dtype or torch.is_autocast_enabled(x.device.type):
        result = _composed(flat, weight, bias, A, B, scaling, rho, gamma, start, dropout)
    else:
        result = _LowRankLinear.apply(flat, weight, bias, A, B, scaling, rho, gamma, start)  # type: ignore[no-untyped-call]
    return result.view(*x.shape[:-1], result.shape[-1])


def _composed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    scaling: float,
    rho: Tensor | None,
    gamma: Tensor | None,
    start: tuple[Tensor, Tensor] | None,
    dropout: float = 0.0,
) -> Tensor:
    """Return ``low_rank_linear`` of x (tokens, in) from PyTorch's own operations, for any mixture of dtypes."""
    result = scaled_linear(x, weight, bias, rho, gamma)  # (tokens, out)
    if start is not None:
        result = _add_pair(result, x, start[0], start[1], -scaling, rho, gamma)
    path = F.dropout(x, dropout) if dropout else x
    return _add_pair(result, path, A, B, scaling, rho, gamma)


def _add_pair(
    result: Tensor, x: Tensor, A: Tensor, B: Tensor, scaling: float, rho: Tensor | None, gamma: Tensor | None
) -> Tensor:
    """Return result + s·((x γ) Aᵀ Bᵀ) ρ; both factors go to the thin matrices, where they cost least."""
    A = A if gamma is None else A * gamma
    B = B if rho is None else B * rho[:, None]
    return add_product(result, F.linear(x.to(A.dtype), A), B, scaling)


class _LowRankLinear(torch.autograd.Function):
    """``_composed`` without dropout and in one dtype, with fewer passes over (tokens, features).

    With x' = x γ, z = x' W₀ᵀ + s·(x' Aᵀ) Bᵀ and y = z ρ + b, the gradients are, from g = ∂L/∂y and g' = g ρ,

        x: (g' W₀ + s·(g' B) A) γ        γ: Σ_t x_t ∘ (g' W₀ + s·(g' B) A)_t        ρ: Σ_t g_t ∘ z_t
        A: s·(g' B)ᵀ x γ                 B: s·g'ᵀ (x' Aᵀ)

    What each step may write over is written over, and x' is not kept: γ goes to the small side of the gradient of A.
    Only z is, where there is a ρ; and x not even, where neither A nor γ is trained (LoRA-FA).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        scaling: float,
        rho: Tensor | None,
        gamma: Tensor | None,
        start: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        scaled = x if gamma is None else x * gamma
        left, right = _stacked(A, B, start)
        down = thin_product(scaled, right.T)  # (tokens, r), or (tokens, 2r)
        z = F.linear(scaled, weight, bias if rho is None else None).addmm_(down, left.T, alpha=scaling)
        if start is not None:
            down = down[:, : len(A)].clone()  # the start's own half is not kept
        kept = x if gamma is not None or ctx.needs_input_grad[1] or ctx.needs_input_grad[3] else None
        ctx.save_for_backward(kept, weight, bias, A, B, rho, gamma, down, None if rho is None else z)
        ctx.scaling, ctx.start = scaling, start
        if rho is None:
            return z
        return z * rho if bias is None else torch.addcmul(bias, z, rho)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (x, weight, bias, A, B, rho, gamma, down, z) = gradients, ctx.saved_tensors
        inputs = (x, weight, bias, A, B, ctx.scaling, rho, gamma, ctx.start)
        wanted = ctx.needs_input_grad
        if torch.is_grad_enabled():  # to be differentiated again: nothing kept, nothing overwritten
            if x is None:
                raise RuntimeError("with a frozen A no input is kept, so its gradient has no gradient of its own")
            chosen = [value for value, wants in zip(inputs, wanted, strict=True) if wants]
            found = iter(torch.autograd.grad(_composed(*inputs), chosen, g, create_graph=True))
            return tuple(next(found) if wants else None for wants in wanted)

        result: list[Tensor | None] = [None] * len(inputs)
        if wanted[2]:
            result[2] = g.sum(0)
        if wanted[6]:
            g, result[6] = scaled_and_dots(g, z, rho)
        elif rho is not None:
            g = g * rho
        if wanted[1]:
            result[1] = g.T @ (x if gamma is None else x * gamma)
        if wanted[4]:
            result[4] = thin_product(g.T, down)
        left, right = _stacked(A, B, ctx.start)
        up = thin_product(g, left)  # (tokens, r), or (tokens, 2r)
        for made in (up, result[4]) if ctx.scaling != 1 else ():
            if made is not None:
                made.mul_(ctx.scaling)
        if wanted[3]:
            grad_A = up[:, : len(A)].T @ x
            result[3] = grad_A if gamma is None else grad_A.mul_(gamma)
        if wanted[0] or wanted[7]:
            grad_x = (g @ weight).addmm_(up, right)
            if wanted[7]:
                result[0], result[7] = scaled_and_dots(grad_x, x, gamma, in_place=True)
            else:
                result[0] = grad_x if gamma is None else grad_x.mul_(gamma)
        return tuple(result)


def _stacked(A: Tensor, B: Tensor, start: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Return B and A, or [B, −B₀] (out, 2r) and [A; A₀] (2r, in): one product of twice the rank costs less than two."""
    if start is None:
        return B, A
    return torch.cat((B, -start[1]), dim=1), torch.cat((A, start[0]))


def add_product(result: Tensor, down: Tensor, B: Tensor, scaling: float) -> Tensor:
    """Return result + s·down Bᵀ, in place where the dtypes allow it: (tokens, out), (tokens, r), (out, r)."""
    if result.dtype == down.dtype == B.dtype:
        return result.addmm_(down, B.T, alpha=scaling)  # fused, and nothing saved F.linear's result
    return result + (scaling * F.linear(down, B)).to(result.dtype)
