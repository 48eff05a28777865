"""DoRA: W' = m (W₀ + s·B A) / ‖W₀ + s·B A‖, the norm along the columns or the rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from deltaw.adapters.errors import OptionError
from deltaw.adapters.linear.low_rank import low_rank_linear
from deltaw.adapters.linear.norms import norms, norms_of_steps, ratio, starting_norms, times
from deltaw.adapters.method import Layer, ScaledLowRank, Shape, State
from deltaw.adapters.methods.lora import LowRankPair


@dataclass(frozen=True, kw_only=True)
class DoRA(LowRankPair):
    r"""Weight-decomposed low-rank adaptation.

        V  = W₀ + s·B A
        W' = V diag(m / ‖V‖_columns)      axis = "column", m (in,)
        W' = diag(m / ‖V‖_rows) V         axis = "row",    m (out,)

    m starts as the norms of W₀, A and B as in LoRA, so W' = W₀ at the start.
    Trainable: r·(out + in) + in (column) or + out (row).

    The axis trap: the paper's equation has m ∈ ℝ^{1×k} for W ∈ ℝ^{d×k}, one magnitude per column, and BoRA compares
    itself with that. The authors' code, and PEFT's ``use_dora=True``, normalise each *row* of ``nn.Linear.weight``.
    So ``DoRA(axis="column")`` is the equation and ``DoRA(axis="row")`` is the code (BoRA's "DoRA(row)").

    A zero vector of V has no direction: its factor m / ‖V‖ is taken as 1, so it stays zero and nothing is NaN.

    Arguments:
        rank, alpha, dropout, rank_stabilized: See ``LowRankPair``. The dropout spares W₀; the authors' code and PEFT
            also drop inputs of (m / ‖V‖ − 1)·W₀.
        axis: "column" or "row", along which the magnitudes stand.
        detach_norm: Treat ‖V‖ as a constant in the backward pass (§4.3, the paper's choice). ``False`` gives the full
            gradient; neither form builds a dense matrix.

    Raises:
        OptionError: The axis is neither.

    Source:
        DoRA, equation 5, and §4.3 for the detached norm; BoRA, equation 1 and Table 4.
    """

    axis: Literal["row", "column"] = "column"
    detach_norm: bool = True

    scales_base: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.axis not in ("row", "column"):
            raise OptionError(f"axis must be 'row' or 'column', not {self.axis!r}")

    @property
    @override
    def name(self) -> str:
        return "dora" if self.axis == "column" else "dora-row"

    @property
    @override
    def title(self) -> str:
        return f"DoRA ({self.axis})"

    @property
    @override
    def formula(self) -> str:
        if self.axis == "column":
            return "V diag(m / ‖V‖ of the columns), V = W₀ + s·B A"
        return "diag(m / ‖V‖ of the rows) V"

    @property
    @override
    def source(self) -> str:
        return "Liu et al. 2024, " + ("equation 5" if self.axis == "column" else "the authors' code")

    @property
    @override
    def counts(self) -> str:
        return "r·(out + in) + " + ("in" if self.axis == "column" else "out")

    @property
    @override
    def look(self) -> tuple[str, str]:
        return ("#009E73", "D") if self.axis == "column" else ("#E69F00", "v")

    @override
    def shapes(self, out_features: int, in_features: int) -> dict[str, Shape]:
        """LoRA's, and the magnitudes."""
        length = in_features if self.axis == "column" else out_features
        return super().shapes(out_features, in_features) | {"magnitude": (length,)}

    @override
    def initial(self, base: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """LoRA's, and m = ‖W₀‖ along the axis."""
        state = super().initial(base, generator)
        norm = starting_norms(base, self.axis)
        return state | {"magnitude": norm}

    @override
    def weight(self, base: Tensor, state: State) -> Tensor:
        """Return m V / ‖V‖, dense."""
        V = base + self.product(state)
        dim = 0 if self.axis == "column" else 1
        norm = torch.linalg.vector_norm(V.detach() if self.detach_norm else V, dim=dim)
        return V * ratio(state["magnitude"], norm).unsqueeze(dim)

    @override
    def scaled_low_rank(self, base: Tensor, state: State) -> ScaledLowRank:
        """Return m / ‖V‖ as ρ or γ, and the product's factors."""
        return self.scaled_low_ranks(base, [state])[0]

    @override
    def scaled_low_ranks(self, base: Tensor, states: Sequence[State]) -> list[ScaledLowRank]:
        U, V = times(self.scaling, [state["lora_B"] for state in states]), [state["lora_A"] for state in states]
        magnitude = torch.stack([state["magnitude"] for state in states])
        scale = ratio(magnitude, norms_of_steps(base, U, V, self.axis))
        return self.scaled_along(base, U, V, self.axis, scale)

    @override
    def forward(self, layer: Layer, x: Tensor) -> Tensor:
        """Scale the input (column) or the output (row) of LoRA's forward by m / ‖V‖."""
        state = layer.state()
        with torch.autocast(x.device.type, enabled=False):
            norm = norms(layer.base, state["lora_A"], state["lora_B"], self.scaling, self.axis, self.detach_norm)
            scale = ratio(state["magnitude"], norm)
        return low_rank_linear(
            x,
            layer.base,
            layer.bias,
            state["lora_A"],
            state["lora_B"],
            self.scaling,
            self.dropout if layer.training else 0.0,
            rho=scale if self.axis == "row" else None,
            gamma=scale if self.axis == "column" else None,
        )
