"""One safetensors file: eight bytes with the length of the header, the header in JSON, the tensors' bytes.

The header is a stranger's claim. Each entry is checked against the file before anything is set aside for it: the dtype
is known, the shape is of whole numbers, the bytes from offset to offset lie in the file and are as many as the shape
needs.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deltaw.adapters.errors import RecordError
from deltaw.analysis.records.storage import Buffer, Place, parsed

HEADER_LIMIT = 100_000_000  # bytes, as in the safetensors library
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
PACKED = ("F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ")  # no weight by themselves: passed over
LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class Entry:
    """A tensor of a file: its dtype, its shape, and where its bytes start."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    length: int


def read_header(place: Place, name: str) -> dict[str, Entry]:
    """Return what a file holds, by tensor name.

    Raises:
        RecordError: The file is missing, cut, or its header is not true of it.
    """
    size = place.size(name)
    return header_entries(header_text(place, name, size), size, place.file(name))


def header_text(place: Place, name: str, size: int) -> bytes:
    """Return the JSON of a file's header.

    Raises:
        RecordError: The file of ``size`` bytes is missing, cut, or none of safetensors.
    """
    where = place.file(name)
    if size < 8:
        raise RecordError(f"{where}: has {size} bytes; it is truncated")
    first = bytes(place.read(name, 0, min(size, len(LFS)), size))
    if first == LFS:
        raise RecordError(f"{where}: is a Git LFS pointer, not the weights; run git lfs pull there")
    length = int.from_bytes(first[:8], "little")
    if length > min(size - 8, HEADER_LIMIT):
        raise RecordError(
            f"{where}: its header should have {length} bytes, the file has {size}: it is truncated or none"
        )
    return bytes(place.read(name, 8, length, size))


def header_entries(text: bytes, size: int, where: str) -> dict[str, Entry]:
    """Return what a header says that a file of ``size`` bytes holds; ``where`` is for messages.

    Raises:
        RecordError: It is damaged, or not true of such a file.
    """
    raw = parsed(text, where)
    if not isinstance(raw, dict):
        raise RecordError(f"{where}: its header is damaged, it holds no mapping")
    raw.pop("__metadata__", None)
    begin = 8 + len(text)
    found = {}
    ends = [begin]
    for key, value in raw.items():
        entry = _entry(value, f"{where}: {key}", begin, size)
        if entry is not None:
            found[key] = entry
            ends.append(entry.start + entry.length)
    if len(ends) == len(raw) + 1 and max(ends) != size:
        raise RecordError(f"{where}: has {size} bytes, its header speaks of {max(ends)}: it was changed")
    return found


def read_tensor(place: Place, name: str, entry: Entry, index: int | None = None) -> Tensor:
    """Return a tensor of a file, or one of its slices along the first dimension.

    Raises:
        RecordError: The file cannot be read, or is shorter than it was.
    """
    shape, start, length = entry.shape, entry.start, entry.length
    if index is not None:
        shape, length = shape[1:], length // shape[0]
        start += index * length
    return as_tensor(place.read(name, start, length), entry.dtype, shape)


def as_tensor(data: Buffer, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Return the tensor that some bytes are; it shares their memory."""
    if len(data) == 0:
        return torch.empty(shape, dtype=dtype)
    flat = torch.frombuffer(data, dtype=torch.uint8)
    if flat.data_ptr() % dtype.itemsize:
        flat = flat.clone()
    return flat.view(dtype).view(shape)


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
    needed = DTYPES[dtype].itemsize * math.prod(shape)
    if len(shape) > 8 or math.prod(side for side in shape if side) >= 2**60:  # which torch cannot count
        raise RecordError(f"{where}: its shape {shape!r:.80} is none of a weight")
    if needed != last - first:
        raise RecordError(
            f"{where}: {dtype} of shape {shape!r:.80} needs {needed} bytes, the header gives {last - first}"
        )
    return Entry(DTYPES[dtype], shape, begin + first, last - first)
