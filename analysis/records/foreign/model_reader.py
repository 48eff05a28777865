"""Which of a folder's files are its model, and how they are read."""

from collections.abc import Callable
from functools import partial

from deltaw.adapters.errors import RecordError
from deltaw.analysis.records.source import Place
from deltaw.analysis.records.storage.file_names import (
    DCP_METADATA,
    FSDP,
    adapter_file,
    is_sharded,
    is_universal,
    model_files,
    parts_of_one,
    unreadable,
    weights_file,
)
from deltaw.analysis.records.storage.files import Storage
from deltaw.analysis.records.storage.location import Folder, adapters_in
from deltaw.analysis.records.storage.tensors import Tensors, read_pickled, read_weights


def model_reader(folder: Folder) -> Callable[[], Tensors]:
    """Return what opens the model in a folder; the folder is looked at now, the model when it is needed.

    Raises:
        RecordError: There is no model, or no telling which file it is.
    """
    storage, names = folder.storage, folder.names
    own_name = adapter_file(names)
    if own_name is not None:
        return partial(read_file, storage, own_name)
    file = weights_file(names)
    if file is not None:
        return partial(read_weights, storage, file)
    if is_sharded(names):
        return partial(_read_sharded, storage if DCP_METADATA in names else storage.folder(FSDP))
    if is_universal(names):
        return lambda: _read_universal(storage)  # no place: a list of this folder's files says nothing of those inside
    own = [] if parts_of_one(names) else model_files(names)
    if len(own) == 1:
        return partial(read_file, storage, own[0])
    adapters = adapters_in(folder)
    if adapters:
        each = "; in a run's folder, RUN/NAME opens the adapter of this name of all checkpoints" if adapters[1:] else ""
        raise RecordError(f"{storage.where}: holds the adapters {', '.join(adapters)}; open one of these folders{each}")
    there = ", ".join(names[:8]) or "no files"
    raise RecordError(f"{storage.where}: holds no model weights (there are {there}); {unreadable(names)}")


def place_of(reader: Callable[[], Tensors]) -> Place | None:
    """Return where a model stands that a ``partial`` of a storage, perhaps a file, and more opens.

    All files of a folder count: an index says which of them the model is.

    Example:
        >>> from pathlib import Path
        >>> from deltaw.analysis.records.storage.files import LocalStorage
        >>> storage = LocalStorage(Path("run"))
        >>> place_of(partial(read_file, storage, "step-1.safetensors")) == (storage, "step-1.safetensors")
        True
        >>> place_of(partial(read_weights, storage, "model.safetensors")) == (storage, None)
        True
    """
    if not isinstance(reader, partial) or not reader.args or not isinstance(reader.args[0], Storage):
        return None
    return reader.args[0], reader.args[1] if reader.func is read_file else None


def read_file(storage: Storage, file: str) -> Tensors:
    """Return the tensors of one file.

    Raises:
        RecordError: It is damaged, or a pickle that needs code to run.
    """
    return read_weights(storage, file) if file.endswith(".safetensors") else read_pickled(storage, file)


def _read_universal(storage: Storage) -> Tensors:
    from deltaw.analysis.records.foreign.universal import UniversalTensors  # it needs torch

    return UniversalTensors(storage)


def _read_sharded(storage: Storage) -> Tensors:
    from deltaw.analysis.records.foreign.dcp import ShardedTensors  # it needs torch to read the metadata

    return ShardedTensors(storage)
