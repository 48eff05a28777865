"""A folder of torch.distributed.checkpoint: ``.metadata`` says in which file which block of a tensor starts.

``.metadata`` is a pickle. It is read by an unpickler that makes nothing of torch's: every class that the format uses is
replaced by an empty record here, any other is refused, and so is every instruction that the format does not need. The
blocks are what ``torch.save`` wrote; they are read with ``weights_only=True``.
"""

import io
import math
import pickle
import zipfile
from collections.abc import Collection
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from deltaw.adapters.errors import RecordError
from deltaw.analysis.records.file_names import DCP_METADATA
from deltaw.analysis.records.storage import Storage, plain_name
from deltaw.analysis.records.tensors import Tensors

METADATA_LIMIT = 50_000_000  # bytes
OUTER = ("model", "state_dict", "module", "app")  # the levels of a state dict above the model's own names


class _Record:
    """Stands for any object of the format: keeps what it was made of, does nothing."""

    state: Any = None

    def __new__(cls, *args: Any) -> "_Record":
        del args
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        del args

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def get(self, key: str) -> Any:
        """Return a field, ``None`` where there is none."""
        return self.state.get(key) if isinstance(self.state, dict) else None


def _first(*args: Any) -> Any:
    return args[0] if args else None


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


class _Unpickler(pickle._Unpickler):
    """Reads ``.metadata``. In Python, not C: its memory grows with the file alone."""

    # Instructions that set aside memory by a number in the file, hash what is nested, or reach outside.
    dispatch: ClassVar[dict[int, Any]] = {
        code: do
        for code, do in pickle._Unpickler.dispatch.items()
        if bytes([code])
        not in (
            pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.PERSID, pickle.BINPERSID,
            pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.INST, pickle.OBJ, pickle.FROZENSET, pickle.ADDITEMS,
            pickle.EMPTY_SET, pickle.DICT, pickle.NEWOBJ_EX,
        )
    }  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of a class of the format.

        Raises:
            UnpicklingError: It is none of them.
        """
        if module == "torch":
            found = getattr(torch, name, None) if name.isidentifier() else None
            if isinstance(found, torch.dtype):
                return found
            if name == "Size":
                return _first
        if module == "torch.serialization" and name == "_get_layout":
            return _first
        if name in _CLASSES.get(module, ()):
            return _Record if name in ("_MEM_FORMAT_ENCODING",) else type(name, (_Record,), {})
        if (module, name) in (("collections", "OrderedDict"), ("builtins", "dict")):
            return dict
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which no such folder needs")

    def _key(self, key: Any) -> Any:
        if not isinstance(key, (str, int, _Record)):
            raise pickle.UnpicklingError(f"a key is a {type(key).__name__}")
        return key

    def load_setitem(self) -> None:
        """Set one entry of a mapping; its key is plain."""
        value, key = self.stack.pop(), self.stack.pop()  # type: ignore[attr-defined]
        self._set([key, value])

    def load_setitems(self) -> None:
        """Set several entries."""
        self._set(self.pop_mark())  # type: ignore[attr-defined]

    def _set(self, items: list[Any]) -> None:
        into = self.stack[-1]  # type: ignore[attr-defined]
        if type(into) is not dict:
            raise pickle.UnpicklingError("entries are put into what is no mapping")
        for k in range(0, len(items) - 1, 2):
            into[self._key(items[k])] = items[k + 1]

    def load_reduce(self) -> None:
        """Call a stand-in."""
        args, func = self.stack.pop(), self.stack[-1]  # type: ignore[attr-defined]
        if not isinstance(args, tuple) or (func is dict and args):
            raise pickle.UnpicklingError("a call has no plain arguments")
        self.stack[-1] = func(*args)  # type: ignore[attr-defined]

    def load_build(self) -> None:
        """Give a record its state; nothing else has any."""
        state, into = self.stack.pop(), self.stack[-1]  # type: ignore[attr-defined]
        if not isinstance(into, _Record):
            raise pickle.UnpicklingError("a state is given to what has none")
        into.__setstate__(state)

    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.BUILD[0]] = load_build


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
        if size > METADATA_LIMIT:
            raise RecordError(f"{where}: has {size} bytes; at most {METADATA_LIMIT} are read")
        try:
            root = _Unpickler(io.BytesIO(bytes(storage.read(DCP_METADATA, 0, size, size)))).load()
            self._shapes: dict[str, tuple[int, ...]] = {}
            self._dtypes: dict[str, torch.dtype] = {}
            self._blocks: dict[str, list[_Block]] = {}
            self._fill(root)
        except RecordError:
            raise
        except Exception as error:  # whatever the unpickler makes of damaged bytes
            raise RecordError(f"{where}: is no metadata of torch.distributed.checkpoint ({_short(error)})") from None
        if not self._shapes:
            raise RecordError(f"{where}: speaks of no tensor of a model")

    def _fill(self, root: _Record) -> None:
        planned = root.get("planner_data")
        stored_blocks = {}
        for index, info in root.get("storage_data").items():
            offset = index.get("offset")
            stored_blocks[index.get("fqn"), None if offset is None else _sizes(offset)] = info
        for full, stored in root.get("state_dict_metadata").items():
            name = _name(full, planned.get(full) if isinstance(planned, dict) else None)
            if name is None or stored.get("chunks") is None:
                continue
            self._shapes[name] = _sizes(stored.get("size"))
            self._dtypes[name] = _dtype(stored.get("properties"))
            self._blocks[name] = []
            for chunk in stored.get("chunks"):
                offsets, sizes = _sizes(chunk.get("offsets")), _sizes(chunk.get("sizes"))
                info = stored_blocks.get((full, offsets)) or stored_blocks.get((full, None))
                if info is None:
                    raise ValueError(f"a block of {full} is in no file")
                if info.get("transform_descriptors"):
                    raise ValueError(f"{full} is compressed")
                file = plain_name(info.get("relative_path"), self.where)
                start, length = _sizes((info.get("offset"), info.get("length")))
                self._blocks[name].append(_Block(offsets, sizes, file, start, length))

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
        data = bytes(self._storage.read(block.file, block.start, block.length))
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                members = archive.infolist()
            if any(m.compress_type != zipfile.ZIP_STORED for m in members) or sum(m.file_size for m in members) > len(
                data
            ):
                raise ValueError("it is compressed")
            found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception as error:  # whatever the unpickler makes of damaged bytes
            raise RecordError(f"{where}: the block of {name} cannot be read ({_short(error)})") from None
        if not isinstance(found, Tensor) or tuple(found.shape) != block.sizes or found.dtype != dtype:
            told = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise RecordError(f"{where}: the block of {name} is {told}, the metadata says {block.sizes} in {dtype}")
        return found


def _name(full: Any, path: Any) -> str | None:
    """The model's own name of an entry, without the levels above; ``None`` for the optimizer's and the like."""
    if not isinstance(full, str):
        raise ValueError("a name is no text")
    parts = list(path) if isinstance(path, (tuple, list)) and path else [full]
    while len(parts) > 1 and parts[0] in OUTER:
        parts = parts[1:]
    if any(isinstance(part, str) and part.startswith("optim") for part in parts[:1]) or full.startswith("optim"):
        return None
    return ".".join(str(part) for part in parts)


def _sizes(raw: Any) -> tuple[int, ...]:
    found = tuple(raw)
    if len(found) > 8 or any(type(size) is not int or not 0 <= size < 2**62 for size in found):
        raise ValueError(f"{found!r:.60} are no sizes")
    return found


def _dtype(properties: Any) -> torch.dtype:
    state = properties.state
    found = state[0] if isinstance(state, tuple) and state else properties.get("dtype")
    if not isinstance(found, torch.dtype):
        raise ValueError("a dtype is missing")
    return found


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n", 1)[0][:200]
