"""Loops compiled by numba: one pass over a matrix, where torch would need one for every operation.

They run on torch's own threads, which libgomp keeps: after one of torch's operations these wait, busily, for the next,
and any other thread would have to wait for them. Where libgomp is not found, the loops keep to the calling thread.
What a thread does is a chunk of rows, whatever the number of threads, and the chunks' sums are added in order: the
result does not depend on who did what. A chunk's sums are added as soon as those before it are, by who comes by, while
they are in a cache; their memory then serves a later chunk.

All that knows of threads, chunks and addresses is in this file. A loop itself is a plain function of arrays: it does
some rows of them and writes the sums over these rows, if there are any, into an array that no other thread has.

The compiled code is kept beside its file or, where that cannot be written, in the user's cache folder, so that only the
first call ever waits for the compiler (seconds). Where neither can be written, every process waits once.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba.extending import intrinsic
from torch import Tensor

# Sums may be taken in any order and products fused into them; NaN and infinity keep their meaning.
_ORDER_FREE = {"reassoc", "contract", "nsz"}
# A job begins with these whole numbers. The arrays follow, then for every chunk 1 while memory for a chunk's sums is
# taken, and then for every chunk which memory has its sums, counted from 1, once it has them all.
_HEAD = ("next", "busy", "added", "chunks", "step", "taken")

_njit: Any = numba.njit
_carray: Any = vars(numba)["carray"]
_intrinsic: Any = intrinsic
_of_rows: Any = None  # what ``_work`` calls by these names is given to it by ``_task``
_arrays_at: Any = None


def compiled(function: Callable[..., None], fastmath: Any = _ORDER_FREE) -> Any:
    """Compile a function for ``run``, for threads side by side; the compiler chooses the order of its sums."""
    # As a function of its own it would be optimized once alone and once more beside ``_work``, and which of the two
    # copies runs, each with an order of its sums, would depend on who compiled it: inlined, there is one.
    return _njit(nogil=True, fastmath=fastmath, forceinline=True)(function)


def compiled_as_written(function: Callable[..., None]) -> Any:
    """Compile a function for ``run`` without a change to its arithmetic; see ``lanes`` for what makes it fast."""
    return compiled(function, fastmath=False)


def inlined(function: Callable[..., Any]) -> Any:
    """Compile a function for use in loops that are compiled as written."""
    return compiled(function, fastmath=False)


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


def run(of_rows: Any, step: int, total: Tensor, *arrays: Tensor) -> None:
    """Call ``of_rows(rows, *arrays, part)`` for every chunk of rows, and add the parts, in order, to a total.

    Arguments:
        of_rows: A function of ``compiled``. It gets the slice of rows that it is to do, all of the arrays, and an array
            of the total's shape, uninitialised, to write its sums into.
        step: Rows in a chunk.
        total, arrays: On the CPU and contiguous. The first array has the rows.
    """
    chunks = -(-len(arrays[0]) // step)
    given = *arrays, total.new_empty(chunks, *total.shape), total  # pages that are not written to are never there
    about = [number for array in given for number in _described(array)]
    taken = len(_HEAD) + len(about)
    job = np.array([0, 0, 0, chunks, step, taken, *about, *[0] * (2 * chunks)], np.int64)
    task, threads = _task(of_rows, tuple((array.dtype, array.ndim) for array in given)), torch.get_num_threads()
    if _openmp is not None and threads > 1 and chunks > 1:
        _openmp(task.address, job.ctypes.data, threads, 0)
    else:
        task.ctypes(job.ctypes.data)


def _described(array: Tensor) -> tuple[int, ...]:
    """Return an array as numba's compiled code has it: two owners, here none, sizes, address, shape, strides."""
    size = array.element_size()
    return 0, 0, array.numel(), size, array.data_ptr(), *array.shape, *(size * stride for stride in array.stride())


@functools.cache
def _task(of_rows: Any, kinds: tuple[tuple[torch.dtype, int], ...]) -> Any:
    """Compile ``_work`` for a loop and the dtypes and dimensions of its arrays, for C to call, now.

    It is made a function of the loop's own file: numba keeps compiled code by the file that it is of, and has to make
    it anew where the loop was changed. The loop is a global of it, because numba keys on the contents of a closure, and
    a compiled function is never the same in two processes.
    """
    source, names = of_rows.py_func, "_".join(f"{str(dtype).removeprefix('torch.')}x{ndim}" for dtype, ndim in kinds)
    names += f"_{_version()}"
    place = {"co_filename": source.__code__.co_filename, "co_firstlineno": source.__code__.co_firstlineno}
    known = {"__name__": source.__module__, "_of_rows": of_rows, "_arrays_at": _reader(kinds)}
    work = types.FunctionType(_work.__code__.replace(**place), {**globals(), **known}, f"{source.__name__}_{names}")
    work.__qualname__ = work.__name__
    signature = numba.types.void(numba.types.voidptr)
    try:
        return numba.cfunc(signature, cache=True)(work)
    except RuntimeError:  # no folder for the cache
        return numba.cfunc(signature)(work)


