"""A run that deltaw's own recorder wrote; see ``deltaw.analysis.record`` for the format."""

from pathlib import Path

import torch
from torch import Tensor

from deltaw.adapters import Method, OptionError, RecordError, create
from deltaw.adapters.layer import WIDENED
from deltaw.analysis.record import (
    BASE,
    check_size,
    check_sum,
    checkpoint_path,
    read_index,
    read_manifest,
    read_scalars,
    read_tensors,
)
from deltaw.analysis.sources.contract import Source, State


class Recorded(Source):
    """W' is rebuilt from the recorded parameters by the method's own definition.

    Raises:
        RecordError: The folder is no run, is damaged or of a newer format, or a checkpoint is missing or cut.
    """

    format = "deltaw"

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.where = str(folder)
        self.manifest = read_manifest(folder)
        entries = read_index(folder)
        check_size(folder / BASE, self.manifest.base)
        for entry in entries:
            check_size(checkpoint_path(folder, entry.step), entry.file)
        self.steps = [entry.step for entry in entries]
        self.shapes = {name: entry.shape for name, entry in self.manifest.modules.items()}
        self.method = self.manifest.method
        self.info = self.manifest.info
        self.config = {}
        self._methods: dict[str, Method | None] = {}
        for name in self.shapes:
            self.method_of(name)  # an unknown method is an error now, not in the middle of a table

    def method_of(self, module: str) -> Method | None:
        """Return the method of a module, or ``None`` where its matrix itself is recorded."""
        if module not in self._methods:
            self.check(module)
            entry = self.manifest.modules[module]
            try:
                self._methods[module] = None if entry.method is None else create(entry.method, **entry.options)
            except (OptionError, TypeError) as error:
                raise RecordError(f"{self.path}: {module}: {error}") from None
        return self._methods[module]

    def label(self, module: str) -> str:
        """Return the name of the module's method, or of the run's."""
        method = self.method_of(module)
        return self.method if method is None else method.name

    @property
    def base_from(self) -> str | None:
        """Where W₀ comes from: the run keeps it."""
        return str(self.path / BASE)

    def base(self, module: str) -> Tensor:
        """Return W₀ (out, in), in the dtype it was recorded in."""
        self.check(module)
        shape = self.shapes[module]
        tensor = read_tensors(self.path / BASE, {"base": module})["base"]
        if tuple(tensor.shape) != shape:
            raise RecordError(f"{self.path / BASE}: {module} is {tuple(tensor.shape)}, the manifest says {shape}")
        return tensor

    def state(self, module: str, step: int) -> State:
        """Return what was recorded of a module at a step: the method's tensors, or {"weight": the matrix}."""
        self.check(module, step)
        method, shape = self.method_of(module), self.shapes[module]
        path = checkpoint_path(self.path, step)
        wanted = {"weight": shape} if method is None else method.shapes(*shape) | method.frozen_shapes(*shape)
        constants = self.manifest.constants
        once = {key: constants[f"{module}.{key}"] for key in wanted if f"{module}.{key}" in constants}
        state = read_tensors(self.path / BASE, once) if once else {}
        state |= read_tensors(path, {key: f"{module}.{key}" for key in wanted if key not in once})
        for key, value in state.items():
            if tuple(value.shape) != tuple(wanted[key]):
                raise RecordError(f"{path}: {module}.{key} is {tuple(value.shape)}, it should be {tuple(wanted[key])}")
        return state

    def weight(self, module: str, step: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return W' (out, in) at a step."""
        method, state = self.method_of(module), self.state(module, step)
        if method is None:
            return state["weight"] if dtype is None else state["weight"].to(dtype)
        return method.weight(*self.wide(module, state, dtype))

    def update(self, module: str, step: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return ΔW = W_t − W₀ (out, in), the exact update of the recorded parameters."""
        method, state = self.method_of(module), self.state(module, step)
        if method is None:
            return state["weight"].to(dtype) - self.base(module).to(dtype)
        return method.update(*self.wide(module, state, dtype))

    def factors(self, module: str, step: int, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor] | None:
        """Return U (out, r) and V (r, in) with ΔW = U V exactly, or ``None`` where the method has no such form."""
        method = self.method_of(module)
        return None if method is None else method.factors(*self.wide(module, self.state(module, step), dtype))

    def rebuilt(self, module: str) -> bool:
        """Return whether a method rebuilds W'."""
        return self.method_of(module) is not None

    def rounding(self, module: str, step: int) -> torch.dtype | None:
        """Return the dtype of the recorded matrix, or of the magnitudes that multiply W₀, as large as it is."""
        method = self.method_of(module)
        if method is not None and not method.scales_base:
            return None
        return next(value.dtype for value in self.state(module, step).values() if value.is_floating_point())

    def scalars(self) -> list[dict[str, float]]:
        """Return the scalar log."""
        return read_scalars(self.path)

    def verify(self) -> int:
        """Read every file and compare its checksum; return the number of files."""
        check_sum(self.path / BASE, self.manifest.base)
        entries = read_index(self.path)
        for entry in entries:
            check_sum(checkpoint_path(self.path, entry.step), entry.file)
        return 1 + len(entries)

    def wide(self, module: str, state: State, dtype: torch.dtype | None) -> tuple[Tensor, State]:
        """W₀ and the method's tensors in one dtype; by default the one the layer computes its weight in.

        The tensors are copied out of the file: with its alignment some processors sum in another order than they did
        in training, and W' would differ by a rounding.
        """
        base = self.base(module)
        base = base.to(dtype or WIDENED.get(base.dtype, base.dtype))
        return base, {
            key: value.to(dtype if value.is_floating_point() else None, copy=True) for key, value in state.items()
        }
