"""One file of ``torch.save``: which tensors stand in it, where their bytes are, and which of them are the model.

Such a file is a zip archive: ``data.pkl``, a pickle that says what refers to which storage, and a member a storage.
torch's own reader makes every tensor as the pickle says, a byte that is seen as 10^12 numbers as well; here each is
checked against its storage before anything is made of it:

- the pickle is read into plain values alone (``plain_pickle.py``), and may ask for what ``weights_only=True`` lets in;
- members are stored as they are, and lie apart within the file;
- a storage has the bytes that the pickle says, a tensor lies in its storage and has no more numbers than it;
- all tensors together have at most ``SHARED`` times the bytes of the file: as much as tied layers have in common.

A tensor's bytes are mapped when it is asked for.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from typing_extensions import override

from deltaw.adapters.errors import RecordError
from deltaw.adapters.small_files import regular_file
from deltaw.analysis.records.storage.files import Buffer, LocalStorage, plain_name
from deltaw.analysis.records.storage.plain_pickle import (
    FIRST,
    MAPPING,
    PICKLE_LIMIT,
    Call,
    PlainUnpickler,
    Record,
    said,
    whole_sizes,
)
from deltaw.analysis.records.storage.safetensors_file import as_tensor, torch_dtype

if TYPE_CHECKING:
    from torch import Tensor

CONVERT = (
    "if you trust it, save its tensors alone where it was made, as with safetensors.torch.save_file(STATE_DICT, "
    "'model.safetensors'), where STATE_DICT is in torch.load(FILE, weights_only=False)"
)
# Under which key of a file of torch.save a model stands, the preferred ones first.
MODEL_KEYS = ("state_dict", "model_state_dict", "model", "module", "state", "params", "net", "network", "weights")
NO_MODEL = re.compile(r"optim|sched|scaler|rng|random|loss|metric|config|args|hyper|callback|loop|epoch", re.IGNORECASE)
NESTING = 4  # of mappings around the model's own tensors
SHARED = 64  # times that all storages may be used; ALBERT's 12 layers are one
STORAGES = {
    "DoubleStorage": ("float64", 8), "FloatStorage": ("float32", 4), "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2), "LongStorage": ("int64", 8), "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2), "CharStorage": ("int8", 1), "ByteStorage": ("uint8", 1), "BoolStorage": ("bool", 1),
    "ComplexFloatStorage": ("complex64", 8), "ComplexDoubleStorage": ("complex128", 16), "UntypedStorage": ("uint8", 1),
}  # fmt: skip
OTHER_STORAGES = ("QUInt8Storage", "QInt8Storage", "QInt32Storage", "QUInt4x2Storage", "QUInt2x4Storage")


@dataclass(frozen=True)
class Saved:
    """A tensor of a file: its dtype by torch's name, its shape and strides, and where its bytes start in the file."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int
    length: int

    def of(self, data: Buffer) -> Tensor:
        """Return the tensor that its bytes are."""
        import torch

        dtype = torch_dtype(self.dtype)
        if self.length == 0:
            return torch.empty(self.shape, dtype=dtype)
        flat = as_tensor(data, dtype, (self.length // dtype.itemsize,))
        return flat.as_strided(self.shape, self.strides)


@dataclass(frozen=True)
class _Stored:
    """A storage: its numbers, and where they start in the file."""

    dtype: str
    itemsize: int
    numbers: int
    start: int


class _Kind(Record):
    """A class of storages; the dtype that it names and the bytes of a number."""

    of: tuple[str, int]


class _Unpickler(PlainUnpickler):
    dispatch = PlainUnpickler.dispatch | {
        pickle.BINPERSID[0]: pickle._Unpickler.dispatch[pickle.BINPERSID[0]],
        pickle.EMPTY_SET[0]: lambda self: self.append([]),
    }

    def __init__(self, data: bytes, members: Mapping[str, tuple[int, int]], size: int) -> None:
        super().__init__(data)
        self._members, self._left = members, SHARED * size
        self._found: dict[str, Any] = {}
        self._calls = {
            "collections.OrderedDict": MAPPING,
            "collections.Counter": MAPPING,
            "torch.Size": FIRST,
            "torch._utils._rebuild_tensor": Call(self._tensor),
            "torch._utils._rebuild_tensor_v2": Call(self._tensor),
            "torch._utils._rebuild_tensor_v3": Call(self._tensor_of_dtype),
            "torch._utils._rebuild_parameter": FIRST,
            "torch._utils._rebuild_parameter_with_state": FIRST,
            "torch._tensor._rebuild_from_type_v2": Call(self._of_type),
        }

    @override
    def find_class(self, module: str, name: str) -> Any:
        full = f"{module.replace('__builtin__', 'builtins')}.{name}"
        if full not in self._found:
            self._found[full] = self._calls.get(full) or self._kind(full, name)
        return self._found[full]

    def _kind(self, full: str, name: str) -> Any:
        if full in (f"torch.{name}", f"torch.storage.{name}") and name in STORAGES:
            return type(name, (_Kind,), {"of": STORAGES[name]})
        import torch
        from torch import _weights_only_unpickler

        known: Any = _weights_only_unpickler

        found = getattr(torch, name, None) if full == f"torch.{name}" and name.isidentifier() else None
        if isinstance(found, torch.dtype):
            return found
        if full in known._get_allowed_globals() or full in known._get_user_allowed_globals():
            return type("Opaque", (Record,), {})
        if full in [f"torch.{other}" for other in OTHER_STORAGES]:
            return type("Opaque", (Record,), {})
        raise pickle.UnpicklingError(f"it holds {full:.100}")

    @override
    def persistent_load(self, pid: Any) -> Any:
        if type(pid) is not tuple or len(pid) != 5 or type(pid[2]) is not str or type(pid[4]) is not int:
            raise pickle.UnpicklingError("a storage is not named as torch does")
        _, kind, key, _, numbers = pid
        if not (isinstance(kind, type) and issubclass(kind, _Kind)):
            return Record()
        if key not in self._members:
            raise pickle.UnpicklingError(f"the storage {key!r:.40} is not there")
        dtype, itemsize = kind.of
        start, length = self._members[key]
        if not 0 <= numbers * itemsize <= length:
            raise pickle.UnpicklingError(f"the storage {key!r:.40} has {length} bytes, fewer than it should")
        return _Stored(dtype, itemsize, numbers, start)

    def _tensor(self, storage: Any = None, offset: Any = None, size: Any = None, strides: Any = None, *_: Any) -> Any:
        if not isinstance(storage, _Stored):
            return Record()  # of quantised numbers, or without any
        shape, steps, (first,) = whole_sizes(size), whole_sizes(strides), whole_sizes((offset,))
        if len(shape) != len(steps):
            raise pickle.UnpicklingError("a tensor has other strides than sizes")
        if math.prod(side for side in shape if side) >= 2**60:  # which torch cannot count
            raise pickle.UnpicklingError("a tensor has more sizes than bytes can be")
        count = math.prod(shape)
        span = 1 + sum((side - 1) * step for side, step in zip(shape, steps, strict=True)) if count else 0
        if first + span > storage.numbers or count > span:
            raise pickle.UnpicklingError(f"a tensor of {count:.3g} numbers is larger than its storage")
        self._left -= count * storage.itemsize
        if self._left < 0:
            raise pickle.UnpicklingError(f"its tensors use its bytes more than {SHARED} times")
        start = storage.start + first * storage.itemsize
        return Saved(storage.dtype, shape, steps, start, span * storage.itemsize)

    def _tensor_of_dtype(self, storage: Any = None, *args: Any) -> Any:
        import torch

        dtype = args[5] if len(args) > 5 else None
        if not isinstance(storage, _Stored) or not isinstance(dtype, torch.dtype):
            return Record()
        bytes_there = storage.numbers * storage.itemsize
        name = str(dtype).removeprefix("torch.")
        return self._tensor(_Stored(name, dtype.itemsize, bytes_there // dtype.itemsize, storage.start), *args[:3])

    def _of_type(self, func: Any = None, kind: Any = None, args: Any = (), *_: Any) -> Any:
        plain = isinstance(func, Call) and func.make != self._of_type
        return self._made(func, args) if plain else Record()


def saved_in(file: IO[bytes], size: int) -> Any:
    """Return what a file of ``size`` bytes holds: plain values, with ``Saved`` in the place of tensors.

    Raises:
        ValueError, and others that damaged bytes lead to: It is no such file, or one of its parts is not true.
    """
    members, data = _archive(file, size)
    return _Unpickler(data, members, size).load()


def _archive(file: IO[bytes], size: int) -> tuple[dict[str, tuple[int, int]], bytes]:
    """Start and length of every storage in a file, and its pickle."""
    end = zipfile._EndRecData(file)  # type: ignore[attr-defined]
    if not end or end[zipfile._ECD_SIZE] > PICKLE_LIMIT:  # type: ignore[attr-defined]
        raise _NoArchiveError
    with zipfile.ZipFile(file) as archive:
        members = sorted(archive.infolist(), key=lambda member: member.header_offset)
        if any(m.compress_type != zipfile.ZIP_STORED or m.compress_size != m.file_size for m in members):
            raise ValueError("it is compressed, or says it is larger than it is")
        ends = [member.header_offset for member in members[1:]] + [size]
        pickles = [member for member in members if re.fullmatch(r"[^/]+/data\.pkl", member.filename)]
        if len(pickles) != 1 or pickles[0].file_size > PICKLE_LIMIT:
            raise ValueError(f"it has no pickle of at most {PICKLE_LIMIT} bytes")
        prefix = pickles[0].filename.removesuffix("data.pkl")
        found: dict[str, tuple[int, int]] = {}
        for member, until in zip(members, ends, strict=True):
            name = member.filename.removeprefix(f"{prefix}data/")
            if name == member.filename:
                continue
            file.seek(member.header_offset)
            header = file.read(30)
            start = (
                member.header_offset
                + 30
                + int.from_bytes(header[26:28], "little")
                + int.from_bytes(header[28:30], "little")
            )
            if header[:4] != b"PK\3\4" or start + member.file_size > until or name in found:
                raise ValueError(f"its member {name!r:.40} does not lie apart within the file")
            found[name] = start, member.file_size
        order = f"{prefix}byteorder"
        if any(m.filename == order and (m.file_size > 10 or archive.read(m) != b"little") for m in members):
            raise ValueError("its numbers are written with the largest part first")
        return found, archive.read(pickles[0])


class _NoArchiveError(ValueError):
    """The end of a zip archive is not there."""


def model_in_file(storage: LocalStorage, file: str) -> dict[str, Saved]:
    """Return the model's tensors in a file of a training loop: at its top, or under a key for it.

    Raises:
        RecordError: The file is no such, is compressed, or needs code to run; nothing of it has run then.
    """
    where = storage.file(file)
    size = storage.size(file)
    try:
        with regular_file(storage.path / plain_name(file, storage.where)) as opened:
            found = saved_in(opened, size)
    except (_NoArchiveError, zipfile.BadZipFile):
        raise RecordError(f"{where}: is damaged, or of torch's format from before 2020; {CONVERT}") from None
    except Exception as error:  # whatever the unpickler makes of damaged bytes
        why = said(error).removeprefix("UnpicklingError: ")
        raise RecordError(f"{where}: holds more than tensors, or is damaged ({why}); {CONVERT}") from None
    tensors = _Finder(where).model_in(found, NESTING)
    if not tensors:
        raise RecordError(f"{where}: holds no tensors by name ({_described(found)}); {CONVERT}")
    return tensors


def saved_in_bytes(data: Buffer) -> Any:
    """Return what the bytes of such a file hold, as ``saved_in``."""
    return saved_in(io.BytesIO(data), len(data))


class _Finder:
    """Looks for models in nested mappings, into each once: a pickle may have one in a million places."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._models: dict[tuple[int, int], dict[str, Saved]] = {}
        self._tensors: dict[int, dict[str, Saved]] = {}

    def model_in(self, found: Any, depth: int) -> dict[str, Saved]:
        """Return the tensors of the model, none where there is none."""
        if not isinstance(found, dict) or depth == 0:
            return {}
        if (id(found), depth) not in self._models:
            self._models[id(found), depth] = self._searched(found, depth)
        return self._models[id(found), depth]

    def _searched(self, found: dict[Any, Any], depth: int) -> dict[str, Saved]:
        own = self._flat(found)
        if any(len(tensor.shape) > 1 for tensor in own.values()):
            return own
        inner = {key: self.model_in(found[key], depth - 1) for key in found if isinstance(key, str)}
        inner = {key: tensors for key, tensors in inner.items() if tensors and not NO_MODEL.search(key)}
        for key in MODEL_KEYS:
            if key in inner:
                return inner[key]
        if len(inner) > 1 and not all(isinstance(found[key], dict) and self._flat(found[key]) for key in inner):
            inner = {}
        if len(inner) > 1:
            shown = ", ".join(key[:40] for key in list(inner)[:8])
            raise RecordError(
                f"{self._where}: holds several models ({shown}); save the one that is meant in a file of its own"
            )
        return next(iter(inner.values()), own)

    def _flat(self, found: dict[Any, Any]) -> dict[str, Saved]:
        if id(found) not in self._tensors:
            own = {key: value for key, value in found.items() if isinstance(key, str) and isinstance(value, Saved)}
            self._tensors[id(found)] = own
        return self._tensors[id(found)]


def _described(found: Any) -> str:
    if not isinstance(found, dict):
        return f"it is a {type(found).__name__}"
    return f"its keys are {', '.join(repr(key)[:40] for key in list(found)[:8])}" if found else "it is empty"
