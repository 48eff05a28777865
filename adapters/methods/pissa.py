"""PiSSA: LoRA that starts from the principal singular triples of W₀. And what it shares with CorDA."""

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from deltaw.adapters.linear.low_rank import low_rank_linear
from deltaw.adapters.method import Layer, RankedMethod, ScaledFactors, Shape, State


@dataclass(frozen=True, kw_only=True)
class ResidualPair(RankedMethod):
    """LoRA's pair on the residual W₀ − s·B₀ A₀ of its own start.

        W' = (W₀ − s·B₀ A₀) + s·B A = W₀ + s·[B, −B₀] [A; A₀]

    As in the papers, the forward is with the residual, and a step costs what LoRA's does. The layer keeps W₀ as well,
    at the price of one more matrix in memory: ``base``, the state dict and a record have W₀, and ΔW = W' − W₀ of rank
    up to 2r is at hand, not just the difference from the residual. Over a base in 4 bits or of lower precision than
    float32, where a residual would be a coarse one, there is none, and s·B₀ A₀ is subtracted in every forward.
    """

    @override
    def shapes(self, out_features: int, in_features: int) -> dict[str, Shape]:
        """A (r, in), B (out, r)."""
        return {"lora_A": (self.rank, in_features), "lora_B": (out_features, self.rank)}

    @override
    def frozen_shapes(self, out_features: int, in_features: int) -> dict[str, Shape]:
        """A and B at the start."""
        return {"start_A": (self.rank, in_features), "start_B": (out_features, self.rank)}

    @override
    def weight(self, base: Tensor, state: State) -> Tensor:
        """The residual and s·B A."""
        residual = base - self.scaling * (state["start_B"] @ state["start_A"])
        return residual + self.scaling * (state["lora_B"] @ state["lora_A"])

    @override
    def scaled_factors(self, shape: Shape, state: State) -> ScaledFactors:
        """Return U = [B, −B₀] (out, 2r), V = [A; A₀] (2r, in) and s."""
        del shape
        left = torch.cat((state["lora_B"], -state["start_B"]), dim=1)
        return ScaledFactors(left, torch.cat((state["lora_A"], state["start_A"])), self.scaling)

    @override
    def residual(self, state: State) -> tuple[Tensor, Tensor]:
        """Return U = s·B₀ and V = A₀."""
        return self.scaling * state["start_B"].double(), state["start_A"]

    @override
    def forward(self, layer: Layer, x: Tensor) -> Tensor:
        """LoRA's forward on the residual; or on W₀, less the start's."""
        A, B = layer.tensor("lora_A"), layer.tensor("lora_B")
        dropout = self.dropout if layer.training else 0.0
        if (residual := layer.residual) is not None:
            return low_rank_linear(x, residual, layer.bias, A, B, self.scaling, dropout)
        start = layer.tensor("start_A"), layer.tensor("start_B")
        return low_rank_linear(x, layer.base, layer.bias, A, B, self.scaling, dropout, start=start)

    def started_at(self, A: Tensor, B: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the tensors of a start whose product s·B A is A (r, in) times B (out, r)."""
        root = self.scaling**-0.5
        A, B = (root * A).to(dtype).contiguous(), (root * B).to(dtype).contiguous()
        return {"lora_A": A, "lora_B": B, "start_A": A.clone(), "start_B": B.clone()}


@dataclass(frozen=True, kw_only=True)
class PiSSA(ResidualPair):
    r"""Principal singular values and singular vectors adaptation.

        W₀ = U S Vᵀ,    A₀ = √S_r V_rᵀ / √s,    B₀ = U_r √S_r / √s        the r largest singular triples
        W' = (W₀ − s·B₀ A₀) + s·B A

    A and B start as A₀ and B₀, so W' = W₀ at the start. Trainable: r·(out + in).

    PEFT's ``get_delta_weight`` gives s·B A, which is the difference from the residual; ``update()`` here is W' − W₀.

    Arguments:
        rank, alpha, dropout: See ``RankedMethod``. The paper has s = 1.
        iterations: ``None`` for the exact SVD; else power iterations of the fast SVD (Halko et al. 2011; the paper's
            Table 4 tries 1 to 16).

    Raises:
        OptionError: ``iterations`` is negative.

    Source:
        Meng et al. 2024, "PiSSA", equations 2 to 5.
    """

    name = "pissa"
    title = "PiSSA"
    formula = "(W₀ − s·B₀A₀) + s·B A, from the top singular triples of W₀"
    source = "Meng et al. 2024"
    counts = "r·(out + in)"
    look = ("#332288", "o")

    iterations: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.take_whole_numbers(iterations=0)

    @override
    def initial(self, base: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """The principal pair, twice: to train and to subtract."""
        if self.iterations is None:
            U, S, Vh = torch.linalg.svd(base, full_matrices=False)
        else:
            U, S, Vh = fast_svd(base, self.rank, self.iterations, generator)
        root = S[: self.rank].sqrt()
        return self.started_at(root[:, None] * Vh[: self.rank], U[:, : self.rank] * root, base.dtype)


def fast_svd(
    matrix: Tensor, rank: int, iterations: int, generator: torch.Generator, spare: int = 8
) -> tuple[Tensor, Tensor, Tensor]:
    """Return about the largest singular triples U (out, k), S (k,), Vᵀ (k, in) (Halko et al. 2011, algorithm 4.4)."""
    width = min(rank + spare, *matrix.shape)
    start = torch.randn(matrix.shape[1], width, generator=generator, dtype=torch.float64).to(matrix.dtype)
    Q = torch.linalg.qr(matrix @ start).Q
    for _ in range(iterations):
        Q = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ Q).Q).Q
    U, S, Vh = torch.linalg.svd(Q.T @ matrix, full_matrices=False)
    return Q @ U, S, Vh
