"""The contract that every method keeps: its parameters, W' from W₀, the update, the factors, a forward.

A method is a small frozen dataclass of options. It holds no tensors: the layer does (``AdaptedLayer``), or the record
of a run does, and both hand the same mapping of tensors to the same functions. So W' is rebuilt from a record by the
very code that defines it for a model in training.
"""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from deltaw.adapters.checks import whole_number
from deltaw.adapters.errors import OptionError, ShapeError

State = Mapping[str, Tensor]
Shape = tuple[int, ...]


class Layer(Protocol):
    """The part of ``AdaptedLayer`` that a method works with."""

    bias: nn.Parameter | None
    training: bool
    in_features: int
    out_features: int

    @property
    def base(self) -> Tensor:
        """W₀ (out, in)."""

    @property
    def residual(self) -> Tensor | None:
        """W₀ − U V (out, in) with the method's ``residual`` U, V; ``None`` where the layer has to do with W₀."""

    def tensor(self, name: str) -> Tensor:
        """Return one of the method's tensors."""

    def state(self) -> dict[str, Tensor]:
        """Return the method's tensors by name."""

    def steps_taken(self) -> int:
        """Return how many optimizer steps the method's parameters went through since the last call."""


class ScaledLowRank(NamedTuple):
    """W' = diag(ρ) (W₀ + U V) diag(γ), in float64: from a few steps' small tensors and one W₀ their W' are compared."""

    rho: Tensor  # (out,)
    gamma: Tensor  # (in,)
    U: Tensor  # (out, r)
    V: Tensor  # (r, in)


class ScaledFactors(NamedTuple):
    """ΔW = s·U V, with U and V as they are stored: nothing is widened, scaled or copied to get there."""

    U: Tensor  # (out, r)
    V: Tensor  # (r, in)
    scaling: float  # s


