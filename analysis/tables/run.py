"""The run as a table sees it; `deltaw.analysis.trajectory.Trajectory` is one."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from deltaw.adapters.method import Method
from deltaw.analysis.records.source import Source

Step = int | None  # None: the base weights, before any step
PairKind = Literal["consecutive", "initial", "base"]
Pairs = PairKind | Sequence[tuple[Step, int]] | None
Steps = Sequence[int] | Literal["last"] | None
Budget = int | Literal["same"] | None  # parameters that advice may spend
Spread = Literal["energy", "need"] | None  # how it shares them out
LABELS = ["run", "method", "module", "layer", "kind"]  # the first columns of every table of modules


class Run(Protocol):
    """One run's checkpoints; every method is that of `Trajectory`."""

    name: str
    steps: list[int]
    source: Source

    @property
    def method(self) -> str:
        """The method's name."""

    @property
    def modules(self) -> list[str]:
        """The names of the modules."""

    def labels(self, module: str) -> dict[str, Any]:
        """Return run, method, module, layer, kind."""

    def shape(self, module: str) -> tuple[int, int]:
        """Return (out, in)."""

    def base(self, module: str) -> Tensor:
        """Return W₀ (out, in)."""

    def weight(self, module: str, step: Step, dtype: torch.dtype | None = None) -> Tensor:
        """Return W' (out, in); ``None`` is the base."""

    def update(self, module: str, step: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return ΔW (out, in)."""

    def factors(self, module: str, step: int, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor] | None:
        """Return U and V with ΔW = U V, or ``None``."""

    def state(self, module: str, step: int) -> dict[str, Tensor]:
        """Return the recorded tensors."""

    def method_of(self, module: str) -> Method | None:
        """Return the method of a module, where its tensors are recorded."""
