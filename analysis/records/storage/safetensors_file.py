"""One safetensors file: eight bytes with the length of the header, the header in JSON, the tensors' bytes.

The header is a stranger's claim. Each entry is checked against the file before anything is set aside for it: the dtype
is known, the shape is of whole numbers, the bytes from offset to offset lie in the file and are as many as the shape
needs. All of that needs no torch, which is loaded where a tensor is read.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from deltaw.adapters.errors import RecordError
from deltaw.analysis.records.storage.files import Buffer, Storage, parsed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NAME_LIMIT = 4096  # characters
HEADER_LIMIT = 100_000_000  # bytes, as in the safetensors library
# torch's name of each dtype, and the bytes of a number
DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "C64": ("complex64", 8),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
PACKED = ("F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ")  # no weight by themselves: passed over
READ_AT_MOST = 2**18  # bytes of a tensor up to which reading it is faster than mapping its pages
LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class Entry:
    """A tensor of a file: its dtype by torch's name, its shape, and where its bytes start."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    length: int


def read_header(storage: Storage, name: str) -> dict[str, Entry]:
    """Return what a file holds, by tensor name.

    Raises:
        RecordError: The file is missing, cut, or its header is not true of it.
    """
    size = storage.size(name)
    return header_entries(header_text(storage, name, size), size, storage.file(name))


def read_metadata(storage: Storage, name: str) -> dict[str, str]:
    """Return the texts that a file holds beside its tensors, its ``__metadata__``; only texts are taken.

    Raises:
        RecordError: As ``read_header``.
    """
    raw = parsed(header_text(storage, name, storage.size(name)), storage.file(name), unique=True)
    found = raw.get("__metadata__") if isinstance(raw, dict) else None
    return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}


def header_text(storage: Storage, name: str, size: int) -> bytes:
    """Return the JSON of a file's header.

    Raises:
        RecordError: The file of ``size`` bytes is missing, cut, or none of safetensors.
    """
    where = storage.file(name)
    if size < 8:
        raise RecordError(f"{where}: has {size} bytes; it is truncated")
    first = bytes(storage.read(name, 0, min(size, len(LFS)), size))
    if first == LFS:
        raise RecordError(f"{where}: is a Git LFS pointer, not the weights; run git lfs pull there")
    length = int.from_bytes(first[:8], "little")
    if length > min(size - 8, HEADER_LIMIT):
        raise RecordError(
            f"{where}: its header should have {length} bytes, the file has {size}: it is truncated or none"
        )
    return bytes(storage.read(name, 8, length, size))


def header_entries(text: bytes, size: int, where: str) -> dict[str, Entry]:
    """Return what a header says that a file of ``size`` bytes holds; ``where`` is for messages.

    The checkpoints of a run have the same header, which is parsed once and shared: it is only read.

    Raises:
        RecordError: It is damaged, or not true of such a file.
    """
    header = _Header(text, size, where)
    return _parsed(header)


class _Header(NamedTuple):
    """A header and its file; equal to that of another file whose header has the same bytes."""

    text: bytes
    size: int
    where: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Header) and (self.text, self.size) == (other.text, other.size)

    def __hash__(self) -> int:
        return hash((self.text, self.size))


@functools.lru_cache(maxsize=8)
def _parsed(header: _Header) -> dict[str, Entry]:
    text, size, where = header
    raw = parsed(text, where, unique=True)
    if not isinstance(raw, dict):
        raise RecordError(f"{where}: its header is damaged, it holds no mapping")
    raw.pop("__metadata__", None)
    begin = 8 + len(text)
    found = {}
    ranges = []
    for key, value in raw.items():
        if not 0 < len(key) <= NAME_LIMIT:
            raise RecordError(f"{where}: a tensor's name has {len(key)} characters; it may have 1 to {NAME_LIMIT}")
        entry = _entry(value, f"{where}: {key:.200}", begin, size)
        if entry is not None:
            found[key] = entry
        ranges.append((*value["data_offsets"], key))
    end, before = 0, ""
    for first, last, key in sorted(one for one in ranges if one[0] < one[1]):
        if first < end:
            raise RecordError(f"{where}: {before:.200} and {key:.200} share bytes; each tensor has its own")
        if first > end:
            raise RecordError(f"{where}: the bytes before {key:.200} are no tensor's: it was changed")
        end, before = last, key
    if begin + end != size:
        raise RecordError(f"{where}: has {size} bytes, its header speaks of {begin + end}: it was changed")
    return found


