"""Dual LoRA: the update is a ReLU of one low-rank product times the sign of another."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import override

from deltaw.adapters.errors import OptionError
from deltaw.adapters.linear.blocks import row_blocks
from deltaw.adapters.method import Layer, RankedMethod, Shape, State


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
    steps that ``torch.optim`` makes on its parameters, so gradient accumulation, checkpointing, and sharding over
    processes do not disturb it, and the count is part of what is saved and recorded. Trainable: (r₁ + r₂)·(out + in).

    The paper's ablations:

        activation: W_m = f(B A) with f = ReLU, "abs" |x|, "sigmoid" 1/(1 + e^−x) (its Table 6), "none" x (Table 5, 1)
        sign:       "ste" as above; "none" W_d = D C (Table 5, setting 2); "fixed" a random matrix of ±1 that never
                    changes, in place of D C (setting 3: s = α/r₁, trainable r₁·(out + in));
                    "xnor" Sign(D C)·E_F|D C| with the mean of each row, "dorefa" Sign(D C)·E|D C| with the mean of all,
                    both with the gradient ∂L/∂x = ∂L/∂x_b (equations 13 and 14)
        r₁ ≠ r₂:    ``direction_rank`` (its Figure 2)

    Arguments:
        rank, alpha, dropout: See ``RankedMethod``; r₁ = rank, s = α/√(r₁ r₂).
        direction_rank: r₂; ``None`` for r₁.
        activation: "relu", "abs", "sigmoid" or "none".
        sign: "ste", "none", "fixed", "xnor" or "dorefa".
        warmup_steps: Steps from no update to the whole of it; 0 means no ramp (then W' ≠ W₀ at the start).
        init_std: Standard deviation of the Gaussian; the paper names none, 0.02 is BERT's and RoBERTa's own.

    Raises:
        OptionError: ``warmup_steps`` is negative, ``init_std`` is not above 0, or a choice is none of those above.

    Source:
        Dual LoRA, equations 5 to 14 and appendix B.
    """

    name = "dual-lora"
    title = "Dual LoRA"
    formula = "W₀ + α/√(r₁r₂)·ReLU(B A) ⊙ Sign(D C), and its paper's ablations"
    source = "Dual LoRA, equations 5 to 14"
    counts = "(r₁ + r₂)·(out + in)"
    look = ("#D55E00", "P")

    direction_rank: int | None = None
    activation: Literal["relu", "abs", "sigmoid", "none"] = "relu"
    sign: Literal["ste", "none", "fixed", "xnor", "dorefa"] = "ste"

    warmup_steps: int = 100
    init_std: float = 0.02

    moving: ClassVar[tuple[str, ...]] = ("steps",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.take_whole_numbers(warmup_steps=0, direction_rank=1)
        if not self.init_std > 0:
            raise OptionError(f"init_std must be above 0, not {self.init_std!r}")
        if self.activation not in _ACTIVATIONS:
            raise OptionError(f"activation must be one of {', '.join(_ACTIVATIONS)}, not {self.activation!r}")
        if self.sign not in ("ste", "none", "fixed", "xnor", "dorefa"):
            raise OptionError(f"sign must be one of ste, none, fixed, xnor, dorefa, not {self.sign!r}")
        if self.sign == "fixed" and self.direction_rank is not None:
            raise OptionError("direction_rank means nothing with sign='fixed', which has no D C; leave it out")

    @property
    def second_rank(self) -> int:
        """r₂; r₁ where there is no D C, so that s = α/r₁."""
        return self.rank if self.direction_rank is None else self.direction_rank

    @property
    @override
    def scaling(self) -> float:
        """s = α/√(r₁ r₂); 1 where no alpha is given."""
        return 1.0 if self.alpha is None else self.alpha / math.sqrt(self.rank * self.second_rank)

    @override
    def check_shape(self, out_features: int, in_features: int, where: str) -> None:
        """Raise where one of the ranks is above the smaller side of the matrix."""
        super().check_shape(out_features, in_features, where)
        if self.second_rank > min(out_features, in_features):
            raise OptionError(
                f"direction_rank {self.second_rank} is above min(out, in) = {min(out_features, in_features)} of module "
                f"{where!r}; choose a lower one"
            )

    @override
    def shapes(self, out_features: int, in_features: int) -> dict[str, Shape]:
        """A (r₁, in) and B (out, r₁), C (r₂, in) and D (out, r₂)."""
        first: dict[str, Shape] = {"lora_A": (self.rank, in_features), "lora_B": (out_features, self.rank)}
        if self.sign == "fixed":
            return first
        return first | {"lora_C": (self.second_rank, in_features), "lora_D": (out_features, self.second_rank)}

    @override
    def frozen_shapes(self, out_features: int, in_features: int) -> dict[str, Shape]:
        """The count of optimizer steps, a scalar; and the fixed signs (out, in)."""
        return ({"signs": (out_features, in_features)} if self.sign == "fixed" else {}) | {"steps": ()}

    @override
    def initial(self, base: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Four Gaussians, and no step taken."""
        state = {
            name: torch.randn(shape, generator=generator, dtype=torch.float64).mul_(self.init_std).to(base.dtype)
            for name, shape in self.shapes(*base.shape).items()
        }
        if self.sign == "fixed":
            state["signs"] = torch.randint(0, 2, base.shape, generator=generator, dtype=torch.int8).mul_(2).sub_(1)
        return state | {"steps": torch.zeros((), dtype=torch.int64)}

    def magnitude_group(self, state: State) -> Tensor:
        """Return W_m = f(B A), (out, in); equation 5."""
        return _ACTIVATIONS[self.activation](state["lora_B"] @ state["lora_A"])

    def direction_group(self, state: State) -> Tensor:
        """Return W_d, (out, in), Sign(D C) of ±1 or what stands for it; equation 6."""
        if self.sign == "fixed":
            return state["signs"].to(state["lora_A"].dtype)
        product = state["lora_D"] @ state["lora_C"]
        if self.sign == "none":
            return product
        if self.sign == "ste":
            return straight_through_sign(product)
        if "mean" in state:  # of all rows, where these are some of them
            return scaled_sign(product, state["mean"])
        size = product.detach().abs()
        return scaled_sign(product, size.mean(1, keepdim=True) if self.sign == "xnor" else size.mean())

    @override
    def groups(self, state: State) -> dict[str, Tensor]:
        """W_m and W_d."""
        return {"magnitude": self.magnitude_group(state), "direction": self.direction_group(state)}

    @property
    @override
    def starts_at_base(self) -> bool:
        return self.warmup_steps > 0

    def ramp(self, state: State) -> Tensor:
        """Return the share of the update that counts, a scalar tensor in [0, 1]."""
        dtype = state["lora_A"].dtype
        if self.warmup_steps == 0:
            return torch.ones((), dtype=dtype, device=state["lora_A"].device)
        return (state["steps"].to(dtype) / self.warmup_steps).clamp(max=1.0)

    @override
    def weight(self, base: Tensor, state: State) -> Tensor:
        """Return W' by equation 9, with the ramp."""
        return base + self.update(base, state)

    @override
    def update(self, base: Tensor, state: State) -> Tensor:
        """Return ramp·s·W_m ⊙ W_d."""
        del base
        scale = self.ramp(state) * self.scaling
        return scale * (self.magnitude_group(state) * self.direction_group(state))

    @override
    def forward(self, layer: Layer, x: Tensor) -> Tensor:
        """Return x W'ᵀ + b; the one dense matrix kept for the backward pass is W_m ⊙ W_d."""
        state = layer.state()
        scale = self.ramp(state) * self.scaling
        if (self.activation, self.sign) != ("relu", "ste"):
            path = F.dropout(x, self.dropout) if layer.training else x
            names = [name for name in state if name != "steps"]
            values = [state[name] for name in names]
            added: Tensor = _AblatedLinear.apply(path, self, scale, names, *values)  # type: ignore[no-untyped-call]
            return F.linear(x, layer.base, layer.bias) + added
        groups = (state["lora_A"], state["lora_B"], state["lora_C"], state["lora_D"])
        if layer.training and self.dropout:
            update: Tensor = _DualLinear.apply(F.dropout(x, self.dropout), None, *groups, scale)  # type: ignore[no-untyped-call]
            result = F.linear(x, layer.base) + update
        else:
            result = _DualLinear.apply(x, layer.base, *groups, scale)  # type: ignore[no-untyped-call]
        return result if layer.bias is None else result + layer.bias.to(result.dtype)

    @override
    def observe(self, layer: Layer) -> None:
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


class _ScaledSign(torch.autograd.Function):
    """Sign times a positive scale with the gradient of the identity, Dual LoRA's equations 13 and 14."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        del ctx
        return torch.where(x > 0, scale, -scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        del ctx
        return gradients[0], None


def scaled_sign(x: Tensor, scale: Tensor) -> Tensor:
    """Return ±scale as x > 0 or not, with the gradient of the identity; scale broadcasts to x and is a constant."""
    result: Tensor = _ScaledSign.apply(x, scale)  # type: ignore[no-untyped-call]
    return result


def straight_through_sign(x: Tensor) -> Tensor:
    """Return +1 where x > 0 and −1 elsewhere, with the gradient Clip(g, −1, 1)."""
    result: Tensor = _Sign.apply(x)  # type: ignore[no-untyped-call]
    return result


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "abs": torch.abs,
    "sigmoid": torch.sigmoid,
    "none": lambda x: x,
}

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
        g = gradients[0].reshape(-1, P.shape[0])  # (tokens, out), in bfloat16 under autocast, as are the two products
        flat = x.reshape(-1, P.shape[1]).to(g.dtype)  # (tokens, in)
        grad_x = P.new_zeros(flat.shape) if ctx.needs_input_grad[0] else None
        grad_A, grad_B, grad_C, grad_D = (torch.zeros_like(group) for group in (A, B, C, D))
        for rows, block in row_blocks(P, BLOCK):
            if grad_x is not None:
                _add_product(grad_x, g[:, rows], _scaled_sum(base, block, rows, scale))
            G = (g[:, rows].T @ flat).to(P.dtype).mul_(scale)
            magnitude = block.sign().mul_(G)
            grad_A.addmm_(B[rows].T, magnitude)
            grad_B[rows] = magnitude @ A.T
            direction = G.mul_(block.abs()).clamp_(-1, 1)
            grad_C.addmm_(D[rows].T, direction)
            grad_D[rows] = direction @ C.T
        if grad_x is not None:
            grad_x = grad_x.view(x.shape).to(x.dtype)
        return grad_x, None, grad_A, grad_B, grad_C, grad_D, None


class _AblatedLinear(torch.autograd.Function):
    """scale·x ΔWᵀ for any activation and sign. ΔW is made a block of rows at a time, twice: none is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, method: DualLoRA, scale: Tensor, names: list[str], *values: Tensor) -> Tensor:
        state = dict(zip(names, values, strict=True))
        flat = x.reshape(-1, x.shape[-1])  # (tokens, in)
        parts = []
        for _, block in _AblatedLinear.blocks(method, state):
            with torch.autocast(x.device.type, enabled=False):
                dense = method.magnitude_group(block) * method.direction_group(block) * scale
            dense = dense if torch.is_autocast_enabled(x.device.type) else dense.to(x.dtype)
            parts.append(F.linear(flat, dense))
        ctx.save_for_backward(x, scale, *values)
        ctx.method, ctx.names = method, names
        return torch.cat(parts, dim=1).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, *values = ctx.saved_tensors
        state = dict(zip(ctx.names, values, strict=True))
        dtype = state["lora_A"].dtype
        g = gradients[0].reshape(-1, gradients[0].shape[-1]).to(dtype)  # (tokens, out)
        flat = x.reshape(-1, x.shape[-1]).to(dtype)  # (tokens, in)
        grad_x = torch.zeros_like(flat)
        found = {name: torch.zeros_like(value) for name, value in state.items() if name != "signs"}
        for rows, block in _AblatedLinear.blocks(ctx.method, state):
            leaves = {name: block[name].detach().requires_grad_() for name in found}
            with torch.enable_grad():
                dense = ctx.method.magnitude_group(block | leaves) * ctx.method.direction_group(block | leaves)
            grad_x.addmm_(g[:, rows], dense.detach() * scale)
            own = torch.autograd.grad(dense, list(leaves.values()), (g[:, rows].T @ flat).mul_(scale))
            for name, gradient in zip(leaves, own, strict=True):
                of_block = found[name][rows] if name in ("lora_B", "lora_D") else found[name]
                of_block += gradient
        return grad_x.view(x.shape).to(x.dtype), None, None, None, *(found.get(name) for name in ctx.names)

    @staticmethod
    def blocks(method: DualLoRA, state: dict[str, Tensor]) -> Iterator[tuple[slice, dict[str, Tensor]]]:
        """Yield slices of rows and the tensors that make those rows of ΔW."""
        A, B = state["lora_A"], state["lora_B"]
        entire = B[:, :1].expand(len(B), A.shape[1])  # of ΔW's shape, holding nothing
        whole = {}
        if method.sign == "dorefa":
            with torch.no_grad():
                sizes = [
                    (state["lora_D"][rows] @ state["lora_C"]).abs_().sum() for rows, _ in row_blocks(entire, BLOCK)
                ]
                whole["mean"] = torch.stack(sizes).sum() / entire.numel()
        for rows, _ in row_blocks(entire, BLOCK):
            yield rows, {k: v if k in ("lora_A", "lora_C") else v[rows] for k, v in state.items()} | whole


def _add_product(result: Tensor, g: Tensor, dense: Tensor) -> None:
    """Add g (tokens, rows) times a dense block (rows, in), in the dtype of g."""
    if g.dtype == result.dtype:
        result.addmm_(g, dense)
    else:
        result.add_(g @ dense.to(g.dtype))


def _scaled_sum(base: Tensor | None, P: Tensor, rows: slice, scale: Tensor) -> Tensor:
    """Return those rows of W₀ + scale·P, without W₀ where there is none."""
    return P * scale if base is None else torch.addcmul(base[rows].to(P.dtype), P, scale)
