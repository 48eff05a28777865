"""Files that are mapped into memory: which tensors lie in one, and when their pages come and go.

Pages come by themselves when they are looked at, one at a time, and stay as long as the mapping. Who goes through many
matrices asks for some rows of each (`bring`), which the system reads in one go while other threads compute, and lets go
of them (`release`). Without madvise, as on Windows, both do nothing.
"""

from __future__ import annotations

import bisect
import ctypes
import errno
import functools
import itertools
import mmap
import sys
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

from deltaw.adapters.errors import RecordError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

_POPULATE_READ = 22  # of Linux 5.14 and later: read the pages in; an error where the file is too short for them


class Mapping(NamedTuple):
    """A file in memory: the address after its last byte, its path, and which one it is, counted from 0."""

    end: int
    path: str
    number: int


_starts: list[int] = []  # addresses, rising
_mappings: dict[int, Mapping] = {}  # by the address where it begins
_numbers = itertools.count()


def remember(whole: NDArray[Any], path: str) -> None:
    """Take note that a file is mapped, as an array of bytes from its first one; forgotten when the array goes."""
    start = whole.ctypes.data
    bisect.insort(_starts, start)
    _mappings[start] = Mapping(start + whole.nbytes, path, next(_numbers))
    weakref.finalize(whole, _forget, start).atexit = False


def _forget(start: int) -> None:
    _mappings.pop(start, None)
    place = bisect.bisect_left(_starts, start)
    if _starts[place : place + 1] == [start]:
        del _starts[place]


def mapping_of(tensor: Tensor) -> Mapping | None:
    """Return the mapping that a tensor lies in, ``None`` where it has memory of its own."""
    start = tensor.data_ptr()
    place = bisect.bisect_right(_starts, start) - 1
    if place < 0 or tensor.numel() == 0:
        return None
    found = _mappings[_starts[place]]
    return found if start < found.end else None


def next_number() -> int:
    """Return a number that is larger than those of all mappings there are, and smaller than those to come."""
    return next(_numbers)


def bring(tensor: Tensor) -> None:
    """Read the pages of a contiguous tensor, where it lies in a mapped file.

    Raises:
        RecordError: The file has become shorter.
    """
    mapping = mapping_of(tensor)
    if mapping is None or _madvise is None:
        return
    start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()
    first = start // mmap.PAGESIZE * mmap.PAGESIZE
    if _madvise(first, end - first, _POPULATE_READ) and ctypes.get_errno() in (errno.EFAULT, errno.EIO):
        raise RecordError(f"{mapping.path}: cannot be read any more: it was cut meanwhile, or the disk fails")


def release(tensor: Tensor) -> None:
    """Let go of the pages of a contiguous tensor; it is read again where it is looked at again.

    What was written into a mapped tensor is lost: only for who has mapped it and wrote nothing.
    """
    if _madvise is None or mapping_of(tensor) is None:
        return
    start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()
    first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last:
        _madvise(first, last - first, mmap.MADV_DONTNEED)


@functools.cache
def page_calls() -> tuple[int, int, int, int] | None:
    """Return what a compiled loop needs to do the same, as ``pages.Calls``; ``None`` where it cannot."""
    if _madvise is None:
        return None
    page = mmap.mmap(-1, mmap.PAGESIZE)
    here = ctypes.c_char.from_buffer(page)
    populates = _madvise(ctypes.addressof(here), mmap.PAGESIZE, _POPULATE_READ) == 0
    del here
    page.close()
    resident = ctypes.cast(ctypes.CDLL(None).mincore, ctypes.c_void_p).value if sys.platform == "linux" else 0
    return ctypes.cast(_madvise, ctypes.c_void_p).value or 0, resident or 0, int(populates), mmap.PAGESIZE


def _find_madvise() -> ctypes._NamedFuncPointer | None:
    if not hasattr(mmap, "MADV_DONTNEED"):
        return None
    try:
        found = ctypes.CDLL(None, use_errno=True).madvise
    except (AttributeError, OSError, TypeError):
        return None
    found.argtypes, found.restype = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int], ctypes.c_int
    return found


_madvise = _find_madvise()
