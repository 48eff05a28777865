"""MoRA: a square trained matrix between a compression of the input and a decompression of the output."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from deltaw.adapters.errors import OptionError
from deltaw.adapters.method import Layer, RankedMethod, ScaledFactors, Shape, State


@dataclass(frozen=True, kw_only=True)
class MoRA(RankedMethod):
    r"""High-rank updating by a square matrix M (r̂, r̂) with as many parameters as LoRA of rank r.

        ΔW x = s·decompress(M compress(x)),    r̂ = ⌊√((out + in) r)⌋

    x is cut into n = ⌈in / r̂⌉ chunks of r̂ entries, the last one filled up with the first entries of x.

    variant = "sharing" (the authors' type 1): compress adds the chunks up, decompress repeats M's output:

        ΔW = s·P M Q,    Q (r̂, in) and P (out, r̂) of zeros and ones, rank ≤ r̂

    variant = "rotation" (type 6): each chunk k is turned by RoPE's rotation R_k with angles k·10000^(−2i/r̂) and goes
    through M alone; the n outputs stand one after the other, and are repeated where out is larger:

        ΔW = s·P blockdiag(M R_0, …, M R_{n−1}) Q

    There r̂ must be even, so an odd one is lowered by 1. M starts at zero, so W' = W₀ at the start. Trainable: r̂².

    Arguments:
        rank, alpha, dropout: See ``RankedMethod``; the authors have s = 1 (alpha = ``None``).
        variant: "sharing" or "rotation".

    Raises:
        OptionError: The variant is neither, or (on injecting) r̂ is above min(out, in): no chunk would be whole.

    Source:
        Jiang et al. 2024, "MoRA", equations 5 to 9, and the authors' code (types 1 and 6), which the tests' numbers
        are from.
    """

    name = "mora"
    title = "MoRA"
    formula = "W₀ + s·decompress(M compress(·)), M square"
    source = "Jiang et al. 2024"
    counts = "r̂², r̂ = ⌊√((out + in) r)⌋"
    look = ("#AA4499", "h")

    variant: Literal["sharing", "rotation"] = "rotation"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in ("sharing", "rotation"):
            raise OptionError(f"variant must be 'sharing' or 'rotation', not {self.variant!r}")

    def side(self, out_features: int, in_features: int) -> int:
        """Return r̂."""
        side = math.isqrt((out_features + in_features) * self.rank)
        return side - side % 2 if self.variant == "rotation" else side

    @override
    def check_shape(self, out_features: int, in_features: int, where: str) -> None:
        """Raise where no chunk is whole."""
        super().check_shape(out_features, in_features, where)
        smaller, total = min(out_features, in_features), out_features + in_features
        if self.side(out_features, in_features) > smaller:
            most = ((smaller + 1) ** 2 - 1) // total
            advice = f"choose a rank of at most {most}" if most else "leave this module out"
            raise OptionError(
                f"rank {self.rank} makes a square of {self.side(out_features, in_features)} for module {where!r} "
                f"({out_features} × {in_features}), which is above its smaller side; {advice}"
            )

    @override
    def shapes(self, out_features: int, in_features: int) -> dict[str, Shape]:
        """M (r̂, r̂)."""
        side = self.side(out_features, in_features)
        return {"mora_M": (side, side)}

    @override
    def initial(self, base: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """M zero."""
        del generator
        return {"mora_M": base.new_zeros(self.shapes(*base.shape)["mora_M"])}

    @override
    def weight(self, base: Tensor, state: State) -> Tensor:
        """Return W₀ + ΔW."""
        return base + self.update(base, state)

    @override
    def update(self, base: Tensor, state: State) -> Tensor:
        """ΔW, dense, from P, M, the rotations and Q written out."""
        M, (rows, columns) = state["mora_M"], base.shape
        side, chunks = len(M), -(-columns // len(M))
        places = torch.arange(side * chunks, device=M.device) % columns  # which entry of x stands where
        Q = F.one_hot(places, columns).to(M.dtype).view(chunks, side, columns)
        if self.variant == "sharing":
            outputs = M @ Q.sum(0)
        else:
            # One product of matrices a chunk: how PyTorch multiplies a stack depends on whether M wants a gradient.
            outputs = torch.cat([M @ (_rotation(k, side, M) @ chunk) for k, chunk in enumerate(Q)])
        return self.scaling * outputs[torch.arange(rows, device=M.device) % len(outputs)]

    @override
    def scaled_factors(self, shape: Shape, state: State) -> ScaledFactors | None:
        """For "sharing": U = P M (out, r̂), V = Q (r̂, in) and s."""
        if self.variant != "sharing":
            return None
        M, (rows, columns) = state["mora_M"], shape
        side = len(M)
        places = torch.arange(-(-columns // side) * side, device=M.device) % columns
        Q = F.one_hot(places, columns).to(M.dtype).view(-1, side, columns).sum(0)
        return ScaledFactors(M[torch.arange(rows, device=M.device) % side], Q, self.scaling)

    @override
    def forward(self, layer: Layer, x: Tensor) -> Tensor:
        """Return x W₀ᵀ + b + s·decompress(M compress(x))."""
        M = layer.tensor("mora_M")
        result = F.linear(x, layer.base, layer.bias)
        path = (F.dropout(x, self.dropout) if layer.training and self.dropout else x).to(M.dtype)
        side, rows, columns = len(M), layer.out_features, layer.in_features
        missing = -columns % side
        padded = torch.cat((path, path[..., :missing]), dim=-1) if missing else path
        chunks = padded.reshape(*x.shape[:-1], -1, side)  # (…, n, r̂)
        if self.variant == "sharing":
            outputs = F.linear(chunks.sum(-2), M)  # (…, r̂)
        else:
            outputs = torch.einsum("...ni,noi->...no", chunks, _turned(M, chunks.shape[-2])).flatten(-2)  # (…, n·r̂)
        times = -(-rows // outputs.shape[-1])
        tiled = outputs.repeat(*[1] * (outputs.ndim - 1), times) if times > 1 else outputs
        return result.add_(tiled[..., :rows].to(result.dtype), alpha=self.scaling)


def _angles(chunks: int, side: int, like: Tensor) -> Tensor:
    """Return k·10000^(−2i/r̂) for chunk k and pair i, (chunks, r̂/2)."""
    frequencies = 10000.0 ** (-torch.arange(0, side, 2, device=like.device, dtype=torch.float64) / side)
    return torch.outer(torch.arange(chunks, device=like.device, dtype=torch.float64), frequencies)


def _rotation(chunk: int, side: int, like: Tensor) -> Tensor:
    """Return R_k (r̂, r̂), which turns entry i with entry i + r̂/2."""
    angles = _angles(chunk + 1, side, like)[chunk].to(like.dtype)
    cos, sin = torch.diag(angles.cos()), torch.diag(angles.sin())
    return torch.cat((torch.cat((cos, -sin), dim=1), torch.cat((sin, cos), dim=1)))


def _turned(M: Tensor, chunks: int) -> Tensor:
    """Return M R_k for every chunk k, (n, r̂, r̂): smaller than the inputs that would be turned else."""
    angles = _angles(chunks, len(M), M)[:, None]  # (n, 1, r̂/2)
    cos, sin = angles.cos().to(M.dtype), angles.sin().to(M.dtype)
    first, second = M.chunk(2, dim=-1)
    return torch.cat((first * cos + second * sin, second * cos - first * sin), dim=-1)
