"""HiRA: a low-rank product that multiplies W₀ entry by entry."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import override

from deltaw.adapters.linear.blocks import row_blocks
from deltaw.adapters.linear.low_rank import kaiming_uniform
from deltaw.adapters.method import Layer, RankedMethod, Shape, State

BLOCK = 4  # times the usual: a block costs a pass over the gradient of x, too


@dataclass(frozen=True, kw_only=True)
class HiRA(RankedMethod):
    r"""Hadamard high-rank adaptation.

        W' = W₀ + s·W₀ ⊙ (B A)

    ΔW's rank is bounded by rank(W₀)·r, not by r. A starts uniform in ±1/√in, B at zero, so W' = W₀ at the start.
    Trainable: r·(out + in). An entry of W₀ that is zero stays zero.

    PEFT's ``get_delta_weight`` gives B A; ``update()`` here is W' − W₀.

    Arguments:
        rank, alpha, dropout: See ``RankedMethod``. The paper has no scaling: alpha = ``None`` gives s = 1.

    Source:
        Huang et al. 2025, "HiRA", equation 3.
    """

    name = "hira"
    title = "HiRA"
    formula = "W₀ + s·W₀ ⊙ (B A)"
    source = "Huang et al. 2025"
    counts = "r·(out + in)"
    look = ("#661100", "8")

    @override
    def shapes(self, out_features: int, in_features: int) -> dict[str, Shape]:
        """A (r, in), B (out, r)."""
        return {"hira_A": (self.rank, in_features), "hira_B": (out_features, self.rank)}

    @override
    def initial(self, base: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """A uniform, B zero."""
        A = kaiming_uniform(self.rank, base.shape[1], base, generator)
        return {"hira_A": A, "hira_B": base.new_zeros(base.shape[0], self.rank)}

    @override
    def weight(self, base: Tensor, state: State) -> Tensor:
        """Return W₀ + s·W₀ ⊙ (B A)."""
        return base + self.update(base, state)

    @override
    def update(self, base: Tensor, state: State) -> Tensor:
        """s·W₀ ⊙ (B A)."""
        return self.scaling * base * (state["hira_B"] @ state["hira_A"])

    @override
    def forward(self, layer: Layer, x: Tensor) -> Tensor:
        """Return x W'ᵀ + b; W' is made a block of rows at a time, and again in the backward pass: none is kept."""
        A, B = layer.tensor("hira_A"), layer.tensor("hira_B")
        if layer.training and self.dropout:
            path = F.dropout(x, self.dropout)
            update: Tensor = _HadamardLinear.apply(path, layer.base, A, B, self.scaling, 0.0)  # type: ignore[no-untyped-call]
            return F.linear(x, layer.base, layer.bias) + update
        result: Tensor = _HadamardLinear.apply(x, layer.base, A, B, self.scaling, 1.0)  # type: ignore[no-untyped-call]
        return result if layer.bias is None else result + layer.bias.to(result.dtype)


class _HadamardLinear(torch.autograd.Function):
    """x (W₀ ⊙ (c + s·B A))ᵀ for a constant c.

    With G = ∂L/∂W' ⊙ W₀, the gradients of A and B are s·Bᵀ G and s·G Aᵀ.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, base: Tensor, A: Tensor, B: Tensor, scaling: float, constant: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])  # (tokens, in)
        parts = []
        for rows, block in row_blocks(base, BLOCK):
            with torch.autocast(x.device.type, enabled=False):
                dense = _block(block, A, B[rows], scaling, constant)
            dense = dense if torch.is_autocast_enabled(x.device.type) else dense.to(x.dtype)
            parts.append(F.linear(flat, dense))
        ctx.save_for_backward(x, base, A, B)
        ctx.scaling, ctx.constant = scaling, constant
        return torch.cat(parts, dim=1).view(*x.shape[:-1], base.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, base, A, B = ctx.saved_tensors
        g = gradients[0].reshape(-1, base.shape[0]).to(A.dtype)  # (tokens, out)
        flat = x.reshape(-1, base.shape[1]).to(A.dtype)  # (tokens, in)
        grad_x = torch.zeros_like(flat) if ctx.needs_input_grad[0] else None
        grad_A, grad_B = torch.zeros_like(A), torch.zeros_like(B)
        for rows, block in row_blocks(base, BLOCK):
            if grad_x is not None:
                grad_x.addmm_(g[:, rows], _block(block, A, B[rows], ctx.scaling, ctx.constant))
            G = (g[:, rows].T @ flat).mul_(block)
            grad_A.addmm_(B[rows].T, G, alpha=ctx.scaling)
            grad_B[rows] = (G @ A.T).mul_(ctx.scaling)
        if grad_x is not None:
            grad_x = grad_x.view(x.shape).to(x.dtype)
        return grad_x, None, grad_A, grad_B, None, None


def _block(base: Tensor, A: Tensor, B: Tensor, scaling: float, constant: float) -> Tensor:
    """Return rows of W₀ ⊙ (c + s·B A)."""
    return torch.mm(B, A).mul_(scaling).add_(constant).mul_(base)
