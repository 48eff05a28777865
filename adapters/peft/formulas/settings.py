"""The settings of a formula, beside the tensors of its layer."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from deltaw.adapters.errors import RecordError
from deltaw.adapters.peft.targets import fits

Tensors = Mapping[str, Tensor]


Factors = tuple[Tensor, Tensor]


Shapes = Mapping[str, tuple[int, ...]]


@dataclass
class Settings:
    """The settings of a formula, beside the layer's own tensors.

    Arguments:
        where: For messages.
        module: The layer's name.
        config: ``adapter_config.json``.
        shape: (out, in).
        base: Returns W₀ (out, in) in the dtype of the computation, or raises where it was not given.
        shared: Returns a tensor that layers share.
        start: Returns the layer's tensors before training, for a start that cannot be made again; or ``None``.
        layers: How many layers are adapted.
        order: Their names in the model's order, where it is known.
        shapes: (out, in) of each of them.
        bias: Returns the layer's bias, ``None`` where it has none.
    """

    where: str
    module: str
    config: Mapping[str, Any]
    shape: tuple[int, int]
    base: Callable[[], Tensor]
    shared: Callable[[str], Tensor]
    start: Callable[[], Tensors | None] = lambda: None
    layers: int = 0
    order: list[str] = field(default_factory=list)
    shapes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    bias: Callable[[], Tensor | None] = lambda: None

    def number(self, key: str, default: float, patterns: str = "") -> float:
        """Return an option that is a number, for this layer where a pattern names it."""
        value = self.config.get(key, default)
        by_pattern = self.config.get(patterns) if patterns else None
        if isinstance(by_pattern, dict):
            value = next(
                (v for pattern, v in by_pattern.items() if fits(pattern, self.module, self.where, patterns)), value
            )
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self.wrong(f"{key} = {value!r:.40} is no number")
        return value

    def whole(self, key: str, default: int, patterns: str = "") -> int:
        """Return an option that is a whole number of at least 0."""
        value = self.number(key, default, patterns)
        if value != int(value) or value < 0 or value > 2**40:
            raise self.wrong(f"{key} = {value!r:.40} is no count")
        return int(value)

    def number_in_model(self) -> int:
        """Return which of the adapted layers it is, in the model's order."""
        if self.module not in self.order or len(self.order) != self.layers:
            raise self.wrong("this type numbers the layers in the model's order; give base as the model itself")
        return self.order.index(self.module)

    def wrong(self, what: str) -> RecordError:
        """Return the error that says what of this layer cannot be."""
        return RecordError(f"{self.where}: {self.module}: {what}")


def need(t: Tensors, s: Settings, *names: str) -> list[Tensor]:
    """Return tensors of a layer, or raise where one is missing."""
    for name in names:
        if name not in t:
            raise s.wrong(f"lacks the tensor {name!r}; the file is damaged or of another version of PEFT")
    return [t[name] for name in names]


def diagonal(blocks: Sequence[Tensor]) -> Tensor:
    """The matrix with these blocks on its diagonal."""
    found: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return found
