"""A set of named tensors: of one file, of a model over several, or in memory. None is read before it is asked for."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from typing_extensions import override

from deltaw.adapters.errors import RecordError
from deltaw.adapters.peft.names import PREFIX
from deltaw.analysis.records.storage.file_names import SHARDED
from deltaw.analysis.records.storage.files import LocalStorage, Storage, plain_name
from deltaw.analysis.records.storage.safetensors_file import (
    Entry,
    read_header,
    read_metadata,
    read_tensor,
    torch_dtype,
)
from deltaw.analysis.records.storage.torch_file import model_in_file

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# What torch.compile, checkpointing and FSDP put into the names of the modules that they wrap.
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")


class Tensors(ABC):
    """Named tensors."""

    where: str

    @abstractmethod
    def names(self) -> Collection[str]:
        """Return their names, in the files' order."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Return a shape, without reading the tensor."""

    @abstractmethod
    def dtype_name(self, name: str) -> str:
        """Return torch's name of a dtype, as "float32", without reading the tensor."""

    def dtype(self, name: str) -> torch.dtype:
        """Return a dtype, without reading the tensor."""
        return torch_dtype(self.dtype_name(name))

    @abstractmethod
    def read(self, name: str, index: int | None = None) -> Tensor:
        """Return a tensor, or its slice ``index`` along the first dimension."""

    def metadata(self) -> dict[str, str]:
        """Return the texts that stand beside the tensors; none where the format has no place for them."""
        return {}

    def need(self, name: str) -> None:
        """Raise where there is no such tensor."""
        if name not in self.names():
            raise RecordError(f"{self.where}: lacks the tensor {name!r}")


class SafeTensors(Tensors):
    """The tensors of one or several safetensors files of a folder.

    Arguments:
        storage: The folder.
        files: The file of every tensor, or the name of the only file.

    Raises:
        RecordError: A file is missing or damaged, or lacks a tensor that the index puts there.
    """

    def __init__(self, storage: Storage, files: str | Mapping[str, str]) -> None:
        self._storage = storage
        self._headers: dict[str, dict[str, Entry]] = {}
        self._stamps: dict[str, tuple[int, ...]] = {}
        if isinstance(files, str):
            self.where = storage.file(files)
            found = dict.fromkeys(self._header(files), files)
        else:
            self.where = storage.where
            found = dict(files)
            for name in sorted(set(files.values())):
                if not storage.has(name):
                    raise RecordError(f"{storage.file(name)}: is missing, though the index names it")
        self._names = unwrapped(found, self.where)
        self._files = {name: found[stored] for name, stored in self._names.items()}

    def _header(self, file: str) -> dict[str, Entry]:
        if file not in self._headers:
            self._stamps[file] = self._storage.stamp(file)
            self._headers[file] = read_header(self._storage, file)
        return self._headers[file]

    def _entry(self, name: str) -> Entry:
        self.need(name)
        file = self._files[name]
        stored = self._names[name]
        if stored not in self._header(file):
            raise RecordError(f"{self._storage.file(file)}: lacks the tensor {name!r}, though the index puts it there")
        return self._header(file)[stored]

    @override
    def names(self) -> Collection[str]:
        return self._files

    @override
    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    @override
    def dtype_name(self, name: str) -> str:
        return self._entry(name).dtype

    @override
    def read(self, name: str, index: int | None = None) -> Tensor:
        entry, file = self._entry(name), self._files[name]
        self._storage.check_unchanged(file, self._stamps[file])
        return read_tensor(self._storage, file, entry, index, size=self._stamps[file][0])

    @override
    def metadata(self) -> dict[str, str]:
        files = sorted(set(self._files.values()))
        return read_metadata(self._storage, files[0]) if len(files) == 1 else {}


class SavedTensors(Tensors):
    """The model's tensors in a file of ``torch.save``.

    Arguments:
        storage: The folder, on this machine.
        file: The file's name.

    Raises:
        RecordError: The file is no such, is compressed, or needs code to run.
    """

    def __init__(self, storage: LocalStorage, file: str) -> None:
        self._storage, self._file, self.where = storage, file, storage.file(file)
        found = model_in_file(storage, file)
        self._saved = {name: found[stored] for name, stored in unwrapped(found, self.where).items()}

    @override
    def names(self) -> Collection[str]:
        return self._saved

    @override
    def shape(self, name: str) -> tuple[int, ...]:
        self.need(name)
        return self._saved[name].shape

    @override
    def dtype_name(self, name: str) -> str:
        self.need(name)
        return self._saved[name].dtype

    @override
    def read(self, name: str, index: int | None = None) -> Tensor:
        self.need(name)
        saved = self._saved[name]
        tensor = saved.of(self._storage.mapped(self._file, saved.start, saved.length))
        return tensor if index is None else tensor[index]


