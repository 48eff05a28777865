"""Rows of a table as text and back, to the bit: no pickle, no rounding.

A number is written as Python writes it, with as many digits as tell it from its neighbours; NaN with its bits, as there
are several; an array by its bytes.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from deltaw.analysis.tables.run import LABELS

Row = dict[str, Any]
LONGEST = 200  # characters of a text
_LABELS = frozenset(LABELS)
_EXACT = (float, int, bool, type(None))  # as JSON has them
_DTYPES = {"float64": np.dtype("<f8"), "int64": np.dtype("<i8"), "bool": np.dtype("bool")}


def without_labels(rows: Sequence[Row], labels: Row) -> list[Row] | None:
    """Return rows without what depends on the run's name and not on what was measured, ``None`` if they lack it."""
    if any(name not in row or row[name] != labels[name] for row in rows for name in LABELS):
        return None
    return [{name: value for name, value in row.items() if name not in LABELS} for row in rows]


def to_plain(rows: Sequence[Row]) -> list[Row]:
    """Return rows as values for JSON.

    Raises:
        TypeError: One holds what cannot be kept.

    Example:
        >>> to_plain([{"step": 3, "norm": 0.1, "index": np.arange(2)}])
        [{'step': 3, 'norm': 0.1, 'index': {'int64': 'AAAAAAAAAAABAAAAAAAAAA=='}}]
    """
    return [{name: _plain(value) for name, value in row.items()} for row in rows]


def from_plain(found: Any) -> list[Row]:
    """Return the rows that such values stand for.

    Raises:
        ValueError, TypeError, KeyError: They are no such values.
    """
    if not isinstance(found, list):
        raise TypeError("no list of rows")
    return [_row(row) for row in found]


def _row(row: Any) -> Row:
    if not isinstance(row, dict) or not _LABELS.isdisjoint(row):
        raise TypeError("no row")
    return {name: value if type(value) in _EXACT else _value(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        name = value.dtype.name
        if value.ndim != 1 or name not in _DTYPES:
            raise TypeError(f"an array of {name}")
        return {name: base64.b64encode(value.astype(_DTYPES[name]).tobytes()).decode()}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return {"nan": struct.pack(">d", value).hex()} if math.isnan(value) else value
    if isinstance(value, str):
        if not _fine(value):
            raise TypeError("a text that is too long, or not to be printed")
        return value
    if value is None or isinstance(value, bool | int):
        return value
    raise TypeError(f"a {type(value).__name__}")


def _value(value: Any) -> Any:
    if isinstance(value, str) and _fine(value):
        return value
    if not isinstance(value, dict) or len(value) != 1:
        raise TypeError("no value of a table")
    ((name, text),) = value.items()
    if name == "nan":
        data = bytes.fromhex(text)
        if len(data) != 8:
            raise ValueError("no bits of a number")
        (number,) = struct.unpack(">d", data)
        return number
    return np.frombuffer(base64.b64decode(text, validate=True), _DTYPES[name]).astype(name)  # a copy that is writable


def _fine(text: str) -> bool:
    return len(text) <= LONGEST and text.isprintable()
