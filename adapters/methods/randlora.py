"""RandLoRA: a full-rank update as a trained combination of frozen random low-rank bases that all layers share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import override

from deltaw.adapters.linear.low_rank import add_product
from deltaw.adapters.method import Layer, RankedMethod, Shape, State


@dataclass(frozen=True, kw_only=True)
class RandLoRA(RankedMethod):
    r"""Full-rank adaptation by random bases.

        ΔW = s·Σ_j B_j Λ_j A Γ_j,    j = 1 … n,  n = ⌈min(out, in) / r⌉

    for out ≥ in: B_j (out, r) and A (r, in) random and frozen, Λ_j = diag(λ_j) (r, r) and Γ_j = diag(γ_j) (in, in)
    trained. For out < in the same is made for the transpose, so that γ has the smaller side:

        ΔWᵀ = s·Σ_j B_j Λ_j A Γ_j,    B_j (in, r), A (r, out)

    The bases are drawn once for a model, uniform, divided by their standard deviation, and every layer uses their first
    parts. λ starts at zero, γ at 1/max of its shape, so W' = W₀ at the start. Trainable: n·(r + min(out, in)).

    A *larger* rank means fewer bases and fewer parameters here; the update has full rank whatever r is.

    Arguments:
        rank, alpha, dropout: See ``RankedMethod``. PEFT has alpha = 640 at rank 32 by default, that is s = 20 (learning
            rates go with that). The authors' own code has s = 10·alpha/rank for vision, alpha/(rank·√n) for language.

    Source:
        Albert et al. 2025, "RandLoRA", equation 4; the start as in PEFT's ``RandLoraConfig``.
    """

    name = "randlora"
    title = "RandLoRA"
    formula = "W₀ + s·Σ_j B_j Λ_j A Γ_j, the bases frozen and shared by all layers"
    source = "Albert et al. 2025"
    counts = "⌈min(out, in)/r⌉·(r + min(out, in))"
    look = ("#888888", "P")

    rank: int = 32

    def bases(self, out_features: int, in_features: int) -> int:
        """Return n."""
        return -(-min(out_features, in_features) // self.rank)

    @override
    def shapes(self, out_features: int, in_features: int) -> dict[str, Shape]:
        """λ (n, r) and γ (n, min(out, in))."""
        n = self.bases(out_features, in_features)
        return {"randlora_lambda": (n, self.rank), "randlora_gamma": (n, min(out_features, in_features))}

    @override
    def frozen_shapes(self, out_features: int, in_features: int) -> dict[str, Shape]:
        """A (r, smaller side) and all B_jᵀ one below the other (n·r, larger side)."""
        smaller, larger = sorted((out_features, in_features))
        n = self.bases(out_features, in_features)
        return {"randlora_A": (self.rank, smaller), "randlora_B": (n * self.rank, larger)}

    @override
    def shared(self, shapes: Sequence[tuple[int, int]], generator: torch.Generator) -> dict[str, Tensor]:
        """A and all B_j, large enough for every layer."""
        smaller, larger = max(min(shape) for shape in shapes), max(max(shape) for shape in shapes)
        n = max(self.bases(*shape) for shape in shapes)
        drawn = {}
        for name, shape in (("randlora_A", (self.rank, smaller)), ("randlora_B", (n * self.rank, larger))):
            uniform = 2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1
            drawn[name] = uniform / uniform.std() if uniform.numel() > 1 else uniform.sign()
        return drawn

    @override
    def start(self, base: Tensor, generator: torch.Generator, given: State) -> dict[str, Tensor]:
        """The layer's part of the bases, λ zero, γ constant."""
        given = given or self.shared([(base.shape[0], base.shape[1])], generator)
        shapes, frozen = self.shapes(*base.shape), self.frozen_shapes(*base.shape)
        stacked, larger = frozen["randlora_B"]
        gamma = shapes["randlora_gamma"]
        return {
            "randlora_lambda": base.new_zeros(shapes["randlora_lambda"]),
            "randlora_gamma": base.new_full(gamma, 1 / max(gamma)),
            "randlora_A": given["randlora_A"][:, : gamma[1]].to(base.dtype),
            "randlora_B": given["randlora_B"][:stacked, :larger].to(base.dtype),
        }

    @override
    def initial(self, base: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """The start of a layer that shares with none."""
        return self.start(base, generator, {})

    @override
    def weight(self, base: Tensor, state: State) -> Tensor:
        """Return W₀ + ΔW."""
        return base + self.update(base, state)

    @override
    def update(self, base: Tensor, state: State) -> Tensor:
        """The sum over the bases, dense."""
        A, gamma = state["randlora_A"], state["randlora_gamma"]
        terms = zip(torch.split(state["randlora_B"], self.rank), state["randlora_lambda"], gamma, strict=True)
        total = base.new_zeros(max(base.shape), min(base.shape))
        for B_j, lambda_j, gamma_j in terms:
            total = total + (B_j.T * lambda_j) @ (A * gamma_j)
        return self.scaling * (total if base.shape[0] >= base.shape[1] else total.T)

    @override
    def forward(self, layer: Layer, x: Tensor) -> Tensor:
        """Return x W₀ᵀ + b + s·(x Xᵀ) Bᵀ with the bases stacked: X_j = Λ_j A Γ_j (n·r, smaller side)."""
        state = layer.state()
        flat = x.reshape(-1, x.shape[-1])  # (tokens, in)
        result = F.linear(flat, layer.base, layer.bias)
        path = F.dropout(flat, self.dropout) if layer.training and self.dropout else flat
        B = state["randlora_B"]
        scaled: Tensor = _Scaled.apply(state["randlora_A"], state["randlora_lambda"], state["randlora_gamma"])  # type: ignore[no-untyped-call]
        path = path.to(B.dtype)
        if layer.out_features >= layer.in_features:
            result = add_product(result, F.linear(path, scaled), B.T, self.scaling)
        else:
            result = add_product(result, F.linear(path, B), scaled.T, self.scaling)
        return result.view(*x.shape[:-1], -1)


class _Scaled(torch.autograd.Function):
    """Λ_j A Γ_j for all j, (n·r, smaller side), keeping only λ, γ and A.

    With G = ∂L/∂X, the gradients are λ_jk: Σ_i G_jki A_ki γ_ji and γ_ji: Σ_k G_jki A_ki λ_jk.
    """

    @staticmethod
    def forward(ctx: Any, A: Tensor, lambda_: Tensor, gamma: Tensor) -> Tensor:
        ctx.save_for_backward(A, lambda_, gamma)
        return (lambda_[:, :, None] * A).mul_(gamma[:, None]).flatten(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        A, lambda_, gamma = ctx.saved_tensors
        G = gradients[0].view(len(gamma), *A.shape).to(A.dtype) * A  # (n, r, smaller side)
        return None, torch.bmm(G, gamma[:, :, None])[:, :, 0], torch.bmm(lambda_[:, None], G)[:, 0]
