"""A folder of torch.distributed.checkpoint: ``.metadata`` says in which file which block of a tensor starts.

``.metadata`` is a pickle, read as ``plain_pickle.py`` does: every class that the format uses is an empty record here,
any other is refused, and so is every instruction that the format does not need. The blocks are what ``torch.save``
wrote; they are read as its files are (``torch_file.py``), and no two share bytes.
"""

import itertools
import math
import pickle
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from deltaw.adapters.errors import RecordError
from deltaw.analysis.records.storage.file_names import DCP_METADATA
from deltaw.analysis.records.storage.files import Storage, plain_name
from deltaw.analysis.records.storage.plain_pickle import (
    FIRST,
    MAPPING,
    PICKLE_LIMIT,
    PlainUnpickler,
    Record,
    said,
    whole_sizes,
)
from deltaw.analysis.records.storage.tensors import Tensors
from deltaw.analysis.records.storage.torch_file import Saved, saved_in_bytes

OUTER = ("model", "state_dict", "module", "app")  # the levels of a state dict above the model's own names
NAME_LIMIT = 4096  # characters of a name, and levels of a state dict above it

_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties",
        "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"},
}  # fmt: skip


class _Unpickler(PlainUnpickler):
    """Reads ``.metadata``."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._found: dict[tuple[str, str], Any] = {}

    @override
    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of a class of the format.

        Raises:
            UnpicklingError: It is none of them.
        """
        if (module, name) not in self._found:
            self._found[module, name] = self._stand_in(module, name)
        return self._found[module, name]

    def _stand_in(self, module: str, name: str) -> Any:
        if module == "torch":
            found = getattr(torch, name, None) if name.isidentifier() else None
            if isinstance(found, torch.dtype):
                return found
            if name == "Size":
                return FIRST
        if (module, name) == ("torch.serialization", "_get_layout"):
            return FIRST
        if name in _CLASSES.get(module, ()):
            return type(name, (Record,), {})
        if (module, name) in (("collections", "OrderedDict"), ("builtins", "dict")):
            return MAPPING
        raise pickle.UnpicklingError(f"it holds {module:.60}.{name:.60}, which no such folder needs")


class _Block:
    """A block of a tensor: where it starts in the tensor, its sizes, its bytes in a file."""

    def __init__(self, offsets: tuple[int, ...], sizes: tuple[int, ...], file: str, start: int, length: int) -> None:
        self.offsets, self.sizes, self.file, self.start, self.length = offsets, sizes, file, start, length

    @property
    def slices(self) -> tuple[slice, ...]:
        """Where it stands in the tensor."""
        return tuple(slice(o, o + n) for o, n in zip(self.offsets, self.sizes, strict=True))