@functools.cache
def _version() -> str:
    """Return what changes when a file that loops are made of does; numba looks at the loop's own alone."""
    texts = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    return hashlib.sha256(b"".join(texts)).hexdigest()[:8]


def _work(data: Any) -> None:
    """Claim chunks until none is left; add the parts of those that are done, in order, while nobody else does."""
    job, address = _carray(data, len(_HEAD), np.int64), _address_of(data)
    chunks, step = job[3], job[4]
    busy, taken, done = address + 8, address + 8 * job[5], address + 8 * (job[5] + chunks)
    arrays = _arrays_at(address + 8 * len(_HEAD))
    parts, total = arrays[-2], arrays[-1]
    while True:
        chunk = _one_more(address)
        if chunk >= chunks:
            break
        place = 0
        while _exchanged(taken + 8 * place, 1) == 1:
            place += 1
        own = slice(chunk * step, (chunk + 1) * step)
        _of_rows(*((own,) + arrays[:-2] + (parts[place],)))  # noqa: RUF005 - numba takes a sum of tuples
        _exchanged(done + 8 * chunk, place + 1)
        # Who is turned away has said before that its chunk is done, and who was busy looks once more afterwards.
        left = True
        while left and _exchanged(busy, 1) == 0:
            added = job[2]
            while added < chunks:
                place = _seen(done + 8 * added) - 1
                if place < 0:
                    break
                total += parts[place]
                _exchanged(taken + 8 * place, 0)
                added += 1
            job[2] = added
            _exchanged(busy, 0)
            left = added < chunks and _seen(done + 8 * added) > 0


@_intrinsic  # type: ignore[untyped-decorator]
def _exchanged(_: Any, address: Any, number: Any) -> Any:
    """Write a whole number to an address and return what was there, before any other thread can look."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("xchg", place, arguments[1], "seq_cst")

    return numba.types.int64(numba.types.int64, numba.types.int64), code


@_intrinsic  # type: ignore[untyped-decorator]
def _seen(_: Any, address: Any) -> Any:
    """Return the whole number at an address as the other threads have left it."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.load_atomic(place, "seq_cst", 8)

    return numba.types.int64(numba.types.int64), code


@_intrinsic  # type: ignore[untyped-decorator]
def _one_more(_: Any, address: Any) -> Any:
    """Add 1 to the whole number at an address, before any other thread can look, and return what it was."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        whole = ir.IntType(64)
        place = builder.inttoptr(arguments[0], whole.as_pointer())
        return builder.atomic_rmw("add", place, ir.Constant(whole, 1), "seq_cst")

    return numba.types.int64(numba.types.int64), code


@_intrinsic  # type: ignore[untyped-decorator]
def _address_of(_: Any, pointer: Any) -> Any:
    """Return a pointer as an address."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ptrtoint(arguments[0], ir.IntType(64))

    return numba.types.int64(numba.types.voidptr), code


@_intrinsic  # type: ignore[untyped-decorator]
def _pointer(_: Any, like: Any, address: Any) -> Any:
    """Return an address as a pointer to what an array holds."""
    kind = numba.types.CPointer(like.dtype)  # type: ignore[no-untyped-call]

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[1], context.get_value_type(kind))

    return kind(like, address), code


@inlined
def matrix_at(like: Any, address: int, rows: int, columns: int) -> Any:
    """Return the matrix at an address, contiguous and in the dtype of an array."""
    return _carray(_pointer(like, address), (rows, columns))


def _reader(kinds: tuple[tuple[torch.dtype, int], ...]) -> Any:
    """Return the function that reads the arrays of a job, in numba's own form, from an address."""
    types_of = {torch.float32: numba.types.float32, torch.float64: numba.types.float64, torch.int64: numba.types.int64}
    types_of |= {torch.bfloat16: numba.types.uint16, torch.float16: numba.types.int16}  # their bits; see ``lanes.load``
    arrays: Any = numba.types.Tuple([numba.types.Array(types_of[dtype], ndim, "C") for dtype, ndim in kinds])  # type: ignore[no-untyped-call]

    @_intrinsic  # type: ignore[untyped-decorator]
    def arrays_at(_: Any, address: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.load(builder.inttoptr(arguments[0], context.get_value_type(arrays).as_pointer()))

        return arrays(numba.types.int64), code

    return arrays_at
