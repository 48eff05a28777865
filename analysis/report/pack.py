"""Numbers for a browser: columns of one type each, compressed together, and a list that says where each one lies.

float32 keeps seven digits and is for what a reader reads off. What is only drawn is kept in 16 bits, as a place on a
logarithmic scale between the smallest and the largest value of its column: the list says the relative precision.
"""

import base64
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Of a column in 16 bits: two codes for what has no logarithm, then the places on the scale.
NAN, ZERO, LOWEST, HIGHEST = 0, 1, 2, 65535
_TYPES = {"float32": "f32", "uint8": "u8", "uint16": "u16", "uint32": "u32"}


@dataclass(frozen=True, eq=False)
class Column:
    """An array as it is packed.

    Arguments:
        values: float32, uint8, uint16 or uint32.
        scale: The smallest and the largest value where the codes of ``values`` stand for numbers between them.
    """

    values: NDArray[Any]
    scale: tuple[float, float] | None = None


def exact(values: NDArray[Any]) -> Column:
    """Return numbers as float32; what is beyond its range becomes infinity or 0."""
    with np.errstate(over="ignore", under="ignore"):
        return Column(np.ascontiguousarray(values, dtype=np.float32))


def whole(values: NDArray[Any]) -> Column:
    """Return whole numbers from 0 on in the smallest type that holds them."""
    most = int(values.max(initial=0))
    kind = np.uint8 if most < 2**8 else np.uint16 if most < 2**16 else np.uint32
    return Column(np.ascontiguousarray(values, dtype=kind))


def drawn(values: NDArray[np.float64]) -> Column:
    """Return numbers of at least 0 in 16 bits, at equal distances on a logarithmic scale.

    The relative error is at most ``precision`` of the column; 0 and NaN come back as they are, infinity as NaN.

    Example:
        >>> column = drawn(np.array([0.0, 1e-3, 0.5, np.nan]))
        >>> restored(column).round(4).tolist(), precision(column) < 1e-4
        ([0.0, 0.001, 0.5, nan], True)
    """
    signal = values[np.isfinite(values) & (values > 0)]
    low, high = (float(signal.min()), float(signal.max())) if signal.size else (1.0, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        place = (np.log(values) - math.log(low)) / ((math.log(high) - math.log(low)) or 1.0)
    finite = np.isfinite(values)
    codes = np.full(values.shape, NAN, dtype=np.uint16)
    codes[finite & (values <= 0)] = ZERO
    positive = finite & (values > 0)
    codes[positive] = np.rint(LOWEST + place[positive] * (HIGHEST - LOWEST)).astype(np.uint16)
    return Column(codes, (low, high))


def restored(column: Column) -> NDArray[np.float64]:
    """Return the numbers that the browser makes of a column."""
    if column.scale is None:
        return column.values.astype(np.float64)
    low, high = map(math.log, column.scale)
    numbers = np.exp(low + (column.values.astype(np.float64) - LOWEST) / (HIGHEST - LOWEST) * (high - low))
    numbers[column.values == NAN] = np.nan
    numbers[column.values == ZERO] = 0.0
    return numbers


def precision(column: Column) -> float:
    """Return the largest relative error that packing makes of a number that is drawn."""
    if column.scale is None:
        return 2.0**-24
    low, high = map(math.log, column.scale)
    return math.expm1((high - low) / (HIGHEST - LOWEST) / 2 + 1e-12)


def pack(columns: Mapping[str, Column]) -> tuple[list[dict[str, Any]], str]:
    """Return where each column lies, and all of them as one text: base64 of zlib's compressed bytes.

    Within a column all first bytes of its numbers stand together, then all second ones, and so on, little-endian:
    the bytes that hardly change are then beside each other, and compress to two thirds.

    Returns:
        The list, as plain values: name, type, shape, start (in bytes), scale (or None), precision; and the text.
    """
    table, parts, start = [], [], 0
    for name, column in columns.items():
        values = column.values.astype(column.values.dtype.newbyteorder("<"))
        data = values.reshape(-1, 1).view(np.uint8).reshape(-1, values.dtype.itemsize).T.tobytes()
        table.append(
            {
                "name": name,
                "type": _TYPES[column.values.dtype.name],
                "shape": list(values.shape),
                "start": start,
                "scale": list(column.scale) if column.scale else None,
                "precision": precision(column),
            }
        )
        parts.append(data)
        start += len(data)
    return table, base64.b64encode(zlib.compress(b"".join(parts), 9)).decode("ascii")
