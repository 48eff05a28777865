"""Magnitude alone: DoRA's magnitudes without its directional update, for some modules beside DoRA on others."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from deltaw.adapters.errors import OptionError
from deltaw.adapters.linear.norms import ratio
from deltaw.adapters.linear.scaled import scaled_linear
from deltaw.adapters.method import Layer, Method, ScaledLowRank, Shape, State


@dataclass(frozen=True, kw_only=True)
class Magnitude(Method):
    r"""The magnitudes of W₀'s columns or rows, and nothing else.

        W' = W₀ diag(m / ‖W₀‖_columns)      axis = "column", m (in,)
        W' = diag(m / ‖W₀‖_rows) W₀         axis = "row",    m (out,)

    DoRA's Table 6 trains this on some modules and DoRA on the others:

        inject(model, {"*.query": DoRA(rank=8), "*.dense": Magnitude()})

    m starts as the norms of W₀, so W' = W₀ at the start. Trainable: in (column) or out (row).

    Arguments:
        axis: "column" or "row", along which the magnitudes stand.

    Raises:
        OptionError: The axis is neither.

    Source:
        DoRA, §5.6 and Table 6.
    """

    name = "magnitude"
    title = "Magnitude only"
    formula = "W₀ diag(m / ‖W₀‖ of the columns or rows), for some modules beside DoRA on others"
    source = "Liu et al. 2024, Table 6"
    counts = "in, or out"
    look = ("#E69F00", "o")

    axis: Literal["row", "column"] = "column"

    scales_base: ClassVar[bool] = True
    turns: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.axis not in ("row", "column"):
            raise OptionError(f"axis must be 'row' or 'column', not {self.axis!r}")

    @override
    def shapes(self, out_features: int, in_features: int) -> dict[str, Shape]:
        """The magnitudes."""
        return {"magnitude": (in_features if self.axis == "column" else out_features,)}

    @override
    def frozen_shapes(self, out_features: int, in_features: int) -> dict[str, Shape]:
        """The norms of W₀."""
        return {"norm": self.shapes(out_features, in_features)["magnitude"]}

    @override
    def initial(self, base: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """The norms of W₀, to train and to divide by."""
        del generator
        norm = torch.linalg.vector_norm(base, dim=0 if self.axis == "column" else 1)
        return {"magnitude": norm, "norm": norm.clone()}

    @override
    def weight(self, base: Tensor, state: State) -> Tensor:
        """M W₀ / ‖W₀‖."""
        return base * ratio(state["magnitude"], state["norm"]).unsqueeze(0 if self.axis == "column" else 1)

    @override
    def scaled_low_rank(self, base: Tensor, state: State) -> ScaledLowRank:
        """Return m / ‖W₀‖ as ρ or γ; there is no product."""
        scale = ratio(state["magnitude"], state["norm"])
        rho, gamma = (scale, None) if self.axis == "row" else (None, scale)
        none = [scale.new_empty(side) for side in ((len(base), 0), (0, base.shape[1]))]
        return self.scaled(base, none[0], none[1], rho, gamma)

    @override
    def forward(self, layer: Layer, x: Tensor) -> Tensor:
        """Scale the input (column) or the output (row) of the linear map."""
        scale = ratio(layer.tensor("magnitude"), layer.tensor("norm"))
        rho, gamma = (scale, None) if self.axis == "row" else (None, scale)
        flat = x.reshape(-1, x.shape[-1])  # (tokens, in)
        return scaled_linear(flat, layer.base, layer.bias, rho, gamma).view(*x.shape[:-1], -1)
