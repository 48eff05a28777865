"""Dual LoRA: the update is a ReLU of one low-rank product times the sign of another."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from deltaw.adapters.errors import OptionError
from deltaw.adapters.low_rank import row_blocks
from deltaw.adapters.method import RankedMethod, Shape, State

if TYPE_CHECKING:
    from deltaw.adapters.layer import AdaptedLayer


@dataclass(frozen=True, kw_only=True)
class DualLoRA(RankedMethod):
    r"""Magnitude and direction groups.

        W_m = ReLU(B A)                         the magnitude group, A (r₁, in), B (out, r₁)
        W_d = Sign(D C)                         the direction group, C (r₂, in), D (out, r₂)
        W'  = W₀ + ramp·α/√(r₁ r₂) · W_m ⊙ W_d

    Sign is +1 for a positive input and −1 otherwise. Its gradient is the clipped straight-through estimator,
    ∂L/∂x = Clip(∂L/∂x_b, −1, 1) with x_b = Sign(x) (equations 7 and 8), so

        ∂L/∂C = Dᵀ Clip(∂L/∂ΔW · s·ReLU(B A), −1, 1).

    Equation 12 writes the clip around ∂L/∂ΔW alone. The two agree wherever neither clips; where one does, this code
    follows equations 7 and 8, which define the estimator, and of which 12 is said to be the consequence.

    All four matrices start Gaussian: a zero would either kill all four gradients (A or B) or not make the update zero
    (C or D). The paper starts from ΔW = 0 by "a warm-up strategy for the first few training steps", which is here the
    ramp: after t optimizer steps the update counts min(t / warmup_steps, 1). The layer counts the
    steps that ``torch.optim`` makes on its parameters, so gradient accumulation and checkpointing do not disturb it,
    and the count is part of what is saved and recorded. Trainable: (r₁ + r₂)·(out + in), here r₁ = r₂ = rank.

    Arguments:
        rank, alpha, dropout: See ``RankedMethod``; s = α/√(r₁ r₂).
        warmup_steps: Steps from no update to the whole of it; 0 means no ramp (then W' ≠ W₀ at the start).
        init_std: Standard deviation of the Gaussian; the paper names none, 0.02 is BERT's and RoBERTa's own.

    Raises:
        OptionError: ``warmup_steps`` is negative or ``init_std`` is not above 0.

    Source:
        Dual LoRA, equations 5 to 12.
    """

    warmup_steps: int = 100
    init_std: float = 0.02

    moving: ClassVar[tuple[str, ...]] = ("steps",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.warmup_steps, bool) or not isinstance(self.warmup_steps, int) or self.warmup_steps < 0:
            raise OptionError(f"warmup_steps must be a whole number of at least 0, not {self.warmup_steps!r}")
        if not self.init_std > 0:
            raise OptionError(f"init_std must be above 0, not {self.init_std!r}")

    @property
    def name(self) -> str:
        """``dual-lora``."""
        return "dual-lora"

    def shapes(self, out_features: int, in_features: int) -> dict[str, Shape]:
        """A and C (r, in), B and D (out, r)."""
        down, up = (self.rank, in_features), (out_features, self.rank)
        return {"lora_A": down, "lora_B": up, "lora_C": down, "lora_D": up}

    def frozen_shapes(self, out_features: int, in_features: int) -> dict[str, Shape]:
        """The count of optimizer steps, a scalar."""
        del out_features, in_features
        return {"steps": ()}

    def initial(self, base: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Four Gaussians, and no step taken."""
        state = {
            name: torch.randn(shape, generator=generator, dtype=torch.float64).mul_(self.init_std).to(base.dtype)
            for name, shape in self.shapes(*base.shape).items()
        }
        return state | {"steps": torch.zeros((), dtype=torch.int64)}

    def magnitude_group(self, state: State) -> Tensor:
        """Return W_m = ReLU(B A), (out, in); equation 5."""
        return torch.relu(state["lora_B"] @ state["lora_A"])

    def direction_group(self, state: State) -> Tensor:
        """Return W_d = Sign(D C), (out, in), of ±1; equation 6."""
        return straight_through_sign(state["lora_D"] @ state["lora_C"])

    def ramp(self, state: State) -> Tensor:
        """Return the share of the update that counts, a scalar tensor in [0, 1]."""
        dtype = state["lora_A"].dtype
        if self.warmup_steps == 0:
            return torch.ones((), dtype=dtype, device=state["lora_A"].device)
        return (state["steps"].to(dtype) / self.warmup_steps).clamp(max=1.0)

    def weight(self, base: Tensor, state: State) -> Tensor:
        """Equation 9, with the ramp."""
        return base + self.update(base, state)

    def update(self, base: Tensor, state: State) -> Tensor:
        """Ramp·s·W_m ⊙ W_d."""
        del base
        scale = self.ramp(state) * self.scaling
        return scale * (self.magnitude_group(state) * self.direction_group(state))

    def forward(self, layer: "AdaptedLayer", x: Tensor) -> Tensor:
        """X W'ᵀ + b; the one dense matrix kept for the backward pass is W_m ⊙ W_d."""
        state = layer.state()
        groups = (state["lora_A"], state["lora_B"], state["lora_C"], state["lora_D"])
        scale = self.ramp(state) * self.scaling
        if layer.training and self.dropout:
            update: Tensor = _DualLinear.apply(F.dropout(x, self.dropout), None, *groups, scale)  # type: ignore[no-untyped-call]
            result = F.linear(x, layer.base) + update
        else:
            result = _DualLinear.apply(x, layer.base, *groups, scale)  # type: ignore[no-untyped-call]
        return result if layer.bias is None else result + layer.bias.to(result.dtype)

    def observe(self, layer: "AdaptedLayer") -> None:
        """Count the optimizer steps since the last look."""
        if self.warmup_steps and (taken := layer.steps_taken()):
            with torch.no_grad():
                layer.tensor("steps").add_(taken).clamp_(max=self.warmup_steps)


class _Sign(torch.autograd.Function):
    """Sign with the clipped straight-through gradient, Dual LoRA's equations 7 and 8."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        del ctx
        return torch.where(x > 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        del ctx
        return gradients[0].clamp(-1, 1)


def straight_through_sign(x: Tensor) -> Tensor:
    """Return +1 where x > 0 and −1 elsewhere, with the gradient Clip(g, −1, 1)."""
    result: Tensor = _Sign.apply(x)  # type: ignore[no-untyped-call]
    return result


BLOCK = 4  # times the usual: a block costs a pass over the gradient of x, too


class _DualLinear(torch.autograd.Function):
    """x (W₀ + scale·W_m ⊙ W_d)ᵀ, keeping P = W_m ⊙ W_d alone of all dense matrices.

    P is enough for the backward pass: |P| = ReLU(B A), and sgn(P) = Sign(D C)·1[B A > 0] with sgn(0) = 0. So, with
    G = scale·∂L/∂W', the gradient of B A is G ⊙ sgn(P), and that of D C is Clip(G ⊙ |P|, −1, 1).

    Everything dense but P is made a block of rows at a time, which does not leave the cache.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, base: Tensor | None, A: Tensor, B: Tensor, C: Tensor, D: Tensor, scale: Tensor
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])  # (tokens, in)
        P = A.new_empty(B.shape[0], A.shape[1])
        parts = []
        for rows, block in row_blocks(P, BLOCK):
            with torch.autocast(x.device.type, enabled=False):
                sign = (D[rows] @ C).sign_().sub_(0.5)  # −½ for 0, whose Sign is −1; ``where`` is 20 times as slow
                torch.mm(B[rows], A, out=block).relu_().copysign_(sign)
                dense = _scaled_sum(base, block, rows, scale)
            dense = dense if torch.is_autocast_enabled(x.device.type) else dense.to(x.dtype)
            parts.append(F.linear(flat, dense))
        ctx.save_for_backward(x, base, P, A, B, C, D, scale)
        return torch.cat(parts, dim=1).view(*x.shape[:-1], P.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, base, P, A, B, C, D, scale = ctx.saved_tensors
        g = gradients[0].reshape(-1, P.shape[0]).to(P.dtype)  # (tokens, out)
        flat = x.reshape(-1, P.shape[1]).to(P.dtype)  # (tokens, in)
        grad_x = torch.zeros_like(flat) if ctx.needs_input_grad[0] else None
        grad_A, grad_B, grad_C, grad_D = (torch.zeros_like(group) for group in (A, B, C, D))
        for rows, block in row_blocks(P, BLOCK):
            if grad_x is not None:
                grad_x.addmm_(g[:, rows], _scaled_sum(base, block, rows, scale))
            G = (g[:, rows].T @ flat).mul_(scale)
            magnitude = block.sign().mul_(G)
            grad_A.addmm_(B[rows].T, magnitude)
            grad_B[rows] = magnitude @ A.T
            direction = G.mul_(block.abs()).clamp_(-1, 1)
            grad_C.addmm_(D[rows].T, direction)
            grad_D[rows] = direction @ C.T
        if grad_x is not None:
            grad_x = grad_x.view(x.shape).to(x.dtype)
        return grad_x, None, grad_A, grad_B, grad_C, grad_D, None


def _scaled_sum(base: Tensor | None, P: Tensor, rows: slice, scale: Tensor) -> Tensor:
    """Return those rows of W₀ + scale·P, without W₀ where there is none."""
    return P * scale if base is None else torch.addcmul(base[rows].to(P.dtype), P, scale)
