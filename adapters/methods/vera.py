"""VeRA: two trained vectors around two frozen random matrices that all layers share; and DVoRA, VeRA inside DoRA."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from deltaw.adapters.errors import OptionError
from deltaw.adapters.linear.low_rank import low_rank_linear
from deltaw.adapters.linear.norms import norms, norms_of_steps, ratio, starting_norms, times
from deltaw.adapters.method import Layer, RankedMethod, ScaledLowRank, Shape, State


class _ScaledOnBothSides(torch.autograd.Function):
    """diag(b) B diag(d) for a frozen B (out, r), with one pass over B in the backward pass.

    b: Σ_k g_ik B_ik d_k        d: Σ_i b_i g_ik B_ik
    """

    @staticmethod
    def forward(ctx: Any, B: Tensor, b: Tensor, d: Tensor) -> Tensor:
        ctx.save_for_backward(B, b, d)
        return (B * d).mul_(b[:, None])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor]:
        (B, b, d), (g,) = ctx.saved_tensors, gradients
        product = g * B
        return None, product @ d, b @ product


@dataclass(frozen=True, kw_only=True)
class SharedPair(RankedMethod):
    """The product s·diag(b) B diag(d) A with frozen A and B, which VeRA and DVoRA share.

    A (r, largest in) and B (largest out, r) are drawn once for a model, uniform with Kaiming's variance 2/fan_in, and
    every layer uses their first columns and rows. d (r,) starts at ``d_initial``, b (out,) at zero.

    The rank may be above both sides of the matrix: it costs one number a layer.

    Arguments:
        rank, alpha, dropout: See ``RankedMethod``. The papers have no scaling: alpha = ``None`` gives s = 1.
        d_initial: Where d starts.
    """

    rank: int = 256
    d_initial: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.d_initial) or self.d_initial == 0:
            raise OptionError(f"d_initial must be a number other than 0, not {self.d_initial!r}")

    @override
    def check_shape(self, out_features: int, in_features: int, where: str) -> None:
        """Any rank fits."""
        del out_features, in_features, where

    @override
    def shapes(self, out_features: int, in_features: int) -> dict[str, Shape]:
        """d (r,) and b (out,)."""
        del in_features
        return {"vera_d": (self.rank,), "vera_b": (out_features,)}

    @override
    def frozen_shapes(self, out_features: int, in_features: int) -> dict[str, Shape]:
        """A (r, in), B (out, r)."""
        return {"vera_A": (self.rank, in_features), "vera_B": (out_features, self.rank)}

    @override
    def shared(self, shapes: Sequence[tuple[int, int]], generator: torch.Generator) -> dict[str, Tensor]:
        """A and B, large enough for every layer."""
        rows, columns = (max(sides) for sides in zip(*shapes, strict=True))
        drawn = {}
        for name, shape in (("vera_A", (self.rank, columns)), ("vera_B", (rows, self.rank))):
            unit = torch.rand(shape, generator=generator, dtype=torch.float64)
            drawn[name] = (2 * unit - 1) * math.sqrt(6 / shape[1])
        return drawn

    @override
    def start(self, base: Tensor, generator: torch.Generator, given: State) -> dict[str, Tensor]:
        """The layer's part of A and B, d constant, b zero."""
        given = given or self.shared([(base.shape[0], base.shape[1])], generator)
        return {
            "vera_d": base.new_full((self.rank,), self.d_initial),
            "vera_b": base.new_zeros(base.shape[0]),
            "vera_A": given["vera_A"][:, : base.shape[1]].to(base.dtype),
            "vera_B": given["vera_B"][: base.shape[0]].to(base.dtype),
        }

    @override
    def initial(self, base: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """The start of a layer that shares with none."""
        return self.start(base, generator, {})

    def pair(self, state: State) -> tuple[Tensor, Tensor]:
        """Return A (r, in) and diag(b) B diag(d) (out, r): with A frozen, no input is kept for its gradient."""
        scaled: Tensor = _ScaledOnBothSides.apply(state["vera_B"], state["vera_b"], state["vera_d"])  # type: ignore[no-untyped-call]
        return state["vera_A"], scaled

    def product(self, state: State) -> Tensor:
        """Return s·diag(b) B diag(d) A, (out, in), dense: for definitions, not for forwards."""
        A, B = self.pair(state)
        return self.scaling * (B @ A)


@dataclass(frozen=True, kw_only=True)
class VeRA(SharedPair):
    r"""Vector-based random matrix adaptation.

        W' = W₀ + s·diag(b) B diag(d) A,    A, B random, frozen and shared by all layers

    b starts at zero, so W' = W₀ at the start. Trainable: r + out.

    Arguments:
        rank, alpha, dropout, d_initial: See ``SharedPair``.

    Source:
        Kopiczko et al. 2024, "VeRA", equation 2.
    """

    name = "vera"
    title = "VeRA"
    formula = "W₀ + s·diag(b) B diag(d) A, A and B frozen and shared by all layers"
    source = "Kopiczko et al. 2024"
    counts = "r + out"
    look = ("#117733", "o")

    @override
    def weight(self, base: Tensor, state: State) -> Tensor:
        """Return W₀ + s·diag(b) B diag(d) A."""
        return base + self.product(state)

    @override
    def update(self, base: Tensor, state: State) -> Tensor:
        """s·diag(b) B diag(d) A."""
        del base
        return self.product(state)

    @override
    def factors(self, base: Tensor, state: State) -> tuple[Tensor, Tensor] | None:
        """Return U = s·diag(b) B diag(d) and V = A; ``None`` where r is above a side of W₀."""
        if self.rank > min(base.shape):
            return None
        A, B = self.pair(state)
        return self.scaling * B, A

    @override
    def forward(self, layer: Layer, x: Tensor) -> Tensor:
        """LoRA's forward with A and diag(b) B diag(d)."""
        A, B = self.pair(layer.state())
        dropout = self.dropout if layer.training else 0.0
        return low_rank_linear(x, layer.base, layer.bias, A, B, self.scaling, dropout)


@dataclass(frozen=True, kw_only=True)
class DVoRA(SharedPair):
    r"""DoRA with VeRA for its directional update.

        V  = W₀ + s·diag(b) B diag(d) A
        W' = V diag(m / ‖V‖_columns)      axis = "column", m (in,)
        W' = diag(m / ‖V‖_rows) V         axis = "row",    m (out,)

    m starts as the norms of W₀, b at zero, so W' = W₀ at the start. Trainable: r + out + in (column) or + out (row).

    Arguments:
        rank, alpha, dropout, d_initial: See ``SharedPair``.
        axis, detach_norm: See ``DoRA``.

    Raises:
        OptionError: The axis is neither.

    Source:
        DoRA, §5.4 (its Table 5) with equation 5.
    """

    name = "dvora"
    title = "DVoRA"
    formula = "DoRA with VeRA's product"
    source = "Liu et al. 2024, §5.4"
    counts = "r + out + in"
    look = ("#117733", "D")

    axis: Literal["row", "column"] = "column"
    detach_norm: bool = True

    scales_base: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.axis not in ("row", "column"):
            raise OptionError(f"axis must be 'row' or 'column', not {self.axis!r}")

    @override
    def shapes(self, out_features: int, in_features: int) -> dict[str, Shape]:
        """VeRA's, and the magnitudes."""
        length = in_features if self.axis == "column" else out_features
        return super().shapes(out_features, in_features) | {"magnitude": (length,)}

    @override
    def start(self, base: Tensor, generator: torch.Generator, given: State) -> dict[str, Tensor]:
        """VeRA's, and m = ‖W₀‖ along the axis."""
        norm = starting_norms(base, self.axis)
        return super().start(base, generator, given) | {"magnitude": norm}

    @override
    def weight(self, base: Tensor, state: State) -> Tensor:
        """Return m V / ‖V‖, dense."""
        V = base + self.product(state)
        dim = 0 if self.axis == "column" else 1
        norm = torch.linalg.vector_norm(V.detach() if self.detach_norm else V, dim=dim)
        return V * ratio(state["magnitude"], norm).unsqueeze(dim)

    @override
    def scaled_low_rank(self, base: Tensor, state: State) -> ScaledLowRank:
        """Return m / ‖V‖ as ρ or γ, and the product's factors."""
        return self.scaled_low_ranks(base, [state])[0]

    @override
    def scaled_low_ranks(self, base: Tensor, states: Sequence[State]) -> list[ScaledLowRank]:
        V, B = zip(*map(self.pair, states), strict=True)
        U = times(self.scaling, B)
        magnitude = torch.stack([state["magnitude"] for state in states])
        scale = ratio(magnitude, norms_of_steps(base, U, V, self.axis))
        return self.scaled_along(base, U, V, self.axis, scale)

    @override
    def forward(self, layer: Layer, x: Tensor) -> Tensor:
        """DoRA's forward with VeRA's pair."""
        state = layer.state()
        with torch.autocast(x.device.type, enabled=False):
            A, B = self.pair(state)
            scale = ratio(state["magnitude"], norms(layer.base, A, B, self.scaling, self.axis, self.detach_norm))
        rho, gamma = (scale, None) if self.axis == "row" else (None, scale)
        dropout = self.dropout if layer.training else 0.0
        return low_rank_linear(x, layer.base, layer.bias, A, B, self.scaling, dropout, rho=rho, gamma=gamma)