class InMemory(Tensors):
    """Tensors that are here already.

    Arguments:
        tensors: By name.
        where: For messages.
    """

    def __init__(self, tensors: Mapping[str, Tensor], where: str) -> None:
        self._tensors, self.where = dict(tensors), where

    @override
    def names(self) -> Collection[str]:
        return self._tensors

    @override
    def shape(self, name: str) -> tuple[int, ...]:
        self.need(name)
        return tuple(self._tensors[name].shape)

    @override
    def dtype_name(self, name: str) -> str:
        self.need(name)
        return str(self._tensors[name].dtype).removeprefix("torch.")

    @override
    def read(self, name: str, index: int | None = None) -> Tensor:
        self.need(name)
        tensor = self._tensors[name].detach()
        return tensor if index is None else tensor[index]


class Several(Tensors):
    """The tensors of several sets, each name in one of them."""

    def __init__(self, tensors: Mapping[str, Tensors], where: str) -> None:
        self._tensors, self.where = dict(tensors), where

    @override
    def names(self) -> Collection[str]:
        return self._tensors

    @override
    def shape(self, name: str) -> tuple[int, ...]:
        self.need(name)
        return self._tensors[name].shape(name)

    @override
    def dtype_name(self, name: str) -> str:
        self.need(name)
        return self._tensors[name].dtype_name(name)

    @override
    def read(self, name: str, index: int | None = None) -> Tensor:
        self.need(name)
        return self._tensors[name].read(name, index)


class Renamed(Tensors):
    """Some tensors of a set under other names.

    Arguments:
        tensors: The set.
        names: The name in it, by the new one.
    """

    def __init__(self, tensors: Tensors, names: Mapping[str, str]) -> None:
        self._tensors, self._names, self.where = tensors, dict(names), tensors.where

    @override
    def metadata(self) -> dict[str, str]:
        return self._tensors.metadata()

    @override
    def names(self) -> Collection[str]:
        return self._names

    @override
    def shape(self, name: str) -> tuple[int, ...]:
        self.need(name)
        return self._tensors.shape(self._names[name])

    @override
    def dtype_name(self, name: str) -> str:
        self.need(name)
        return self._tensors.dtype_name(self._names[name])

    @override
    def read(self, name: str, index: int | None = None) -> Tensor:
        self.need(name)
        return self._tensors.read(self._names[name], index)


def read_weights(storage: Storage, file: str) -> Tensors:
    """Return the tensors of a model: of one file, or of the shards that an index names.

    Raises:
        RecordError: A file is missing or damaged, is a pickle that needs code to run, or lies outside the folder.
    """
    if file.endswith(SHARDED):
        raw = storage.mapping(file).get("weight_map")
        if not isinstance(raw, dict) or not raw:
            raise RecordError(f"{storage.file(file)}: is damaged, it has no weight_map")
        files = {name: plain_name(shard, storage.file(file)) for name, shard in raw.items()}
        shards = sorted(set(files.values()))
        if all(shard.endswith(".safetensors") for shard in shards):
            return SafeTensors(storage, files)
        sets = {shard: read_pickled(storage, shard) for shard in shards}
        for name, shard in files.items():
            if name not in sets[shard].names():
                raise RecordError(f"{storage.file(shard)}: lacks the tensor {name!r}, though the index puts it there")
        return Several({name: sets[shard] for name, shard in files.items()}, storage.where)
    if file.endswith(".safetensors"):
        return SafeTensors(storage, file)
    return read_pickled(storage, file)


def read_pickled(storage: Storage, file: str) -> Tensors:
    """Return the tensors of a file of ``torch.save``, read by torch's unpickler that admits tensors alone.

    Raises:
        RecordError: The file is no such, is compressed, or needs code to run; nothing of it has run then.
    """
    where = storage.file(file)
    if not isinstance(storage, LocalStorage):
        raise RecordError(f"{where}: is a pickle, which is read only from this machine; copy the folder here")
    return SavedTensors(storage, file)


def unwrapped(names: Collection[str], where: str) -> dict[str, str]:
    """Return the names without those of wrappers, each with the name in the file.

    Raises:
        RecordError: Two names are the same then.

    Example:
        >>> unwrapped(["_orig_mod.layers.0._checkpoint_wrapped_module.q.weight"], "a file")
        {'layers.0.q.weight': '_orig_mod.layers.0._checkpoint_wrapped_module.q.weight'}
    """
    found: dict[str, str] = {}
    for name in names:
        plain = WRAPPERS.sub("", name)
        if plain in found:
            raise RecordError(f"{where}: {found[plain]} and {name} are the same tensor, wrapped and not")
        found[plain] = name
    return found


def plain_modules(names: Collection[str]) -> dict[str, str]:
    """Return module names without what PEFT and wrappers put before them, each with the recorded one.

    So a run that was recorded inside PEFT has the names of the adapter that PEFT saves. Where two would be the same,
    all stay as they are.

    Example:
        >>> plain_modules(["base_model.model.layers.0.q", "_orig_mod.base_model.model.layers.1.q"])
        {'layers.0.q': 'base_model.model.layers.0.q', 'layers.1.q': '_orig_mod.base_model.model.layers.1.q'}
    """
    found = {WRAPPERS.sub("", WRAPPERS.sub("", name).removeprefix(PREFIX)): name for name in names}
    return found if len(found) == len(names) and "" not in found else {name: name for name in names}