class Bilevel(NamedTuple):
    """A method's training at two levels, on two parts of the examples, and then anew with the upper level fixed."""

    upper: tuple[str, ...]  # tensors of the upper level; all others that train are of the lower
    inner_share: float  # the part of the examples for the lower level
    search_share: float  # the part of the epochs until the upper level is fixed


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """The contract of a method: its options, and how W' follows from W₀ and its tensors.

    A method is one file with one class, and one line in the registry (``deltaw.adapters.methods.registry``). What the
    rest of the project needs to know of it stands in its class: the name, the texts of the tables (``title``,
    ``formula``, ``source``, ``counts``), its ``look`` in figures, and the hooks below.
    """

    injects: ClassVar[bool] = True  # False: the method trains the layers as they are
    scales_base: ClassVar[bool] = False  # True: its tensors multiply W₀, so their rounding moves all of W'
    turns: ClassVar[bool] = True  # False: it only makes W₀'s vectors longer or shorter
    needs_context: ClassVar[bool] = False  # True: it starts from the covariance of each layer's inputs
    moving: ClassVar[tuple[str, ...]] = ()  # frozen tensors that change in training all the same, as a count of steps

    def __new__(cls, *given: Any, **options: Any) -> Self:
        """Refuse what is no option of the method by an error that names those there are."""
        known = [option.name for option in fields(cls) if option.init]
        there = ", ".join(known) or "no options"
        if given:
            raise OptionError(f"{cls.__name__}: give options by name; it has {there}")
        for option in options:
            if option not in known:
                near = difflib.get_close_matches(option, known, n=1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise OptionError(f"{cls.__name__} has no option {option!r}{hint}; it has {there}")
        return super().__new__(cls)

    @property
    @abstractmethod
    def name(self) -> str:
        """The key under which ``METHODS`` offers this method with these options."""

    @property
    def title(self) -> str:
        """The name as the papers write it, for figures and tables."""
        return self.name

    @property
    def formula(self) -> str:
        """W' in one line, for the table of methods."""
        return ""

    @property
    def source(self) -> str:
        """The paper, for the table of methods."""
        return ""

    @property
    def counts(self) -> str:
        """The number of trainable parameters of one matrix as a formula of r, out and in, for the table of methods."""
        return ""

    @property
    def look(self) -> tuple[str, str] | None:
        """Colour and marker in figures; ``None``: they follow from the method's position in ``METHODS``."""
        return None

    @property
    def starts_at_base(self) -> bool:
        """Whether W' = W₀ at step 0."""
        return True

    def take_whole_numbers(self, **least: int) -> None:
        """Check options that are whole numbers of at least so much, or ``None``; NumPy's become plain ones."""
        for name, smallest in least.items():
            default = next(option.default for option in fields(self) if option.name == name)
            value = getattr(self, name)
            if value is None and default is None:
                continue
            number = whole_number(name, value, smallest, also="None" if default is None else "")
            object.__setattr__(self, name, number)  # frozen for all others

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

    def residual(self, state: State) -> tuple[Tensor, Tensor] | None:
        """Return U (out, r) and V (r, in) where a layer shall keep W₀ − U V beside W₀ for the forward, else ``None``.

        They must not change in training. A layer whose weight is of lower precision than float32 keeps none.
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
        found = self.scaled_factors(base.shape, state)
        return None if found is None else (found.scaling * found.U, found.V)

    def scaled_factors(self, shape: Shape, state: State) -> ScaledFactors | None:
        """Return U, V and s with ΔW = s·U V without any rounding, in the dtypes of the state; ``None``: there are none.

        A record is then measured from the very bytes that are stored. A method whose factors have to be computed
        defines ``factors`` alone.

        Arguments:
            shape: (out, in).
            state: The method's tensors, of any floating dtypes.
        """
        del shape, state
        return None

    def scaled_low_rank(self, base: Tensor, state: State) -> ScaledLowRank | None:
        """Return W' as ρ, γ, U and V in float64, equal to ``weight`` up to rounding; ``None``: it has no such form.

        By default ρ and γ are ones and U V are the method's ``factors``.

        Arguments:
            base: W₀ (out, in) in float32 or float64.
            state: The method's tensors, widened to float64.
        """
        factors = self.factors(base, state)
        if factors is None:
            return None
        return self.scaled(base, *factors)

    def scaled_low_ranks(self, base: Tensor, states: Sequence[State]) -> list[ScaledLowRank] | None:
        """Return ``scaled_low_rank`` of several steps, to the bit; a method overrides it to read W₀ once for all.

        Arguments:
            base: W₀ (out, in) in float32 or float64.
            states: The method's tensors at each step, widened to float64.
        """
        found = [form for state in states if (form := self.scaled_low_rank(base, state)) is not None]
        return found if len(found) == len(states) else None

    @staticmethod
    def scaled(
        base: Tensor, U: Tensor, V: Tensor, rho: Tensor | None = None, gamma: Tensor | None = None
    ) -> ScaledLowRank:
        """Return the form with ones in the place of a ρ or γ that is not there."""
        ones = [base.new_ones(length, dtype=torch.float64) for length in base.shape]
        return ScaledLowRank(ones[0] if rho is None else rho, ones[1] if gamma is None else gamma, U, V)

    @staticmethod
    def scaled_along(
        base: Tensor, U: Sequence[Tensor], V: Sequence[Tensor], axis: str, scale: Tensor
    ) -> list[ScaledLowRank]:
        """Return the forms of several steps with ρ (steps, out) for "row", or γ (steps, in), and ones for the other."""
        ones = base.new_ones(base.shape[1 if axis == "row" else 0], dtype=torch.float64)
        both = [(own, ones) if axis == "row" else (ones, own) for own in scale]
        return [ScaledLowRank(rho, gamma, left, right) for (rho, gamma), left, right in zip(both, U, V, strict=True)]

    @abstractmethod
    def forward(self, layer: Layer, x: Tensor) -> Tensor:
        """Return x W'ᵀ + b, (…, out), for x (…, in)."""

    def groups(self, state: State) -> dict[str, Tensor]:
        """Return the matrices (out, in) that the update is made of, by name, where each has a rank of its own."""
        del state
        return {}

    def check_available(self) -> None:  # noqa: B027 - most methods need none
        """Raise a DataError where a library that the method needs is not installed."""

    def optimizer(
        self,
        model: nn.Module,
        targets: Sequence[str],
        lr: float,
        *,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> torch.optim.Optimizer | None:
        """Return the optimizer of its own with which the method trains a model, or ``None`` where any will do."""
        del model, targets, lr, betas, eps, weight_decay
        return None

    @property
    def bilevel(self) -> Bilevel | None:
        """The two levels at which the method trains a model; ``None`` for one, as nearly all do."""
        return None

    def penalty(self, layers: Sequence[Layer]) -> Tensor | None:
        """Return what is added to the loss in training, a scalar, for the layers that have this method; or ``None``."""
        del layers
        return None

    def follow(self, model: nn.Module, optimizer: torch.optim.Optimizer, total_steps: int) -> None:  # noqa: B027
        """Have a part in the training, by hooks of its optimizer; most methods have none."""

    def observe(self, layer: Layer) -> None:
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
        self.take_whole_numbers(rank=1)
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
