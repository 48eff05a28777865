"""Pages of mapped files that come and go while a compiled loop goes through them, see ``compiled.loops``.

The loop's own threads ask the system for them, each for the rows that it is about to read: no other thread has to be
woken, and none waits. In the page cache a file often lies in large pages of two megabytes, which the system maps as a
whole, so that asking costs less than the many faults of a plain look at the memory.
"""

from __future__ import annotations

import mmap
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.extending import intrinsic
from numpy.typing import NDArray

from deltaw.adapters.compiled.loops import inlined

OWN, PASSING, STAYING = range(3)  # memory of one's own; a mapped file whose pages go when they were read, or stay
LARGE_PAGE = 2**21  # bytes that the system may map together
POPULATE_READ = 22  # of Linux 5.14 and later: read the pages in; an error where the file is too short for them
_DONTNEED, _WILLNEED = getattr(mmap, "MADV_DONTNEED", 4), getattr(mmap, "MADV_WILLNEED", 3)
_intrinsic: Any = intrinsic


class Calls(NamedTuple):
    """The system's functions as addresses, 0 for one that there is not.

    Attributes:
        advise: madvise.
        resident: mincore, of Linux.
        populates: 1 where madvise knows ``POPULATE_READ``.
        page: Bytes of a page.
    """

    advise: int
    resident: int
    populates: int
    page: int


@inlined
def bring(calls: NDArray[Any], start: int, end: int) -> bool:
    """Read the pages of some addresses; return whether they came."""
    first = start // calls[3] * calls[3]
    came: bool = calls[2] == 0 or _called(calls[0], first, end - first, POPULATE_READ) == 0
    return came


@inlined
def ask_for(calls: NDArray[Any], start: int, end: int) -> None:
    """Have the system read pages from the disk, where the last one is not in memory, without waiting for them."""
    if calls[1] != 0:
        there, first = np.ones(1, np.int64), start // calls[3] * calls[3]
        last = (end - 1) // calls[3] * calls[3]
        if _called(calls[1], last, calls[3], there.ctypes.data) == 0 and there[0] & 1 == 0:
            _called(calls[0], first, end - first, _WILLNEED)


@inlined
def let_go(calls: NDArray[Any], start: int, end: int) -> None:
    """Let go of the pages of some addresses; who looks at one of them again has it read again."""
    if calls[0] != 0:
        first, last = start // calls[3] * calls[3], -(-end // calls[3]) * calls[3]
        _called(calls[0], first, last - first, _DONTNEED)


@_intrinsic  # type: ignore[untyped-decorator]
def _called(_: Any, function: Any, start: Any, length: Any, how: Any) -> Any:
    """Call a function of C at an address, with two sizes and a third number, and return its whole number."""
    size = numba.types.int64

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(64)
        kind = ir.FunctionType(ir.IntType(32), [word, word, word])
        found = builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])
        return builder.sext(found, word)

    return size(size, size, size, size), code
