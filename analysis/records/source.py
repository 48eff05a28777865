"""The contract between a trajectory and the files that its weights come from.

Opening a source needs no torch: it is loaded when the first tensor is read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltaw.adapters.errors import OptionError, RecordError
from deltaw.analysis.records.run_folder.format import Manifest
from deltaw.analysis.records.storage.files import Storage

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from deltaw.adapters.method import Method, ScaledFactors, ScaledLowRank

Shape = tuple[int, int]
State = dict[str, "Tensor"]
Place = tuple[Storage, str | None]  # a file of a folder, or with None all that stand in it


@dataclass
class LeftOut:
    """One sort of what is not shown.

    Arguments:
        sort: "convolutions", "embeddings and heads", "norms", "biases", "other vectors" or "other matrices".
        tensors: Their names.
        entries: How many numbers they have.
        share: Of ‖W − W₀‖² over all tensors of the model, what these hold; ``None`` where no base tells.
        unknown: How many of them the base has not, or in another shape; their change counts nowhere.
    """

    sort: str
    tensors: list[str] = field(default_factory=list)
    entries: int = 0
    share: float | None = None
    unknown: int = 0


class Source(ABC):
    """The checkpoints of one run. Opening one reads names and sizes; a matrix is read when it is asked for.

    Attributes:
        where: The folder, file or address, for messages.
        format: What it was recognised as: "deltaw", "transformers", "peft", "safetensors", "dcp", "pair", or the tool
            whose adapters these are, as "kohya".
        method: The method's name, "ft" where whole matrices were saved.
        steps: The steps there are, rising.
        shapes: (out, in) of every module, by its name.
        info: What else is known of the run, as plain values.
        config: The model's ``config.json``, where there is one.
        steps_known: Whether the files say which steps these are. Where they don't, the number in ``steps`` is only a
            label, and nothing that holds at the start of training can be expected there.
        keeps_base: Whether W₀ was recorded with the run.
        manifest: The manifest of a run that deltaw recorded, else ``None``.
        folder: The folder of a run that deltaw recorded on this machine, else ``None``.
        opened: When it was opened, in seconds since 1970.
    """

    where: str
    format: str
    method: str
    steps: list[int]
    shapes: Mapping[str, Shape]
    info: dict[str, Any]
    config: dict[str, Any]
    steps_known: bool = True
    keeps_base: bool = False
    manifest: Manifest | None = None
    folder: Path | None = None
    opened: float = 0.0

    @abstractmethod
    def weight(self, module: str, step: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return W' (out, in) at a step, in ``dtype`` or in its own."""

    @abstractmethod
    def base(self, module: str) -> Tensor:
        """Return W₀ (out, in) in its own dtype, or raise a ``RecordError`` that says how to give it."""

    @property
    @abstractmethod
    def base_from(self) -> str | None:
        """Where W₀ comes from, or ``None`` where there is none."""

    @abstractmethod
    def state(self, module: str, step: int) -> State:
        """Return the tensors that were saved of a module at a step, under the method's names."""

    def update(self, module: str, step: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return ΔW = W' − W₀ (out, in), by default in float64."""
        dtype = dtype or float64()
        return self.weight(module, step, dtype) - self.base(module).to(dtype)

    def factors(self, module: str, step: int, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor] | None:
        """Return U (out, r) and V (r, in) with ΔW = U V exactly, or ``None`` where there is no such form."""
        del module, step, dtype
        return None

    def scaled_factors(self, module: str, step: int) -> ScaledFactors | None:
        """Return U, V and s with ΔW = s·U V: as they are stored where that is possible, else ``factors`` in float64."""
        found = self.factors(module, step, float64())
        return None if found is None else _unscaled(*found)

    def scaled_low_rank(self, module: str, step: int, base: Tensor) -> ScaledLowRank | None:
        """Return W' as diag(ρ) (W₀ + U V) diag(γ) in float64, or ``None`` where it is not recorded in such a form.

        Arguments:
            module, step: Of which matrix.
            base: W₀ (out, in), as ``base(module)`` returns it, in float32 or float64.
        """
        del module, step, base
        return None

    def scaled_low_ranks(self, module: str, steps: Sequence[int], base: Tensor) -> list[ScaledLowRank] | None:
        """Return ``scaled_low_rank`` of several steps, to the bit; ``None`` where one of them is not in such a form."""
        found = [form for step in steps if (form := self.scaled_low_rank(module, step, base)) is not None]
        return found if len(found) == len(steps) else None

    def method_of(self, module: str) -> Method | None:
        """Return the method of a module where it is one of ours with a record of its tensors, else ``None``."""
        del module
        return None

    def check_methods(self) -> None:  # noqa: B027 (few formats name methods)
        """Raise where a module was recorded by a method that is not known here.

        It loads the methods, and torch with them, so opening alone does not call it.

        Raises:
            RecordError: There is no such method, or it has no such option.
        """

    def checkpoint_bytes(self) -> int:
        """Return the bytes of all checkpoints, as the manifest's index announces them; 0 where there is none."""
        return 0

    def unfinished(self) -> bool:
        """Return whether the run is still being recorded, or its recorder was killed, as far as the files say so."""
        return False

    def base_checksum(self) -> tuple[str, str] | None:
        """Return the sha256 that W₀'s file has and the one that was recorded, ``None`` where none was."""
        return None

    def kernel(self, module: str) -> tuple[int, ...]:
        """Return (k…) of a convolution, in whose matrix (out, in·k…) an input's places are neighbours; else ()."""
        del module
        return ()

    def left_out(self, modules: Collection[str], *, shares: bool) -> list[LeftOut]:
        """Return what of a whole model is none of some modules, by sort; nothing of an adapter.

        Arguments:
            modules: Those that are shown.
            shares: Say what share of the last update each sort holds, which reads all tensors.
        """
        del modules, shares
        return []

    def new_rows(self, module: str, step: int) -> Tensor | None:
        """Return the rows of a resized vocabulary that W₀ has not, (rows, in); ``None`` where there are none."""
        del module, step
        return None

    def label(self, module: str) -> str:
        """Return the method's name for tables."""
        del module
        return self.method

    def rebuilt(self, module: str) -> bool:
        """Return whether W' is computed from smaller tensors; if not, it was saved itself."""
        del module
        return False

    def rounding(self, module: str, step: int) -> torch.dtype | None:
        """Return the dtype whose rounding, relative to W', stands in the update; ``None`` where ΔW has its own."""
        return self.weight(module, step).dtype

    def places(self, step: int | None) -> Sequence[Place] | None:
        """Return where what is read at a step stands, ``None`` for W₀; ``None`` where not only files decide."""
        del step
        return None

    def checksum(self, step: int | None) -> str:
        """Return what the record says of the checksum of a step's file, ``None`` for W₀'s; "" where it says nothing."""
        del step
        return ""

    def described(self, module: str) -> str | None:
        """Return what else, as the method and its options, decides a module's matrices, ``None`` where unknown."""
        del module
        return None

    def scalars(self) -> list[dict[str, float]]:
        """Return what was logged, a mapping a line."""
        return []

    def verify(self) -> int:
        """Read every file once, compare checksums where there are any, and return the number of files."""
        raise OptionError(f"{self.where}: a {self.format} folder holds no checksums to verify")

    def check(self, module: str, step: int | None = None) -> None:
        """Raise where there is no such module or step, naming what there is."""
        if module not in self.shapes:
            near = ", ".join(list(self.shapes)[:20]) + (", …" if len(self.shapes) > 20 else "")
            raise OptionError(f"{self.where}: module {module!r} was not recorded; there are {near}")
        if step is not None and step not in self.steps:
            near_steps = sorted(sorted(self.steps, key=lambda s: abs(s - step))[:3])
            raise OptionError(f"{self.where}: step {step} was not recorded; near it there are {near_steps}")


def float64() -> torch.dtype:
    """Return torch's float64, the precision of an update where none is asked for."""
    import torch

    return torch.float64


def _unscaled(U: Tensor, V: Tensor) -> ScaledFactors:
    from deltaw.adapters.method import ScaledFactors

    return ScaledFactors(U, V, 1.0)


def fitting(where: str, module: str, tensor: Tensor, shape: Shape) -> Tensor:
    """Return the matrix, or raise where it has not the shape that was announced."""
    if tuple(tensor.shape) != tuple(shape):
        raise RecordError(f"{where}: {module} is {tuple(tensor.shape)}, it should be {tuple(shape)}")
    return tensor
