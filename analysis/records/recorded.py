"""A run that deltaw's own recorder wrote; see ``deltaw.analysis.records.run_folder.format`` for the format."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from typing_extensions import override

from deltaw.adapters.errors import OptionError, RecordError
from deltaw.adapters.peft.names import RECORD
from deltaw.analysis.records.foreign.base import BaseLike
from deltaw.analysis.records.run_folder.checked_lines import fault, lines_of
from deltaw.analysis.records.run_folder.format import (
    ARCHITECTURE,
    BASE,
    CHECKED,
    CHECKPOINTS,
    INDEX,
    MANIFEST,
    SCALARS,
    FileEntry,
    Manifest,
    ModuleEntry,
    checkpoint_name,
    compare_size,
    compare_sum,
    manifest_fault,
    parse_index,
    parse_manifest,
    parse_scalars,
)
from deltaw.analysis.records.run_folder.headers import check_base, check_checkpoint, matrix_shapes, tensor_shapes
from deltaw.analysis.records.run_folder.seal import SEAL, broken_seal, parse_seal
from deltaw.analysis.records.source import Place, Source, State, float64
from deltaw.analysis.records.storage.files import LocalStorage, Storage
from deltaw.analysis.records.storage.location import Location
from deltaw.analysis.records.storage.safetensors_file import Entry, header_entries, header_text, read_tensors
from deltaw.analysis.records.storage.tensors import plain_modules

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from deltaw.adapters.method import Method, ScaledFactors, ScaledLowRank


HEADERS = 256  # that are read when a run is opened: a few milliseconds


class RecordedSource(Source):
    """W' is rebuilt from the recorded parameters by the method's own definition.

    Raises:
        RecordError: The folder is no run, is damaged or of a newer format, or a checkpoint is missing or cut.
    """

    format = "deltaw"
    keeps_base = True
    manifest: Manifest

    def __init__(self, storage: Storage) -> None:
        self.where = storage.where
        self._storage, self._checkpoints = storage, storage.folder(CHECKPOINTS)
        if not storage.has(MANIFEST):
            raise RecordError(f"{self.where}: is not a recorded run (it has no {MANIFEST})")
        self.manifest = parse_manifest(storage.json(MANIFEST, unique=True), storage.file(MANIFEST))
        self.entries = parse_index(storage.whole(INDEX), storage.file(INDEX))
        self._announced = {checkpoint_name(entry.step): entry.file for entry in self.entries}
        self._check_sizes(storage, {BASE: self.manifest.base})
        self._check_sizes(self._checkpoints, self._announced)
        self.folder = storage.path if isinstance(storage, LocalStorage) else None
        self._headers: dict[str, dict[str, Entry]] = {}  # by file
        self._stamps: dict[str, tuple[int, ...]] = {}  # of each file as its header was read
        self._known: dict[tuple[bytes, int, bool], dict[str, Entry]] = {}  # most checkpoints have the same header
        self._base_sum: str | None = None
        self._fetched: dict[str, Tensor] = {}  # of a base behind an address; see _from_base
        self.steps = [entry.step for entry in self.entries]
        self._recorded = plain_modules(self.manifest.modules)  # the names in the files
        self.shapes = {name: self._entry(name).shape for name in self._recorded}
        self.method = self.manifest.method.replace(RECORD, "")
        self.info = self.manifest.info
        kept = self.info.get(ARCHITECTURE)
        self.config = dict(kept) if isinstance(kept, dict) else {}
        self._methods: dict[str, Method | None] = {}
        self._expected = matrix_shapes(self.manifest)
        if isinstance(storage, LocalStorage):  # behind an address each would be a request
            self._header(storage, BASE)
            for name in _some(list(self._announced)):
                self._header(self._checkpoints, name)

    @override
    def check_methods(self) -> None:
        for name in self.shapes:
            self.method_of(name)  # an unknown method is an error now, not in the middle of a table
        self._expected = tensor_shapes(self.manifest, self.where)
        for name, header in self._headers.items():
            if name != BASE:
                check_checkpoint(self._expected, header, self._checkpoints.file(name))

    def _entry(self, module: str) -> ModuleEntry:
        return self.manifest.modules[self._recorded[module]]

    def method_of(self, module: str) -> Method | None:
        """Return the method of a module, or ``None`` where its matrix itself is recorded."""
        if module not in self._methods:
            self.check(module)
            from deltaw.adapters.peft.recorded import method_of_record  # it needs torch, which opening a run does not

            entry = self._entry(module)
            try:
                self._methods[module] = None if entry.method is None else method_of_record(entry.method, entry.options)
            except (OptionError, TypeError) as error:
                raise RecordError(f"{self.where}: {module}: {error!s:.400}") from None
        return self._methods[module]

    @override
    def kernel(self, module: str) -> tuple[int, ...]:
        self.check(module)
        return self._entry(module).kernel

    def label(self, module: str) -> str:
        """Return the name of the module's method, or of the run's."""
        self.check(module)
        return (self._entry(module).method or self.method).replace(RECORD, "")

    @property
    def base_from(self) -> str | None:
        """Where W₀ comes from: the run keeps it."""
        return self._storage.file(BASE)

    def base(self, module: str) -> Tensor:
        """Return W₀ (out, in), in the dtype it was recorded in."""
        self.check(module)
        shape = self.shapes[module]
        tensor = self._from_base({"base": self._recorded[module]})["base"]
        if tuple(tensor.shape) != shape:
            raise RecordError(f"{self.base_from}: {module} is {tuple(tensor.shape)}, the manifest says {shape}")
        return tensor

    def state(self, module: str, step: int) -> State:
        """Return what was recorded of a module at a step: the method's tensors, or {"weight": the matrix}."""
        self.check(module, step)
        method, shape = self.method_of(module), self.shapes[module]
        file = checkpoint_name(step)
        wanted = {"weight": shape} if method is None else method.shapes(*shape) | method.frozen_shapes(*shape)
        constants, recorded = self.manifest.constants, self._recorded[module]
        once = {key: constants[f"{recorded}.{key}"] for key in wanted if f"{recorded}.{key}" in constants}
        state = self._from_base(once) if once else {}
        own = {key: f"{recorded}.{key}" for key in wanted if key not in once}
        state |= self._read(self._checkpoints, file, self._announced[file], own)
        for key, value in state.items():
            if tuple(value.shape) != tuple(wanted[key]):
                where = self._checkpoints.file(file)
                raise RecordError(f"{where}: {module}.{key} is {tuple(value.shape)}, it should be {tuple(wanted[key])}")
        return state

    def weight(self, module: str, step: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return W' (out, in) at a step."""
        method, state = self.method_of(module), self.state(module, step)
        if method is None:
            return state["weight"] if dtype is None else state["weight"].to(dtype)
        return method.weight(*self.wide(module, state, dtype))

    def update(self, module: str, step: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return ΔW = W_t − W₀ (out, in), the exact update of the recorded parameters, by default in float64."""
        dtype = dtype or float64()
        method, state = self.method_of(module), self.state(module, step)
        if method is None:
            return state["weight"].to(dtype) - self.base(module).to(dtype)
        return method.update(*self.wide(module, state, dtype))

    def factors(self, module: str, step: int, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor] | None:
        """Return U (out, r) and V (r, in) with ΔW = U V exactly, or ``None`` where the method has no such form."""
        method = self.method_of(module)
        return None if method is None else method.factors(*self.wide(module, self.state(module, step), dtype))

    @override
    def scaled_factors(self, module: str, step: int) -> ScaledFactors | None:
        method = self.method_of(module)
        found = None if method is None else method.scaled_factors(self.shapes[module], self.state(module, step))
        return super().scaled_factors(module, step) if found is None else found

    @override
    def scaled_low_rank(self, module: str, step: int, base: Tensor) -> ScaledLowRank | None:
        method = self.method_of(module)
        return None if method is None else method.scaled_low_rank(base, _widened(self.state(module, step), float64()))

    @override
    def scaled_low_ranks(self, module: str, steps: Sequence[int], base: Tensor) -> list[ScaledLowRank] | None:
        method = self.method_of(module)
        if method is None:
            return None
        return method.scaled_low_ranks(base, _widened_together([self.state(module, step) for step in steps]))

    def rebuilt(self, module: str) -> bool:
        """Return whether a method rebuilds W'."""
        self.check(module)
        return self._entry(module).method is not None

    def rounding(self, module: str, step: int) -> torch.dtype | None:
        """Return the dtype of the recorded matrix, or of the magnitudes that multiply W₀, as large as it is."""
        method = self.method_of(module)
        if method is not None and not method.scales_base:
            return None
        return next(value.dtype for value in self.state(module, step).values() if value.is_floating_point())

    @override
    def places(self, step: int | None) -> list[Place]:
        return [(self._storage, BASE) if step is None else (self._checkpoints, checkpoint_name(step))]

    @override
    def checksum(self, step: int | None) -> str:
        return (self.manifest.base if step is None else self._announced[checkpoint_name(step)]).sha256

    @override
    def described(self, module: str) -> str | None:
        method = self.method_of(module)
        if method is not None and not type(method).__module__.startswith("deltaw."):
            return None  # nothing tells when the code of another package changes
        own = f"{self._recorded[module]}."
        constants = sorted(pair for pair in self.manifest.constants.items() if pair[0].startswith(own))
        return f"{self._entry(module)} {constants}{self.config or ''}"

    def scalars(self) -> list[dict[str, float]]:
        """Return the scalar log."""
        return parse_scalars(self._storage.whole(SCALARS), self._storage.file(SCALARS))

    @override
    def unfinished(self) -> bool:
        if not self._storage.has(SEAL):  # of a run of format 1 or 2
            return False
        with contextlib.suppress(RecordError):  # `verify` says what is wrong with a seal
            return not parse_seal(self._storage.whole(SEAL), self._storage.file(SEAL)).closed
        return False

    def verify(self) -> int:
        """Read every file and compare its checksum; return the number of files with tensors."""
        while True:
            before = self._storage.whole(SEAL), self._storage.whole(INDEX)
            try:
                return self._verified(*before)
            except RecordError:  # of a run that is being recorded, files may have gone since the index was read
                after = self._storage.whole(SEAL), self._storage.whole(INDEX)
                if before == after:
                    raise

    def _verified(self, seal: bytes, index: bytes) -> int:
        storage, version = self._storage, self.manifest.version
        self._check_sizes(storage, {BASE: self.manifest.base})
        self._base_sum = storage.digest(BASE)
        compare_sum(storage.file(BASE), self._base_sum, self.manifest.base)
        log = storage.whole(SCALARS) if storage.has(SCALARS) else None
        found = {
            MANIFEST: manifest_fault(storage.whole(MANIFEST), self.manifest),
            INDEX: fault(lines_of(index), old=version < CHECKED),
            SCALARS: fault(lines_of(log or b""), old=version < CHECKED),
        }
        if seal:
            found[SEAL] = broken_seal(parse_seal(seal, storage.file(SEAL)), index, log)
        elif version >= CHECKED:
            found[SEAL] = "is missing"
        for name, message in found.items():
            if message is not None:
                raise RecordError(f"{storage.file(name)}: {message}; see what deltaw repair can save")
        entries = parse_index(index, storage.file(INDEX))
        for entry in entries:
            name = checkpoint_name(entry.step)
            self._check_sizes(self._checkpoints, {name: entry.file})
            compare_sum(self._checkpoints.file(name), self._checkpoints.digest(name), entry.file)
        return 1 + len(entries)

    @override
    def checkpoint_bytes(self) -> int:
        return sum(entry.file.bytes for entry in self.entries)

    @override
    def base_checksum(self) -> tuple[str, str]:
        if self._base_sum is None:
            self._base_sum = self._storage.digest(BASE)  # reads the file, so once
        return self._base_sum, self.manifest.base.sha256

    def wide(self, module: str, state: State, dtype: torch.dtype | None) -> tuple[Tensor, State]:
        """W₀ and the method's tensors in one dtype; by default the one the layer computes its weight in.

        The tensors are copied out of the file: with its alignment some processors sum in another order than they did
        in training, and W' would differ by a rounding.
        """
        from deltaw.adapters.layer import WIDENED

        base = self.base(module)
        base = base.to(dtype or WIDENED.get(base.dtype, base.dtype))
        return base, _widened(state, dtype)

    @staticmethod
    def _check_sizes(storage: Storage, announced: dict[str, FileEntry]) -> None:
        for name, size in storage.sizes(announced).items():
            compare_size(storage.file(name), size, announced[name])

    def _from_base(self, names: dict[str, str]) -> State:
        """Tensors of the base's file, as ``_read``.

        Behind an address they are fetched once for all steps: what never changes, which is as small as an adapter, is
        kept, and of the modules' matrices the last one.
        """
        if isinstance(self._storage, LocalStorage):
            return self._read(self._storage, BASE, self.manifest.base, names)
        missing = {name: name for name in names.values() if name not in self._fetched}
        if missing:
            found = self._read(self._storage, BASE, self.manifest.base, missing)
            modules = self.manifest.modules
            if not modules.keys().isdisjoint(found):
                self._fetched = {name: value for name, value in self._fetched.items() if name not in modules}
            self._fetched |= found
        return {key: self._fetched[name].clone() for key, name in names.items()}

    def _read(self, storage: Storage, file: str, announced: FileEntry, names: dict[str, str]) -> State:
        """Tensors of a file: the key wanted in the result -> the tensor's name there."""
        stamp = storage.stamp(file)
        compare_size(storage.file(file), stamp[0], announced)
        header = self._header(storage, file)
        storage.check_unchanged(file, self._stamps[file], stamp)
        for name in names.values():
            if name not in header:
                raise RecordError(f"{storage.file(file)}: lacks the tensor {name!r}")
        return read_tensors(storage, file, {key: header[name] for key, name in names.items()}, stamp[0])

    def _header(self, storage: Storage, file: str) -> dict[str, Entry]:
        """The header of a file; read and held against the manifest the first time."""
        if file not in self._headers:
            self._stamps[file] = storage.stamp(file)
            size = self._stamps[file][0]
            text = header_text(storage, file, size)
            key = text, size, file == BASE
            if key not in self._known:
                header = header_entries(text, size, storage.file(file))
                if file == BASE:
                    check_base(self.manifest, header, storage.file(file))
                else:
                    check_checkpoint(self._expected, header, storage.file(file))
                self._known[key] = header
            self._headers[file] = self._known[key]
        return self._headers[file]


def _some(names: list[str]) -> list[str]:
    """The names, or so many of them as are looked into at once, evenly, the last one among them."""
    apart = -(-len(names) // HEADERS)
    return names[::-apart] if names else []


def _widened(state: State, dtype: torch.dtype | None) -> State:
    return {key: value.to(dtype if value.is_floating_point() else None, copy=True) for key, value in state.items()}


def _widened_together(states: Sequence[State]) -> list[State]:
    """Widen the tensors of many steps to float64, each name at once: one by one, the calls take most of the time."""
    import torch

    found: list[dict[str, Tensor]] = [{} for _ in states]
    for key, first in states[0].items():
        whole = torch.stack([state[key] for state in states])
        for state, own in zip(found, whole.double() if first.is_floating_point() else whole, strict=True):
            state[key] = own
    return found


def recognises(location: Location) -> bool:
    """Return whether it is the folder of a run that deltaw recorded."""
    return location.has(MANIFEST, INDEX)


def opens(location: Location, base: BaseLike, everything: bool) -> Source:
    """Open a run that deltaw recorded.

    Raises:
        RecordError: It is damaged.
        OptionError: A base is given, which the run has itself.
    """
    del everything  # what was recorded is shown
    if base is not None:
        raise OptionError(f"{location.storage.where}: records its base weights itself; leave base out")
    return RecordedSource(location.storage)
