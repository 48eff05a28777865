"""Full fine-tuning: nothing is injected and nothing is frozen."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from deltaw.adapters.method import Method, Shape, State

if TYPE_CHECKING:
    from deltaw.adapters.layer import AdaptedLayer


@dataclass(frozen=True, kw_only=True)
class FullFineTuning(Method):
    r"""Every parameter of the model trains; W' is the weight itself.

    Source:
        The baseline "FT" of DoRA, figure 2a, and of BoRA, figures 2 and 3.
    """

    injects: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """``ft``."""
        return "ft"

    def shapes(self, out_features: int, in_features: int) -> dict[str, Shape]:
        """The matrix itself."""
        return {"weight": (out_features, in_features)}

    def initial(self, base: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """W₀."""
        del generator
        return {"weight": base.clone()}

    def weight(self, base: Tensor, state: State) -> Tensor:
        """The matrix itself."""
        del base
        return state["weight"]

    def forward(self, layer: "AdaptedLayer", x: Tensor) -> Tensor:
        """Of the plain layer; full fine-tuning has no layer of its own."""
        return torch.nn.functional.linear(x, layer.base, layer.bias)