class ShardedTensors(Tensors):
    """The model's tensors of such a folder.

    Raises:
        RecordError: ``.metadata`` is damaged, or holds what no such folder needs; nothing of it has run then.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage, self.where = storage, storage.where
        where, size = storage.file(DCP_METADATA), storage.size(DCP_METADATA)
        if size > PICKLE_LIMIT:
            raise RecordError(f"{where}: has {size} bytes; at most {PICKLE_LIMIT} are read")
        try:
            root = _Unpickler(bytes(storage.read(DCP_METADATA, 0, size, size))).load()
            self._shapes: dict[str, tuple[int, ...]] = {}
            self._dtypes: dict[str, torch.dtype] = {}
            self._blocks: dict[str, list[_Block]] = {}
            self._fill(root)
        except RecordError:
            raise
        except Exception as error:  # whatever the unpickler makes of damaged bytes
            raise RecordError(f"{where}: is no metadata of torch.distributed.checkpoint ({said(error)})") from None
        if not self._shapes:
            raise RecordError(f"{where}: speaks of no tensor of a model")

    def _fill(self, root: Any) -> None:
        planned = root.get("planner_data")
        stored_blocks: dict[tuple[str, tuple[int, ...] | None], Record] = {}
        for index, info in _mapping(root.get("storage_data")).items():
            offset = index.get("offset")
            stored_blocks[_text(index.get("fqn")), None if offset is None else whole_sizes(offset)] = info
        left = len(stored_blocks)  # each is of one tensor, so a list of them that many tensors share ends soon
        for full, stored in _mapping(root.get("state_dict_metadata")).items():
            name = _name(_text(full), planned.get(full) if type(planned) is dict else None)
            if name is None or stored.get("chunks") is None:
                continue
            self._shapes[name] = whole_sizes(stored.get("size"))
            self._dtypes[name] = _dtype(stored.get("properties"))
            chunks = stored.get("chunks")
            left -= len(chunks)
            if left < 0:
                raise ValueError("it has more blocks than the files")
            self._blocks[name] = [self._block_of(full, chunk, stored_blocks) for chunk in chunks]
        for file, ranges in self._ranges().items():
            ranges.sort()
            if any(end > start for (_, end), (start, _) in itertools.pairwise(ranges)):
                raise ValueError(f"blocks in {file:.100} overlap")

    def _block_of(self, full: str, chunk: Any, stored: dict[tuple[str, tuple[int, ...] | None], Record]) -> "_Block":
        offsets, sizes = whole_sizes(chunk.get("offsets")), whole_sizes(chunk.get("sizes"))
        info = stored.get((full, offsets)) or stored.get((full, None))
        if info is None:
            raise ValueError(f"a block of {full:.100} is in no file")
        if info.get("transform_descriptors"):
            raise ValueError(f"{full:.100} is compressed")
        file = plain_name(info.get("relative_path"), self.where)
        start, length = whole_sizes((info.get("offset"), info.get("length")))
        return _Block(offsets, sizes, file, start, length)

    def _ranges(self) -> dict[str, list[tuple[int, int]]]:
        """Where in each file the blocks of the model stand."""
        found: dict[str, list[tuple[int, int]]] = {}
        for block in (block for blocks in self._blocks.values() for block in blocks):
            found.setdefault(block.file, []).append((block.start, block.start + block.length))
        return found

    @override
    def names(self) -> Collection[str]:
        return self._shapes

    @override
    def shape(self, name: str) -> tuple[int, ...]:
        self.need(name)
        return self._shapes[name]

    @override
    def dtype_name(self, name: str) -> str:
        self.need(name)
        return str(self._dtypes[name]).removeprefix("torch.")

    @override
    def read(self, name: str, index: int | None = None) -> Tensor:
        self.need(name)
        shape, dtype, blocks = self._shapes[name], self._dtypes[name], self._blocks[name]
        needed = math.prod(shape)
        if sum(math.prod(block.sizes) for block in blocks) != needed:
            raise RecordError(f"{self.where}: the blocks of {name} are not its {shape}")
        if needed * dtype.itemsize > sum(block.length for block in blocks):
            raise RecordError(f"{self.where}: {name} of {shape} needs more bytes than its blocks have")
        for block in blocks:
            ends = [offset + size for offset, size in zip(block.offsets, block.sizes, strict=False)]
            if not len(block.offsets) == len(block.sizes) == len(shape) or any(
                e > s for e, s in zip(ends, shape, strict=True)
            ):
                raise RecordError(f"{self.where}: a block of {name} lies outside of it")
        parts = [self._block(block, name, dtype) for block in blocks]
        whole = parts[0] if len(parts) == 1 else torch.empty(shape, dtype=dtype)
        if len(parts) > 1:
            filled = torch.zeros(shape, dtype=torch.bool)
            for block, part in zip(blocks, parts, strict=True):
                whole[block.slices], filled[block.slices] = part, True
            if not filled.all():  # as many entries as the tensor has, so some are in two blocks
                raise RecordError(f"{self.where}: the blocks of {name} overlap")
        return whole if index is None else whole[index]

    def _block(self, block: _Block, name: str, dtype: torch.dtype) -> Tensor:
        where = self._storage.file(block.file)
        data = self._storage.read(block.file, block.start, block.length)
        try:
            found = saved_in_bytes(data)
        except Exception as error:  # whatever the unpickler makes of damaged bytes
            raise RecordError(f"{where}: the block of {name} cannot be read ({said(error)})") from None
        if not isinstance(found, Saved):
            raise RecordError(f"{where}: the block of {name} is a {type(found).__name__}, no tensor")
        if found.shape != block.sizes or found.dtype != str(dtype).removeprefix("torch."):
            raise RecordError(
                f"{where}: the block of {name} is {found.shape} in {found.dtype}, the metadata says {block.sizes} in "
                f"{dtype}"
            )
        return found.of(data[found.start : found.start + found.length])


def _name(full: str, path: Any) -> str | None:
    """The model's own name of an entry, without the levels above; ``None`` for the optimizer's and the like."""
    parts: list[str] = [full]
    if type(path) in (tuple, list) and 0 < len(path) <= NAME_LIMIT:
        parts = [part if type(part) is str else str(whole_sizes((part,))[0]) for part in path]
    outer = 0
    while outer < len(parts) - 1 and parts[outer] in OUTER:
        outer += 1
    if parts[outer].startswith("optim") or full.startswith("optim"):
        return None
    return _text(".".join(parts[outer:]))


def _text(name: Any) -> str:
    if type(name) is not str or len(name) > NAME_LIMIT:
        raise ValueError(f"a name is no text of at most {NAME_LIMIT} characters")
    return name


def _mapping(found: Any) -> dict[Any, Any]:
    if type(found) is not dict:
        raise ValueError("a mapping is missing")
    return found


def _dtype(properties: Any) -> torch.dtype:
    state = properties.state
    found = state[0] if type(state) is tuple and state else properties.get("dtype")
    if not isinstance(found, torch.dtype):
        raise ValueError("a dtype is missing")
    return found
