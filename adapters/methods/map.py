"""MAP: a magnitude for the whole of W₀ and one for the whole of the update."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from deltaw.adapters.linear.low_rank import add_product, kaiming_uniform
from deltaw.adapters.linear.norms import ratio, safe_sqrt
from deltaw.adapters.linear.scaled import scaled_linear
from deltaw.adapters.method import Layer, RankedMethod, ScaledLowRank, Shape, State


@dataclass(frozen=True, kw_only=True)
class MAP(RankedMethod):
    r"""Magnitude and direction of the matrix as one vector.

        W' = α W₀ / ‖W₀‖_F + β B A / ‖B A‖_F,    α, β scalars

    where DoRA has a magnitude for every row or column. α starts as ‖W₀‖_F and β as zero, A and B both uniform
    (Kaiming), so W' = W₀ at the start and B A has a direction from the first step on: β learns first, A and B as soon
    as β ≠ 0.
    Trainable: r·(out + in) + 2.

    A zero W₀ or B A has no direction and stays zero.

    Arguments:
        rank, dropout: See ``RankedMethod``.
        alpha: Means nothing here, where β is trained; it is there for the sake of settings that several methods share.

    Source:
        Si et al. 2025, "MAP: Revisiting Weight Decomposition for Low-Rank Adaptation" (arXiv 2505.23094). The abstract
        and a review that quotes the formula were read, the paper's own text could not be: how it starts, with a B A of
        zero or not, is this file's choice.

    Example:
        >>> from deltaw.adapters import MAP, adapted, inject
        >>> model = inject(torch.nn.Sequential(torch.nn.Linear(6, 4)), MAP(rank=2), targets=["0"], seed=0)
        >>> adapted(model)["0"].tensor("magnitude_update").item()
        0.0
    """

    name = "map"
    title = "MAP"
    formula = "α W₀/‖W₀‖ + β B A/‖B A‖, the norms of whole matrices"
    source = "Si et al. 2025"
    counts = "r·(out + in) + 2"
    look = ("#117733", "s")

    scales_base: ClassVar[bool] = True

    @override
    def shapes(self, out_features: int, in_features: int) -> dict[str, Shape]:
        """A (r, in), B (out, r), α (1,) and β (1,)."""
        pair: dict[str, Shape] = {"lora_A": (self.rank, in_features), "lora_B": (out_features, self.rank)}
        return pair | {"magnitude_base": (1,), "magnitude_update": (1,)}

    @override
    def frozen_shapes(self, out_features: int, in_features: int) -> dict[str, Shape]:
        """‖W₀‖_F (1,)."""
        return {"norm": (1,)}

    @override
    def initial(self, base: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """A and B uniform, α = ‖W₀‖_F, β = 0."""
        norm = torch.linalg.vector_norm(base.double()).to(base.dtype).reshape(1)
        return {
            "lora_A": kaiming_uniform(self.rank, base.shape[1], base, generator),
            "lora_B": kaiming_uniform(base.shape[0], self.rank, base, generator),
            "magnitude_base": norm,
            "magnitude_update": base.new_zeros(1),
            "norm": norm.clone(),
        }

    @override
    def weight(self, base: Tensor, state: State) -> Tensor:
        """Return α W₀/‖W₀‖ + β B A/‖B A‖, dense."""
        product = state["lora_B"] @ state["lora_A"]
        norm = torch.linalg.vector_norm(product).reshape(1)
        update = ratio(state["magnitude_update"], norm) * product
        return ratio(state["magnitude_base"], state["norm"]) * base + update

    @override
    def scaled_low_rank(self, base: Tensor, state: State) -> ScaledLowRank | None:
        """Return ρ = α/‖W₀‖ for every row, and B A with its factor over ρ; ``None`` where ρ is 0."""
        rho = ratio(state["magnitude_base"], state["norm"])
        if float(rho) == 0:
            return None
        return self.scaled(base, _factor(state) / rho * state["lora_B"], state["lora_A"], rho.expand(len(base)))

    @override
    def forward(self, layer: Layer, x: Tensor) -> Tensor:
        """Scale the outputs of W₀, and add the low-rank product; ‖B A‖ comes from r × r products."""
        state = layer.state()
        A, B = state["lora_A"], state["lora_B"]
        with torch.autocast(x.device.type, enabled=False):
            factor = _factor(state)
            rho = ratio(state["magnitude_base"], state["norm"])
        flat = x.reshape(-1, x.shape[-1])  # (tokens, in)
        result = scaled_linear(flat, layer.base, layer.bias, rho.expand(len(B)))
        path = F.dropout(flat, self.dropout) if layer.training and self.dropout else flat
        down = F.linear(path.to(A.dtype), A)
        result = add_product(result, down * factor.to(down.dtype), B, 1.0)
        return result.view(*x.shape[:-1], -1)


def _factor(state: State) -> Tensor:
    """β / ‖B A‖ (1,), with ‖B A‖² = Σ (Bᵀ B) ∘ (A Aᵀ)."""
    A, B = state["lora_A"].double(), state["lora_B"].double()  # small beside the layer, and nothing is lost
    norm = safe_sqrt(((B.T @ B) * (A @ A.T)).sum()).reshape(1)
    return ratio(state["magnitude_update"].double(), norm).to(state["lora_B"].dtype)
