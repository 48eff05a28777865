"""64 bytes of numbers at once, for compiled loops that say themselves how they use the processor's vectors.

A sum in plain Python is taken one number at a time, or in an order that the compiler chooses, which then decides too
how much of a block of a matrix stays in registers. With these both are written down. A function works on 8 numbers in
float64, or 16 in float32: what an AVX-512 register holds, or two of AVX2, or four of NEON.

They are called in a compiled loop alone. ``row`` is an array with one dimension, ``j`` a place in it, and nothing looks
whether it ends before j + 8.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils
from numba.extending import intrinsic, models, register_jitable, register_model

BYTES = 64

_declared: Any = cgutils.get_or_insert_function
_intrinsic: Any = intrinsic
_models: Any = models
_register: Any = register_model


class Lanes(numba.types.Type):
    """The type of 64 bytes of numbers.

    Arguments:
        dtype: numba's float32 or float64.
    """

    def __init__(self, dtype: Any) -> None:
        self.dtype, self.count = dtype, 8 * BYTES // dtype.bitwidth
        super().__init__(name=f"lanes of {dtype}")


@_register(Lanes)
class _LanesModel(_models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Lanes) -> None:
        super().__init__(manager, kind, _vector(kind))


def _vector(kind: Lanes) -> Any:
    return ir.VectorType(ir.FloatType() if kind.dtype == numba.types.float32 else ir.DoubleType(), kind.count)


def _place(context: Any, builder: Any, kind: Any, row: Any, j: Any) -> Any:
    """Return a pointer to row[j]."""
    return builder.gep(context.make_array(kind)(context, builder, row).data, [j])


def _splat(builder: Any, number: Any, vector: Any) -> Any:
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
    return _chosen(builder, first, [0] * vector.count)


def _chosen(builder: Any, vector: Any, places: list[int]) -> Any:
    return builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(ir.IntType(32), len(places)), places))


@_intrinsic  # type: ignore[untyped-decorator]
def count(_: Any, row: Any) -> Any:
    """Return how many numbers of an array's dtype there are in 64 bytes."""
    found = Lanes(row.dtype).count
    return numba.types.intp(row), lambda context, *_: context.get_constant(numba.types.intp, found)


@_intrinsic  # type: ignore[untyped-decorator]
def zeros(_: Any, like: Any) -> Any:
    """Return zeros in the dtype of an array."""
    kind = Lanes(like.dtype)
    return kind(like), lambda *_: ir.Constant(_vector(kind), [0.0] * kind.count)


