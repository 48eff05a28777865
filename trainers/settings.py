"""The settings that all experiments share. Nothing here loads torch: the command line reads its defaults here."""

import json
import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deltaw.adapters.errors import OptionError
from deltaw.adapters.methods.registry import create, options_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deltaw.adapters.method import Method  # loads torch

BASES = ("full", "nf4")
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Settings(ABC):
    """The settings of a run, whatever it trains on.

    Arguments:
        method: A name of ``METHODS``.
        options: The method's options, over those of ``standard_options`` that it has.
        model: A folder or a name on the hub; ``None`` for the built-in model.
        targets: Glob patterns of the adapted modules; ``None`` for the experiment's own.
        learning_rate: ``None`` for the default of the method.
        batch_size: ``None`` for the experiment's own.
        max_length: Longer texts are cut to this many tokens.
        context_batches: Batches of training examples from which a method that starts from data (CorDA) starts.
        base: "full" for the weights as they are, "nf4" for targets in 4 bits (QLoRA, QDoRA, QBoRA, …).
        precision: "float32", or "bfloat16" for products of activations in bfloat16 (autocast); weights, what is
            recorded of them, and the optimizer are float32 in both.
        record_modules: Glob patterns of the recorded modules; ``None`` for the targets.
        advice: Rank and alpha of single modules, by their names, in the place of the options' own; ``None`` for none.
            Of a method with both.
        save_every: Epochs between the states from which an interrupted run goes on.
        seed: Of what starts at random, the order of the examples, and dropout.
    """

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    targets: tuple[str, ...] | None = None
    epochs: int
    learning_rate: float | None = None
    batch_size: int | None
    warmup_ratio: float
    weight_decay: float = 0.0
    max_length: int
    context_batches: int = 8
    base: Literal["full", "nf4"] = "full"
    precision: Literal["float32", "bfloat16"] = "float32"
    record_modules: tuple[str, ...] | None = None
    advice: dict[str, dict[str, float]] | None = None
    save_every: int
    seed: int = 0

    def __post_init__(self) -> None:
        self.at_least_one("epochs", "batch_size", "save_every", "max_length", "context_batches")
        if self.base not in BASES:
            raise OptionError(f"base must be 'full' or 'nf4', not {self.base!r}")
        if self.precision not in PRECISIONS:
            raise OptionError(f"precision must be 'float32' or 'bfloat16', not {self.precision!r}")
        if not 0 <= self.warmup_ratio < 1:
            raise OptionError(f"warmup_ratio must lie in [0, 1), not {self.warmup_ratio!r}")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise OptionError(f"learning_rate must be above 0, not {self.learning_rate!r}")

    def at_least_one(self, *names: str) -> None:
        """Raise an OptionError where one of these is given and below 1."""
        for name in names:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"{name} must be at least 1, not {value!r}")

    @abstractmethod
    def standard_options(self) -> dict[str, Any]:
        """Options of the methods that have them, where nothing else is said."""

    @abstractmethod
    def standard_rates(self) -> tuple[float, float]:
        """The learning rates where none is given: where all weights train, and the adapters'."""

    def make_method(self) -> "Method":
        """The method with its options.

        Raises:
            OptionError: The method has no such option, or not with this value.
        """
        known = options_of(self.method)
        standard = {name: value for name, value in self.standard_options().items() if name in known}
        return create(self.method, **standard | self.options)

    def methods_by_module(self, targets: "Sequence[str]") -> "dict[str, Method]":
        """The method of every target: with the rank and alpha that the advice has for it, else as ``make_method``.

        Raises:
            OptionError: The method has no rank or alpha.
        """
        advice = self.advice or {}
        if advice and not {"rank", "alpha"} <= set(options_of(self.method)):
            raise OptionError(
                f"{self.method} has not a rank and an alpha of its own for each module, as advice gives it"
            )
        plain = self.make_method()
        advised = {
            name: create(self.method, **plain.options() | {"rank": int(own["rank"]), "alpha": own["alpha"]})
            for name, own in advice.items()
        }
        return {name: advised.get(name, plain) for name in targets}

    def rate(self) -> float:
        """The learning rate that is used."""
        if self.learning_rate is not None:
            return self.learning_rate
        full, adapters = self.standard_rates()
        return adapters if self.make_method().injects else full

    def plain(self) -> dict[str, Any]:
        """The settings as they are kept and compared: what is None stands for what is used, no path of this machine."""
        plain = asdict(self) | {"options": self.make_method().options(), "learning_rate": self.rate()}
        if not self.make_method().needs_context:
            del plain["context_batches"]
        if self.base == "full":
            del plain["base"]  # there were runs before there was a choice
        if self.precision == "float32":
            del plain["precision"]  # as well
        if self.advice is None:
            del plain["advice"]
        if self.model is not None:
            plain["model"] = without_path(self.model)
        cleaned: dict[str, Any] = json.loads(json.dumps(plain))
        return cleaned


def without_path(source: str) -> str:
    """Return the name of a folder or file alone, and anything else as it is."""
    return Path(source).resolve().name if Path(source).exists() else source
