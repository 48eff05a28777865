"""Loops compiled by numba: one pass over a matrix, where torch would need one for every operation.

They run on torch's own threads, which libgomp keeps: after one of torch's operations these wait, busily, for the next,
and any other thread would have to wait for them. Where libgomp is not found, the loops keep to the calling thread.
What a thread does is a chunk of rows, whatever the number of threads, and the chunks' sums are added in order: the
result does not depend on who did what.

A loop over all of a matrix is a *task*: a function of the address of a *job*, a record of numpy's that begins with
COUNTS and goes on with sizes and the addresses of the matrices. Every thread claims chunks until none is left.

The compiled code is kept beside its file or, where that cannot be written, in the user's cache folder, so that only the
first call ever waits for the compiler (seconds). Where neither can be written, every process waits once.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba.extending import intrinsic
from numpy.typing import NDArray

# Sums may be taken in any order and products fused into them; NaN and infinity keep their meaning.
_ORDER_FREE = {"reassoc", "contract", "nsz"}
COUNTS = ["next", "done", "chunks"]  # the next chunk to be claimed, how many are done, and how many there are

carray: Any = vars(numba)["carray"]
_intrinsic: Any = intrinsic


def compiled(function: Callable[..., None], **options: Any) -> Any:
    """Compile a function at its first call, for threads side by side."""
    njit: Any = functools.partial(numba.njit, **{"nogil": True, "fastmath": _ORDER_FREE, **options})
    try:
        return njit(cache=True)(function)
    except RuntimeError:  # no folder for the cache
        return njit()(function)


def _find_openmp() -> Any:
    """Return libgomp's (or what stands in for it) entry for a parallel region, or ``None``."""
    try:
        entry = ctypes.CDLL(None).GOMP_parallel  # torch has loaded it for all to see
    except (AttributeError, OSError, TypeError):
        return None
    entry.argtypes, entry.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return entry


_openmp = _find_openmp()


def on_torch_threads() -> bool:
    """Whether the loops run on all of torch's threads."""
    return _openmp is not None


def run(make: Callable[[Any], Any], dtype: torch.dtype, job: NDArray[Any]) -> None:
    """Run the task that is made for float32 or float64 on a job."""
    task, threads = make(np.float32 if dtype == torch.float32 else np.float64), torch.get_num_threads()
    if _openmp is not None and threads > 1 and job["chunks"] > 1:
        _openmp(task.address, job.ctypes.data, threads, 0)
    else:
        task.ctypes(job.ctypes.data)


def callback(function: Callable[[Any], None]) -> Any:
    """Compile a function of an address for C to call, now."""
    signature = numba.types.void(numba.types.voidptr)
    try:
        return numba.cfunc(signature, cache=True)(function)
    except RuntimeError:  # no folder for the cache
        return numba.cfunc(signature)(function)


def record(*names: str, real: tuple[str, ...] = ()) -> np.dtype[Any]:
    """Return the type of a job: COUNTS, whole numbers of these names, and real ones."""
    return np.dtype([(name, np.int64) for name in [*COUNTS, *names]] + [(name, np.float64) for name in real])


@_intrinsic  # type: ignore[untyped-decorator]
def one_more(_: Any, address: Any) -> Any:
    """Add 1 to the whole number at an address, before any other thread can look, and return what it was."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        whole = ir.IntType(64)
        place = builder.inttoptr(arguments[0], whole.as_pointer())
        return builder.atomic_rmw("add", place, ir.Constant(whole, 1), "seq_cst")

    return numba.types.int64(numba.types.int64), code


@_intrinsic  # type: ignore[untyped-decorator]
def at(_: Any, address: Any) -> Any:
    """Return an address as a pointer."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(numba.types.voidptr))

    return numba.types.voidptr(numba.types.int64), code


@_intrinsic  # type: ignore[untyped-decorator]
def address_of(_: Any, pointer: Any) -> Any:
    """Return a pointer as an address."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ptrtoint(arguments[0], ir.IntType(64))

    return numba.types.int64(numba.types.voidptr), code
