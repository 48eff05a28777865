"""BoRA: magnitudes for the rows, then for the columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from deltaw.adapters.linear.low_rank import low_rank_linear
from deltaw.adapters.linear.norms import (
    constant_norms_of_both,
    norms_of_both_of_steps,
    ratio,
    row_norms,
    starting_norms,
    times,
    weighted_column_norms,
)
from deltaw.adapters.method import Layer, ScaledLowRank, Shape, State
from deltaw.adapters.methods.lora import LowRankPair


@dataclass(frozen=True, kw_only=True)
class BoRA(LowRankPair):
    r"""Bi-dimensional weight-decomposed low-rank adaptation.

        V  = W₀ + s·B A
        H  = diag(m_r / ‖V‖_rows) V               step 1: unit rows, times m_r (out,)
        W' = H diag(m_c / ‖H‖_columns)            step 2: unit columns, times m_c (in,)

    m_r starts as the row norms of W₀, so H = W₀, and m_c as the column norms of H = W₀, so both normalisations cancel
    and W' = W₀ at the start. Trainable: r·(out + in) + out + in.

    A zero row of V, or a zero column of H, has no direction: its factor is taken as 1.

    Arguments:
        rank, alpha, dropout, rank_stabilized: See ``LowRankPair``.
        detach_norm: Treat both norms as constants in the backward pass, as DoRA §4.3 does with its one; ‖H‖ depends on
            m_r as well, and that dependence is cut with it. ``False`` gives the full gradient; neither form builds a
            dense matrix.

    Source:
        BoRA, equation 3. The paper does not say whether it detaches; DoRA, which it extends, does.
    """

    name = "bora"
    title = "BoRA"
    formula = "H diag(m_c / ‖H‖ of the columns), H = diag(m_r / ‖V‖ of the rows) V"
    source = "BoRA, equation 3"
    counts = "r·(out + in) + out + in"
    look = ("#CC79A7", "^")

    detach_norm: bool = True

    scales_base: ClassVar[bool] = True

    @override
    def shapes(self, out_features: int, in_features: int) -> dict[str, Shape]:
        """LoRA's, m_r (out,) and m_c (in,)."""
        magnitudes = {"magnitude_row": (out_features,), "magnitude_column": (in_features,)}
        return super().shapes(out_features, in_features) | magnitudes

    @override
    def initial(self, base: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """LoRA's, the row norms of W₀, and the column norms of what they leave."""
        state = super().initial(base, generator)
        # H = W₀: its rows' factors are 1
        state["magnitude_row"] = starting_norms(base, "row")
        state["magnitude_column"] = starting_norms(base, "column")
        return state

    @override
    def weight(self, base: Tensor, state: State) -> Tensor:
        """Return W' by equation 3, dense."""
        V = base + self.product(state)
        row_norm = torch.linalg.vector_norm(V.detach() if self.detach_norm else V, dim=1)
        H = V * ratio(state["magnitude_row"], row_norm)[:, None]
        column_norm = torch.linalg.vector_norm(H.detach() if self.detach_norm else H, dim=0)
        return H * ratio(state["magnitude_column"], column_norm)

    @override
    def scaled_low_rank(self, base: Tensor, state: State) -> ScaledLowRank:
        """Return m_r / ‖V‖ as ρ, m_c / ‖H‖ as γ, and the product's factors."""
        return self.scaled_low_ranks(base, [state])[0]

    @override
    def scaled_low_ranks(self, base: Tensor, states: Sequence[State]) -> list[ScaledLowRank]:
        U, V = times(self.scaling, [state["lora_B"] for state in states]), [state["lora_A"] for state in states]
        rows, columns = (torch.stack([state[f"magnitude_{side}"] for state in states]) for side in ("row", "column"))
        row_norm, column_norm = norms_of_both_of_steps(base, U, V, rows)
        rho, gamma = ratio(rows, row_norm), ratio(columns, column_norm)
        return [ScaledLowRank(*form) for form in zip(rho, gamma, U, V, strict=True)]

    @override
    def forward(self, layer: Layer, x: Tensor) -> Tensor:
        """Scale LoRA's input by m_c / ‖H‖ and its output by m_r / ‖V‖."""
        state = layer.state()
        A, B = state["lora_A"], state["lora_B"]
        with torch.autocast(x.device.type, enabled=False):
            row_norm, column_norm = self._norms(layer.base, state)
            rho = ratio(state["magnitude_row"], row_norm)  # (out,)
            gamma = ratio(state["magnitude_column"], column_norm)  # (in,)
        dropout = self.dropout if layer.training else 0.0
        return low_rank_linear(x, layer.base, layer.bias, A, B, self.scaling, dropout, rho=rho, gamma=gamma)

    def _norms(self, base: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """‖V‖ (out,) and ‖H‖ (in,): constants, or with the graph that ``detach_norm=False`` asks for."""
        A, B, magnitude = state["lora_A"], state["lora_B"], state["magnitude_row"]
        if self.detach_norm or not torch.is_grad_enabled():
            return constant_norms_of_both(base, A, B, self.scaling, magnitude)
        row_norm = row_norms(base, A, B, self.scaling)
        p = ratio(magnitude, row_norm)
        return row_norm, weighted_column_norms(base, A, B, self.scaling, p)
