"""Rows of a table as text and back, to the bit: no pickle, no rounding.

A number is written as Python writes it, with as many digits as tell it from its neighbours; NaN with its bits, as there
are several; an array by its bytes.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deltaw.analysis.tables.run import LABELS

LONGEST = 200  # characters of a text
_DTYPES = {"float64": np.dtype("<f8"), "int64": np.dtype("<i8"), "bool": np.dtype("bool")}


def to_plain(rows: Sequence[Mapping[str, Any]], labels: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Return rows as values for JSON, or ``None`` where one holds what cannot be kept.

    Arguments:
        rows: Rows or blocks of rows, each with the labels and more.
        labels: They are left out: they depend on what the run is called, and not on what was measured.

    Example:
        >>> labels = {"run": "a", "method": "ft", "module": "0", "layer": None, "kind": "0"}
        >>> to_plain([labels | {"step": 3, "norm": 0.1, "index": np.arange(2)}], labels)
        [{'step': 3, 'norm': 0.1, 'index': {'int64': 'AAAAAAAAAAABAAAAAAAAAA=='}}]
    """
    try:
        if any(row[name] != labels[name] for row in rows for name in LABELS):
            return None
        return [{name: _plain(value) for name, value in row.items() if name not in LABELS} for row in rows]
    except (KeyError, TypeError):
        return None


def from_plain(found: Any, labels: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows that such values stand for.

    Raises:
        ValueError, TypeError: They are no such values.
    """
    if not isinstance(found, list):
        raise TypeError("no list of rows")
    return [{**labels, **_row(row)} for row in found]


def _row(row: Any) -> dict[str, Any]:
    if not isinstance(row, dict) or not LABELS_APART.isdisjoint(row):
        raise TypeError("no row")
    return {name: _value(value) for name, value in row.items()}


LABELS_APART = frozenset(LABELS)


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
    if value is None or isinstance(value, bool | int | float) or (isinstance(value, str) and _fine(value)):
        return value
    if not isinstance(value, dict) or len(value) != 1:
        raise TypeError("no value of a table")
    ((name, text),) = value.items()
    if name == "nan":
        (number,) = struct.unpack(">d", bytes.fromhex(text))
        return number
    return np.frombuffer(base64.b64decode(text, validate=True), _DTYPES[name]).astype(name)


def _fine(text: str) -> bool:
    return len(text) <= LONGEST and text.isprintable()
