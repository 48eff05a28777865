"""SBoRA: LoRA with one of the two matrices frozen to standard basis vectors, kept as indices."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from deltaw.adapters.errors import OptionError
from deltaw.adapters.linear.blocks import thin_product
from deltaw.adapters.linear.low_rank import add_product
from deltaw.adapters.method import Layer, RankedMethod, ScaledFactors, Shape, State


@dataclass(frozen=True, kw_only=True)
class SBoRA(RankedMethod):
    r"""Standard basis low-rank adaptation, with regional weight updates.

        FA:  W' = W₀ + s·B A_sb,   A_sb = r rows of the identity (in × in):     r columns of W₀ move
        FB:  W' = W₀ + s·B_sb A,   B_sb = r columns of the identity (out × out): r rows of W₀ move

    The frozen side is drawn without replacement and kept as r indices, nothing else. The trained side starts at zero,
    so W' = W₀ at the start. Trainable: out·r (FA) or in·r (FB), the paper's Table 1.

    FA gathers the chosen columns of x before one small product; FB adds a small product into the chosen rows of the
    output (the paper's sampleMul, equations 13 and 14).

    Arguments:
        rank, alpha, dropout: See ``RankedMethod``. The paper has no scaling: alpha = ``None`` gives s = 1.
        variant: "FA" or "FB".

    Raises:
        OptionError: The variant is neither.

    Source:
        SBoRA, equations 8 to 14 and Table 1.
    """

    source = "SBoRA, equations 8 to 14"

    variant: Literal["FA", "FB"] = "FA"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in ("FA", "FB"):
            raise OptionError(f"variant must be 'FA' or 'FB', not {self.variant!r}")

    @property
    @override
    def name(self) -> str:
        return f"sbora-{self.variant.lower()}"

    @property
    @override
    def title(self) -> str:
        return f"SBoRA-{self.variant}"

    @property
    @override
    def formula(self) -> str:
        if self.variant == "FA":
            return "W₀ + s·B A, A made of rows of the identity: r columns of W₀ move"
        return "W₀ + s·B A, B made of columns of the identity: r rows of W₀ move"

    @property
    @override
    def counts(self) -> str:
        return "r·out" if self.variant == "FA" else "r·in"

    @property
    @override
    def look(self) -> tuple[str, str]:
        return ("#882255", "<") if self.variant == "FA" else ("#999933", ">")

    @override
    def shapes(self, out_features: int, in_features: int) -> dict[str, Shape]:
        """B (out, r), or A (r, in)."""
        if self.variant == "FA":
            return {"lora_B": (out_features, self.rank)}
        return {"lora_A": (self.rank, in_features)}

    @override
    def frozen_shapes(self, out_features: int, in_features: int) -> dict[str, Shape]:
        """The r indices."""
        del out_features, in_features
        return {"indices": (self.rank,)}

    @override
    def initial(self, base: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Zero, and r different indices in rising order."""
        features = base.shape[1] if self.variant == "FA" else base.shape[0]
        indices = torch.randperm(features, generator=generator)[: self.rank].sort().values
        (name, shape), *_ = self.shapes(*base.shape).items()
        return {name: base.new_zeros(shape), "indices": indices}

    @override
    def weight(self, base: Tensor, state: State) -> Tensor:
        """Return W₀ + s·B A with the one-hot side written out."""
        return base + self.update(base, state)

    @override
    def scaled_factors(self, shape: Shape, state: State) -> ScaledFactors:
        """Return U = B, V = A_sb (FA), or U = B_sb, V = A (FB), and s."""
        if self.variant == "FA":
            B = state["lora_B"]
            return ScaledFactors(B, F.one_hot(state["indices"], shape[1]).to(B.dtype), self.scaling)
        A = state["lora_A"]
        return ScaledFactors(F.one_hot(state["indices"], shape[0]).T.to(A.dtype), A, self.scaling)

    @override
    def forward(self, layer: Layer, x: Tensor) -> Tensor:
        """Gather columns of x (FA), or add into rows of the output (FB)."""
        flat = x.reshape(-1, x.shape[-1])  # (tokens, in)
        dropout = self.dropout if layer.training else 0.0
        forward = self._gather if self.variant == "FA" else self._scatter
        return forward(layer, flat, dropout).view(*x.shape[:-1], -1)

    def _gather(self, layer: Layer, x: Tensor, dropout: float) -> Tensor:
        B, W, indices = layer.tensor("lora_B"), layer.base, layer.tensor("indices")
        chosen = x.index_select(1, indices)  # (tokens, r)
        if _is_plain(x, W, layer.bias, B, dropout):
            result: Tensor = _GatheredLinear.apply(x, chosen, W, layer.bias, B, indices, self.scaling)  # type: ignore[no-untyped-call]
            return result
        chosen = (F.dropout(chosen, dropout) if dropout else chosen).to(B.dtype)
        return add_product(F.linear(x, W, layer.bias), chosen, B, self.scaling)

    def _scatter(self, layer: Layer, x: Tensor, dropout: float) -> Tensor:
        A, W, indices = layer.tensor("lora_A"), layer.base, layer.tensor("indices")
        if _is_plain(x, W, layer.bias, A, dropout):
            result: Tensor = _ScatteredLinear.apply(x, W, layer.bias, A, indices, self.scaling)  # type: ignore[no-untyped-call]
            return result
        result = F.linear(x, W, layer.bias)  # (tokens, out)
        path = F.dropout(x, dropout) if dropout else x
        added = F.linear(path.to(A.dtype), A).to(result.dtype)  # (tokens, r)
        return result.index_add_(1, indices, added, alpha=self.scaling)


def _is_plain(x: Tensor, weight: Tensor, bias: Tensor | None, trained: Tensor, dropout: float) -> bool:
    """Whether the one function can do it: one dtype, a frozen W₀, no dropout."""
    one_dtype = all(t is None or t.dtype == x.dtype for t in (weight, bias, trained))
    return one_dtype and not (dropout or weight.requires_grad or torch.is_autocast_enabled(x.device.type))


class _GatheredLinear(torch.autograd.Function):
    """Return x W₀ᵀ + b + s·x_R Bᵀ for the chosen columns x_R of x, with one pass less over the gradient of x.

    From g = ∂L/∂y, the gradients are x: g W₀, with s·g B added to the chosen columns; B: s·gᵀ x_R; b: Σ_t g_t. The
    gradient of x_R is part of that of x, so it has none of its own. Neither x nor anything dense is kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        chosen: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        B: Tensor,
        indices: Tensor,
        scaling: float,
    ) -> Tensor:
        ctx.save_for_backward(chosen, weight, B, indices)
        ctx.scaling = scaling
        return F.linear(x, weight, bias).addmm_(chosen, B.T, alpha=scaling)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (chosen, weight, B, indices) = gradients, ctx.saved_tensors
        result: list[Tensor | None] = [None] * 7
        if ctx.needs_input_grad[0]:
            to_x, to_chosen = g @ weight, thin_product(g, B)
            add = to_x.index_add if torch.is_grad_enabled() else to_x.index_add_
            result[0] = add(1, indices, to_chosen, alpha=ctx.scaling)
        if ctx.needs_input_grad[3]:
            result[3] = g.sum(0)
        if ctx.needs_input_grad[4]:
            result[4] = ctx.scaling * thin_product(g.T, chosen)
        return tuple(result)


class _ScatteredLinear(torch.autograd.Function):
    """Return x W₀ᵀ + b, with s·x Aᵀ added to the chosen columns, with one pass less over the gradient of x.

    From g = ∂L/∂y and its chosen columns g_R, the gradients are x: g W₀ + s·g_R A; A: s·g_Rᵀ x; b: Σ_t g_t.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, indices: Tensor, scaling: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, A, indices)
        ctx.scaling = scaling
        return F.linear(x, weight, bias).index_add_(1, indices, thin_product(x, A.T), alpha=scaling)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (g,), (x, weight, A, indices) = gradients, ctx.saved_tensors
        result: list[Tensor | None] = [None] * 6
        chosen = ctx.scaling * g.index_select(1, indices)  # (tokens, r)
        if ctx.needs_input_grad[0]:
            to_x = g @ weight
            result[0] = (to_x.addmm if torch.is_grad_enabled() else to_x.addmm_)(chosen, A)
        if ctx.needs_input_grad[2]:
            result[2] = g.sum(0)
        if ctx.needs_input_grad[3]:
            result[3] = chosen.T @ x
        return tuple(result)