@_intrinsic  # type: ignore[untyped-decorator]
def load(_: Any, row: Any, j: Any, like: Any) -> Any:
    """Return row[j], row[j + 1], … in the dtype of another array, which is the row's own or wider.

    The bits of bfloat16 come as an array of uint16, and those of float16 as one of int16: numba has neither.
    """
    kind = Lanes(like.dtype)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place, vector = _place(context, builder, row, *arguments[:2]), _vector(kind)
        stored = ir.VectorType(context.get_data_type(row.dtype), kind.count)
        found = builder.load(builder.bitcast(place, stored.as_pointer()), align=row.dtype.bitwidth // 8)
        if row.dtype == numba.types.uint16:  # the first half of a float32
            whole = ir.VectorType(ir.IntType(32), kind.count)
            found = builder.shl(builder.zext(found, whole), ir.Constant(whole, [16] * kind.count))
            found = builder.bitcast(found, ir.VectorType(ir.FloatType(), kind.count))
        elif row.dtype == numba.types.int16:
            found = builder.bitcast(found, ir.VectorType(ir.HalfType(), kind.count))
            found = builder.fpext(found, ir.VectorType(ir.FloatType(), kind.count))
        return found if found.type == vector else builder.fpext(found, vector)

    return kind(row, numba.types.intp, like), code


@_intrinsic  # type: ignore[untyped-decorator]
def store(_: Any, row: Any, j: Any, lanes: Any) -> Any:
    """Write numbers into row[j], row[j + 1], … of an array of their dtype."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.bitcast(_place(context, builder, row, *arguments[:2]), _vector(lanes).as_pointer())
        builder.store(arguments[2], place, align=row.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return numba.types.void(row, numba.types.intp, lanes), code


@_intrinsic  # type: ignore[untyped-decorator]
def fetch(_: Any, row: Any, j: Any) -> Any:
    """Ask for row[j], … to be brought into the cache, without waiting for it."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [address, number, number, number])
        how = [ir.Constant(number, value) for value in (0, 3, 1)]  # to be read, into all caches, as data
        place = builder.bitcast(_place(context, builder, row, *arguments), address)
        builder.call(_declared(builder.module, kind, "llvm.prefetch.p0"), [place, *how])
        return context.get_dummy_value()

    return numba.types.void(row, numba.types.intp), code


@_intrinsic  # type: ignore[untyped-decorator]
def spread(_: Any, row: Any, j: Any) -> Any:
    """Return row[j] in all places."""
    kind = Lanes(row.dtype)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _splat(builder, builder.load(_place(context, builder, row, *arguments)), _vector(kind))

    return kind(row, numba.types.intp), code


@_intrinsic  # type: ignore[untyped-decorator]
def times(_: Any, a: Any, b: Any) -> Any:
    """Return a·b."""
    return a(a, b), lambda context, builder, signature, arguments: builder.fmul(*arguments)


@_intrinsic  # type: ignore[untyped-decorator]
def plus(_: Any, a: Any, b: Any) -> Any:
    """Return a + b."""
    return a(a, b), lambda context, builder, signature, arguments: builder.fadd(*arguments)


@_intrinsic  # type: ignore[untyped-decorator]
def minus(_: Any, a: Any, b: Any) -> Any:
    """Return a − b."""
    return a(a, b), lambda context, builder, signature, arguments: builder.fsub(*arguments)


@_intrinsic  # type: ignore[untyped-decorator]
def fused(_: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a·b + c, rounded once where the processor can do that."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector, name = _vector(a), f"llvm.fmuladd.v{a.count}f{a.dtype.bitwidth}"
        return builder.call(_declared(builder.module, ir.FunctionType(vector, [vector] * 3), name), arguments)

    return a(a, b, c), code


@_intrinsic  # type: ignore[untyped-decorator]
def total(_: Any, lanes: Any) -> Any:
    """Return the sum: the second half is added to the first, and so on until one number is left."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (found,) = arguments
        left = lanes.count
        while left > 1:
            left //= 2
            halves = [_chosen(builder, found, list(range(start, start + left))) for start in (0, left)]
            found = builder.fadd(*halves)
        return builder.extract_element(found, ir.Constant(ir.IntType(32), 0))

    return lanes.dtype(lanes), code


@_intrinsic  # type: ignore[untyped-decorator]
def totals(_: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any) -> Any:
    """Return the sums of eight in the places of one, float64 alone; with fewer steps than eight of ``total``.

    Neighbours are added first, then what is two places apart, then what is four.
    """
    pairs = [0, 8, 2, 10, 4, 12, 6, 14], [1, 9, 3, 11, 5, 13, 7, 15]
    fours = [0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15]

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def added(first: Any, second: Any, places: Any) -> Any:
            kind = ir.VectorType(ir.IntType(32), 8)
            halves = [builder.shuffle_vector(first, second, ir.Constant(kind, chosen)) for chosen in places]
            return builder.fadd(*halves)

        left = list(arguments)
        for places in (pairs, fours, fours):
            left = [added(left[n], left[n + 1], places) for n in range(0, len(left), 2)]
        return left[0]

    return a(a, b, c, d, e, f, g, h), code


def _aligned(length: int, like: Any) -> Any:
    """Return zeros in the dtype of an array, from a multiple of 64 bytes on: no load then touches two lines."""
    size = like.itemsize
    room = np.zeros(length + BYTES // size, like.dtype)
    first = (BYTES - np.int64(room.ctypes.data) % BYTES) % BYTES // size
    return room[first : first + length]


_jitable: Callable[..., Any] = register_jitable
aligned = _jitable(_aligned)
