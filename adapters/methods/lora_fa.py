"""LoRA-FA: LoRA whose A stays as it was drawn. And what all methods with a frozen A share."""

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from deltaw.adapters.linear.low_rank import kaiming_uniform, low_rank_linear
from deltaw.adapters.method import Layer, RankedMethod, ScaledFactors, Shape, State


@dataclass(frozen=True, kw_only=True)
class FrozenDown(RankedMethod):
    """W' = W₀ + s·B A with A (r, in) frozen and B (out, r) trained from zero.

    Only x Aᵀ (tokens, r) is kept for the backward pass, not x (tokens, in): nothing else needs a gradient.
    """

    @override
    def shapes(self, out_features: int, in_features: int) -> dict[str, Shape]:
        """B (out, r)."""
        del in_features
        return {"lora_B": (out_features, self.rank)}

    @override
    def frozen_shapes(self, out_features: int, in_features: int) -> dict[str, Shape]:
        """A (r, in)."""
        del out_features
        return {"lora_A": (self.rank, in_features)}

    @override
    def weight(self, base: Tensor, state: State) -> Tensor:
        """Return W₀ + s·B A."""
        return base + self.update(base, state)

    @override
    def scaled_factors(self, shape: Shape, state: State) -> ScaledFactors:
        """Return U = B, V = A and s."""
        del shape
        return ScaledFactors(state["lora_B"], state["lora_A"], self.scaling)

    @override
    def forward(self, layer: Layer, x: Tensor) -> Tensor:
        """Return x W₀ᵀ + b + s·(x Aᵀ) Bᵀ."""
        dropout = self.dropout if layer.training else 0.0
        A, B = layer.tensor("lora_A"), layer.tensor("lora_B")
        return low_rank_linear(x, layer.base, layer.bias, A, B, self.scaling, dropout)


@dataclass(frozen=True, kw_only=True)
class LoRAFA(FrozenDown):
    r"""Low-rank adaptation with a frozen A.

        W' = W₀ + s·B A,    A uniform in ±1/√in (Kaiming) and frozen, B = 0 at the start

    Trainable: r·out.

    Arguments:
        rank, alpha, dropout: See ``RankedMethod``.

    Source:
        Zhang et al. 2023, "LoRA-FA", equation 2; SBoRA, §3.1.
    """

    name = "lora-fa"
    title = "LoRA-FA"
    formula = "W₀ + s·B A, A frozen as drawn"
    source = "Zhang et al. 2023"
    counts = "r·out"
    look = ("#56B4E9", "v")

    @override
    def initial(self, base: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """B zero, A uniform."""
        A = kaiming_uniform(self.rank, base.shape[1], base, generator)
        return {"lora_B": base.new_zeros(base.shape[0], self.rank), "lora_A": A}
