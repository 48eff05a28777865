"""Putting the rows of a table together, and what is said of it in ``DataFrame.attrs``."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

ABOUT = ("left_out", "no_rows")  # the keys in ``DataFrame.attrs`` of what is said of a table, a list of sentences each
_WHOLE = ["layer", "step", "step_from", "step_to", "step_first", "step_second", "step_other"]  # may be missing


def frame_of(blocks: Sequence[dict[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """Return one table of blocks, each of one row or of several.

    Arguments:
        blocks: By column: a value, or an array of the block's length; a value stands in all rows of its block.
        columns: The table's.
    """
    lengths = [max([1, *(len(value) for value in block.values() if isinstance(value, np.ndarray))]) for block in blocks]
    data: dict[str, Any] = {}
    for name in columns:
        values = [block[name] for block in blocks]
        if values and isinstance(values[0], np.ndarray):
            data[name] = np.concatenate(values)
        else:
            data[name] = [value for value, length in zip(values, lengths, strict=True) for _ in range(length)]
        if name in _WHOLE:
            data[name] = pd.array(data[name], dtype="Int64")
    return pd.DataFrame(data, columns=list(columns))


def notes_of(frame: pd.DataFrame, about: str) -> list[str]:
    """Return what is said of a table about "left_out" modules, or of runs with "no_rows"."""
    return list(frame.attrs.get(about, []))


def joined(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return tables one below the other, with the notes of all, which ``pandas.concat`` alone would drop."""
    whole = pd.concat(list(frames), ignore_index=True)
    notes = {about: list(dict.fromkeys(note for frame in frames for note in notes_of(frame, about))) for about in ABOUT}
    whole.attrs = {about: found for about, found in notes.items() if found}
    return whole
