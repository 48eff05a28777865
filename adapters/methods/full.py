"""Full fine-tuning: nothing is injected and nothing is frozen."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from deltaw.adapters.method import Layer, Method, Shape, State


@dataclass(frozen=True, kw_only=True)
class FullFineTuning(Method):
    r"""Every parameter of the model trains; W' is the weight itself.

    Source:
        The baseline "FT" of DoRA, figure 2a, and of BoRA, figures 2 and 3.
    """

    name = "ft"
    title = "Full FT"
    formula = "every weight is trained"
    source = ""
    counts = "all of the model"
    look = ("#000000", "s")

    injects: ClassVar[bool] = False

    @override
    def shapes(self, out_features: int, in_features: int) -> dict[str, Shape]:
        """The matrix itself."""
        return {"weight": (out_features, in_features)}

    @override
    def initial(self, base: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return W₀."""
        del generator
        return {"weight": base.clone()}

    @override
    def weight(self, base: Tensor, state: State) -> Tensor:
        """The matrix itself."""
        del base
        return state["weight"]

    @override
    def forward(self, layer: Layer, x: Tensor) -> Tensor:
        """Of the plain layer; full fine-tuning has no layer of its own."""
        return torch.nn.functional.linear(x, layer.base, layer.bias)
