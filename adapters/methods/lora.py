"""LoRA and rsLoRA: W' = W₀ + s·B A."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from deltaw.adapters.linear.low_rank import kaiming_uniform, low_rank_linear
from deltaw.adapters.method import Layer, RankedMethod, ScaledFactors, Shape, State


@dataclass(frozen=True, kw_only=True)
class LowRankPair(RankedMethod):
    """The product s·B A, which LoRA, DoRA and BoRA share.

    A (r, in) starts uniform in ±1/√in (Kaiming, as in ``nn.Linear``), B (out, r) at zero.

    Arguments:
        rank, alpha, dropout: See ``RankedMethod``.
        rank_stabilized: Use rsLoRA's scaling, s = α / √r.
    """

    rank_stabilized: bool = False

    @property
    @override
    def scaling(self) -> float:
        """s = α / r, or α / √r for rsLoRA."""
        alpha = self.rank if self.alpha is None else self.alpha
        return alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)

    @override
    def shapes(self, out_features: int, in_features: int) -> dict[str, Shape]:
        """A (r, in), B (out, r)."""
        return {"lora_A": (self.rank, in_features), "lora_B": (out_features, self.rank)}

    @override
    def initial(self, base: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """A uniform, B zero."""
        return {
            "lora_A": kaiming_uniform(self.rank, base.shape[1], base, generator),
            "lora_B": base.new_zeros(base.shape[0], self.rank),
        }

    def product(self, state: State) -> Tensor:
        """Return s·B A, (out, in), dense: for definitions, not for forwards."""
        return self.scaling * (state["lora_B"] @ state["lora_A"])


@dataclass(frozen=True, kw_only=True)
class LoRA(LowRankPair):
    r"""Low-rank adaptation.

        W' = W₀ + s·B A,    s = α / r (LoRA),    s = α / √r (rsLoRA)

    B starts at zero, so W' = W₀ at the start. Trainable: r·(out + in).

    Arguments:
        rank, alpha, dropout: See ``RankedMethod``.
        rank_stabilized: Use rsLoRA's scaling.

    Source:
        Hu et al. 2022, equation 3; DoRA, equation 1. Kalajdzievski 2023 for rsLoRA.

    Example:
        >>> import torch
        >>> from deltaw.adapters import LoRA, adapted, inject
        >>> model = inject(torch.nn.Sequential(torch.nn.Linear(6, 4)), LoRA(rank=2), targets=["0"], seed=0)
        >>> {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
        {'0.lora_A': (2, 6), '0.lora_B': (4, 2)}
    """

    counts = "r·(out + in)"

    @property
    @override
    def name(self) -> str:
        return "rslora" if self.rank_stabilized else "lora"

    @property
    @override
    def title(self) -> str:
        return "rsLoRA" if self.rank_stabilized else "LoRA"

    @property
    @override
    def formula(self) -> str:
        return "W₀ + s·B A" + (" with s = α/√r" if self.rank_stabilized else "")

    @property
    @override
    def source(self) -> str:
        return "Kalajdzievski 2023" if self.rank_stabilized else "Hu et al. 2022"

    @property
    @override
    def look(self) -> tuple[str, str]:
        return ("#56B4E9", "p") if self.rank_stabilized else ("#0072B2", "o")

    @override
    def weight(self, base: Tensor, state: State) -> Tensor:
        """Return W₀ + s·B A."""
        return base + self.product(state)

    @override
    def update(self, base: Tensor, state: State) -> Tensor:
        """s·B A."""
        del base
        return self.product(state)

    @override
    def scaled_factors(self, shape: Shape, state: State) -> ScaledFactors | None:
        """Return U = B, V = A and s."""
        del shape
        return ScaledFactors(state["lora_B"], state["lora_A"], self.scaling)

    @override
    def forward(self, layer: Layer, x: Tensor) -> Tensor:
        """Return x W₀ᵀ + b + s·(x Aᵀ) Bᵀ."""
        dropout = self.dropout if layer.training else 0.0
        return low_rank_linear(
            x, layer.base, layer.bias, layer.tensor("lora_A"), layer.tensor("lora_B"), self.scaling, dropout
        )
