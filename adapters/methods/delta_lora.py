"""Delta-LoRA: LoRA whose base moves with the change of its product."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from deltaw.adapters.errors import OptionError
from deltaw.adapters.linear.low_rank import low_rank_linear
from deltaw.adapters.method import Layer, Shape, State
from deltaw.adapters.methods.lora import LowRankPair
from deltaw.adapters.sharded import full, is_sharded


@dataclass(frozen=True, kw_only=True)
class DeltaLoRA(LowRankPair):
    r"""LoRA in which W moves by the delta of the low-rank product after every optimizer step.

        W_{t+1} = W_t + λ·s·(B_{t+1} A_{t+1} − B_t A_t)    from step K on,    W'_t = W_t + s·B_t A_t

    The sum over the steps telescopes, so the moving base is known in closed form and need not be written over W₀:

        W_t = W₀ + λ·s·(B_t A_t − B_K A_K),    W'_t = W₀ + (1 + λ)·s·B_t A_t − λ·s·B_K A_K.

    So ΔW has rank at most 2r (r where K = 0, as B₀ = 0), other than the paper's "high-rank" suggests; ``base_weight``
    stays W₀. The gradient of A and B is LoRA's: W_t is a constant in each step.

    B starts at zero, so W' = W₀ at the start. Trainable: r·(out + in).

    Arguments:
        rank, alpha, dropout, rank_stabilized: See ``LowRankPair``. The paper has no dropout.
        ratio: λ, the paper's update ratio (its GLUE runs: 2).
        start_step: K, the optimizer steps before the base begins to move.

    Raises:
        OptionError: ``ratio`` is not above 0 or ``start_step`` is negative.

    Source:
        Zi et al. 2023, "Delta-LoRA", equations 5 to 7 and algorithm 1.
    """

    name = "delta-lora"
    title = "Delta-LoRA"
    formula = "W_t + s·B A, W_t moved by λ·s·Δ(B A) after every step"
    source = "Zi et al. 2023"
    counts = "r·(out + in)"
    look = ("#0072B2", "d")

    ratio: float = 2.0
    start_step: int = 0

    moving: ClassVar[tuple[str, ...]] = ("anchor_A", "anchor_B", "steps")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ratio < float("inf"):
            raise OptionError(f"ratio must be a number above 0, not {self.ratio!r}")
        self.take_whole_numbers(start_step=0)

    @override
    def frozen_shapes(self, out_features: int, in_features: int) -> dict[str, Shape]:
        """A and B at step K, and the count of optimizer steps up to K."""
        return {"anchor_A": (self.rank, in_features), "anchor_B": (out_features, self.rank), "steps": ()}

    @override
    def initial(self, base: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """LoRA's, which is also the first anchor."""
        state = super().initial(base, generator)
        anchors = {"anchor_A": state["lora_A"].clone(), "anchor_B": state["lora_B"].clone()}
        return state | anchors | {"steps": torch.zeros((), dtype=torch.int64)}

    @override
    def weight(self, base: Tensor, state: State) -> Tensor:
        """Return W_t + s·B A; W_t is a constant."""
        moved = state["lora_B"].detach() @ state["lora_A"].detach() - state["anchor_B"] @ state["anchor_A"]
        ratio = self.ratio if int(state["steps"]) >= self.start_step else 0.0
        return base + ratio * self.scaling * moved + self.product(state)

    @override
    def factors(self, base: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """Return U = s·[(1 + λ) B, −λ B_K] and V = [A; A_K]; without an anchor s·(1 + λ)·B and A."""
        del base
        A, B = state["lora_A"], self.scaling * state["lora_B"]
        if int(state["steps"]) < self.start_step:
            return B, A
        B = (1 + self.ratio) * B
        if not bool(state["anchor_B"].any()):
            return B, A
        return torch.cat((B, -self.ratio * self.scaling * state["anchor_B"]), dim=1), torch.cat((A, state["anchor_A"]))

    @override
    def forward(self, layer: Layer, x: Tensor) -> Tensor:
        """LoRA's forward with the pair [A; A; A_K], [B, λ B, −λ B_K], of which only the first is differentiated."""
        state = layer.state()
        A, B = state["lora_A"], state["lora_B"]
        ratio = (state["steps"] >= self.start_step).to(B.dtype) * self.ratio
        pairs = [(A, B), (A.detach(), ratio * B.detach())]
        if self.start_step:
            pairs.append((state["anchor_A"], -ratio * state["anchor_B"]))
        stacked, wide = torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs], dim=1)
        dropout = self.dropout if layer.training else 0.0
        return low_rank_linear(x, layer.base, layer.bias, stacked, wide, self.scaling, dropout)

    @override
    def observe(self, layer: Layer) -> None:
        """Count the optimizer steps up to K, and keep A and B as they are at K."""
        if not self.start_step or not (taken := layer.steps_taken()):
            return
        with torch.no_grad():
            steps = layer.tensor("steps")
            if (before := int(steps)) >= self.start_step:
                return
            steps.fill_(min(before + taken, self.start_step))
            if before + taken >= self.start_step:
                for anchor, name in (("anchor_A", "lora_A"), ("anchor_B", "lora_B")):
                    layer.tensor(anchor).copy_(_in_the_form_of(layer.tensor(anchor), layer.tensor(name)))


def _in_the_form_of(anchor: Tensor, parameter: Tensor) -> Tensor:
    """The whole of a parameter of which each process has a part: buffers are not cut up by FSDP2.

    All processes come here together, as they make the optimizer step together.
    """
    return parameter if is_sharded(anchor) else full(parameter)
