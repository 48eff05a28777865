"""The contract that every method keeps: its parameters, W' from W₀, the update, the factors, a forward.

A method is a small frozen dataclass of options. It holds no tensors: the layer does (``AdaptedLayer``), or the record
of a run does, and both hand the same mapping of tensors to the same functions. So W' is rebuilt from a record by the
very code that defines it for a model in training.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from deltaw.adapters.errors import OptionError, ShapeError

if TYPE_CHECKING:
    from deltaw.adapters.layer import AdaptedLayer

State = Mapping[str, Tensor]
Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """What a method is: its options, and how W' follows from W₀ and its tensors."""

    injects: ClassVar[bool] = True  # False: the method trains the layers as they are
    scales_base: ClassVar[bool] = False  # True: its tensors multiply W₀, so their rounding moves all of W'
    needs_context: ClassVar[bool] = False  # True: it starts from the covariance of each layer's inputs
    moving: ClassVar[tuple[str, ...]] = ()  # frozen tensors that change in training all the same, as a count of steps

    @property
    @abstractmethod
    def name(self) -> str:
        """The key under which ``METHODS`` offers this method with these options."""

    def options(self) -> dict[str, Any]:
        """The options as plain values; ``create(name, **options)`` makes an equal method."""
        return asdict(self)

    def check_shape(self, out_features: int, in_features: int, where: str) -> None:
        """Raise where the options do not fit a matrix of this shape."""
        del out_features, in_features, where

    def check_state(self, base: Tensor, state: State) -> None:
        """Raise where a tensor is missing or has not the shape that the options give it."""
        for key, shape in (self.shapes(*base.shape) | self.frozen_shapes(*base.shape)).items():
            if key not in state:
                raise ShapeError(f"{self.name} needs a tensor {key!r} of shape {shape}; there is none")
            if tuple(state[key].shape) != shape:
                raise ShapeError(f"{self.name}: {key} has shape {tuple(state[key].shape)}, not {shape}")

    @abstractmethod
    def shapes(self, out_features: int, in_features: int) -> dict[str, Shape]:
        """Names and shapes of the trainable parameters for one matrix [out, in]."""

    def frozen_shapes(self, out_features: int, in_features: int) -> dict[str, Shape]:
        """Names and shapes of what the method draws or counts, but does not train."""
        del out_features, in_features
        return {}

    @abstractmethod
    def initial(self, base: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the initial tensors, trainable and frozen, on the CPU.

        Arguments:
            base: W₀, (out, in), on the CPU, in the dtype of the parameters.
            generator: The only source of random numbers.
        """

    def shared(self, shapes: Sequence[tuple[int, int]], generator: torch.Generator) -> dict[str, Tensor]:
        """Return, on the CPU in float32 or float64, what all adapted layers of a model have in common, stored once.

        Arguments:
            shapes: (out, in) of every layer that is adapted.
            generator: The only source of random numbers.
        """
        del shapes, generator
        return {}

    def start(self, base: Tensor, generator: torch.Generator, given: State) -> dict[str, Tensor]:
        """Return the initial tensors from W₀ and what is given beside it; by default ``initial`` of W₀ alone.

        Arguments:
            base, generator: See ``initial``.
            given: The tensors of ``shared``, and "covariance" (in, in) where the method needs context.
        """
        del given
        return self.initial(base, generator)

    def rate_factors(self) -> dict[str, float]:
        """Return by tensor the factor on the learning rate, where it is not 1."""
        return {}

    def constants(self, out_features: int, in_features: int) -> list[str]:
        """Return the names of the frozen tensors that never change; a record keeps them once."""
        return [name for name in self.frozen_shapes(out_features, in_features) if name not in self.moving]

    def taken_out(self, state: State) -> tuple[Tensor, Tensor] | None:
        """Return U (out, r) and V (r, in) where a layer may hold W₀ − U V in the place of W₀, else ``None``.

        Then neither ``update`` nor ``factors`` may look at W₀.
        """
        del state
        return None

    @abstractmethod
    def weight(self, base: Tensor, state: State) -> Tensor:
        """Return W' (out, in) as its paper defines it, dense and differentiable: the reference for everything."""

    def update(self, base: Tensor, state: State) -> Tensor:
        """Return ΔW = W' − W₀, (out, in): U V where there are factors, which does not round by W₀."""
        factors = self.factors(base, state)
        return self.weight(base, state) - base if factors is None else factors[0] @ factors[1]

    def factors(self, base: Tensor, state: State) -> tuple[Tensor, Tensor] | None:
        """Return U (out, r) and V (r, in) with ΔW = U V exactly, or ``None`` where the method has no such form."""
        del base, state
        return None

    @abstractmethod
    def forward(self, layer: "AdaptedLayer", x: Tensor) -> Tensor:
        """Return x W'ᵀ + b, (…, out), for x (…, in)."""

    def observe(self, layer: "AdaptedLayer") -> None:
        """Take note of the layer's state before it is used or read; only a method with a clock needs to."""
        del layer

    def count(self, out_features: int, in_features: int) -> int:
        """Number of trainable parameters for one matrix [out, in]."""
        return sum(torch.Size(shape).numel() for shape in self.shapes(out_features, in_features).values())


@dataclass(frozen=True, kw_only=True)
class RankedMethod(Method):
    """A method with a rank, an alpha and a dropout.

    Arguments:
        rank: r, the inner dimension of the low-rank product.
        alpha: α; the update is scaled by s = α / r. ``None`` means α = r, that is s = 1.
        dropout: Probability of zeroing an entry of the input of the low-rank path in training.

    Raises:
        OptionError: An option is out of its range.
    """

    rank: int = 8
    alpha: float | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise OptionError(f"rank must be a whole number of at least 1, not {self.rank!r}")
        if not 0.0 <= self.dropout < 1.0:
            raise OptionError(f"dropout must lie in [0, 1), not {self.dropout!r}")
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            raise OptionError(f"alpha must be a number above 0 (or None for alpha = rank), not {self.alpha!r}")

    @property
    def scaling(self) -> float:
        """s = α / r, the factor in front of the low-rank product."""
        return (self.rank if self.alpha is None else self.alpha) / self.rank

    def check_shape(self, out_features: int, in_features: int, where: str) -> None:
        """Raise where the rank is above the smaller side of the matrix."""
        if self.rank > min(out_features, in_features):
            raise OptionError(
                f"rank {self.rank} is above min(out, in) = {min(out_features, in_features)} of module {where!r} "
                f"({out_features} × {in_features}); choose a rank from 1 to {min(out_features, in_features)}"
            )