def read_tensor(storage: Storage, name: str, entry: Entry, index: int | None = None, size: int | None = None) -> Tensor:
    """Return a tensor of a file, or one of its slices along the first dimension.

    Arguments:
        storage, name, entry: The file, and what its header says of the tensor.
        index: Of the slice.
        size: The file's bytes, where they are known.

    Raises:
        RecordError: The file cannot be read, or is shorter than it was.
    """
    shape, start, length = entry.shape, entry.start, entry.length
    if index is not None:
        shape, length = shape[1:], length // shape[0]
        start += index * length
    data = (storage.read if length <= READ_AT_MOST else storage.mapped)(name, start, length, size)
    return as_tensor(data, torch_dtype(entry.dtype), shape)


def read_tensors(
    storage: Storage, name: str, entries: Mapping[str, Entry], size: int | None = None
) -> dict[str, Tensor]:
    """Return several tensors of a file, by key; small ones that lie side by side are read at once.

    Arguments:
        storage, name, size: As in ``read_tensor``.
        entries: What the file's header says of each.

    Raises:
        RecordError: As ``read_tensor``.
    """
    found = {}
    for start, group in _side_by_side(entries):
        whole = sum(entry.length for _, entry in group)
        data = memoryview((storage.read if whole <= READ_AT_MOST else storage.mapped)(name, start, whole, size))
        for key, entry in group:
            own = data[entry.start - start : entry.start - start + entry.length]
            found[key] = as_tensor(own, torch_dtype(entry.dtype), entry.shape)
    return {key: found[key] for key in entries}


def _side_by_side(entries: Mapping[str, Entry]) -> list[tuple[int, list[tuple[str, Entry]]]]:
    """Return where each group of entries begins, of at most ``READ_AT_MOST`` bytes or one alone."""
    groups: list[tuple[int, list[tuple[str, Entry]]]] = []
    for key, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].length)):
        if groups:
            start, group = groups[-1]
            end = start + sum(one.length for _, one in group)
            if entry.start == end and end + entry.length - start <= READ_AT_MOST:
                group.append((key, entry))
                continue
        groups.append((entry.start, [(key, entry)]))
    return groups


def torch_dtype(name: str) -> torch.dtype:
    """Return the dtype of torch that an entry names."""
    import torch

    found: torch.dtype = getattr(torch, name)
    return found


def as_tensor(data: Buffer, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Return the tensor that some bytes are; it shares their memory."""
    import torch

    if len(data) == 0:
        return torch.empty(shape, dtype=dtype)
    found = torch.frombuffer(data, dtype=dtype)
    if found.data_ptr() % dtype.itemsize:
        found = torch.frombuffer(data, dtype=torch.uint8).clone().view(dtype)
    return found.view(shape)


def _entry(raw: Any, where: str, begin: int, size: int) -> Entry | None:
    try:
        dtype, shape, (first, last) = raw["dtype"], tuple(raw["shape"]), raw["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise RecordError(f"{where}: its entry in the header is damaged ({raw!r:.80})") from None
    if any(type(number) is not int or not 0 <= number < 2**62 for number in (*shape, first, last)):
        raise RecordError(f"{where}: its shape {shape!r:.80} or offsets {first!r:.40}, {last!r:.40} are no sizes")
    if first > last or begin + last > size:
        raise RecordError(f"{where}: its bytes end at {begin + last}, the file has {size}: it is truncated")
    if dtype in PACKED:
        return None
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise RecordError(f"{where}: has the dtype {dtype!r:.40}; known are {', '.join(DTYPES)}")
    torch_name, itemsize = DTYPES[dtype]
    needed = itemsize * math.prod(shape)
    if len(shape) > 8 or math.prod(side for side in shape if side) >= 2**60:  # which torch cannot count
        raise RecordError(f"{where}: its shape {shape!r:.80} is none of a weight")
    if needed != last - first:
        raise RecordError(
            f"{where}: {dtype} of shape {shape!r:.80} needs {needed} bytes, the header gives {last - first}"
        )
    return Entry(torch_name, shape, begin + first, last - first)
