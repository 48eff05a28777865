"""SBoRA: LoRA with one of the two matrices frozen to standard basis vectors, kept as indices."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from deltaw.adapters.errors import OptionError
from deltaw.adapters.low_rank import add_product
from deltaw.adapters.method import RankedMethod, Shape, State

if TYPE_CHECKING:
    from deltaw.adapters.layer import AdaptedLayer


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

    variant: Literal["FA", "FB"] = "FA"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in ("FA", "FB"):
            raise OptionError(f"variant must be 'FA' or 'FB', not {self.variant!r}")

    @property
    def name(self) -> str:
        """``sbora-fa`` or ``sbora-fb``."""
        return f"sbora-{self.variant.lower()}"

    def shapes(self, out_features: int, in_features: int) -> dict[str, Shape]:
        """B (out, r), or A (r, in)."""
        if self.variant == "FA":
            return {"lora_B": (out_features, self.rank)}
        return {"lora_A": (self.rank, in_features)}

    def frozen_shapes(self, out_features: int, in_features: int) -> dict[str, Shape]:
        """The r indices."""
        del out_features, in_features
        return {"indices": (self.rank,)}

    def initial(self, base: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Zero, and r different indices in rising order."""
        features = base.shape[1] if self.variant == "FA" else base.shape[0]
        indices = torch.randperm(features, generator=generator)[: self.rank].sort().values
        (name, shape), *_ = self.shapes(*base.shape).items()
        return {name: base.new_zeros(shape), "indices": indices}

    def weight(self, base: Tensor, state: State) -> Tensor:
        """W₀ + s·B A with the one-hot side written out."""
        return base + self.update(base, state)

    def factors(self, base: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """U = s·B, V = A_sb (FA), or U = B_sb, V = s·A (FB)."""
        if self.variant == "FA":
            B = self.scaling * state["lora_B"]
            return B, F.one_hot(state["indices"], base.shape[1]).to(B.dtype)
        A = self.scaling * state["lora_A"]
        return F.one_hot(state["indices"], base.shape[0]).T.to(A.dtype), A

    def forward(self, layer: "AdaptedLayer", x: Tensor) -> Tensor:
        """Gather columns of x (FA), or add into rows of the output (FB)."""
        flat = x.reshape(-1, x.shape[-1])  # (tokens, in)
        result = F.linear(flat, layer.base, layer.bias)  # (tokens, out)
        dropout = self.dropout if layer.training else 0.0
        indices = layer.tensor("indices")
        if self.variant == "FA":
            B = layer.tensor("lora_B")
            chosen = flat.index_select(1, indices)  # (tokens, r)
            chosen = (F.dropout(chosen, dropout) if dropout else chosen).to(B.dtype)
            result = add_product(result, chosen, B, self.scaling)
        else:
            A = layer.tensor("lora_A")
            path = F.dropout(flat, dropout) if dropout else flat
            added = F.linear(path.to(A.dtype), A).to(result.dtype)  # (tokens, r)
            result = result.index_add_(1, indices, added, alpha=self.scaling)
        return result.view(*x.shape[:-1], result.shape[-1])
