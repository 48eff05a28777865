"""Putting the rows of a table together, and what has to be said of it."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from deltaw.adapters.errors import DeltawWarning

NOTES = "notes"  # the key in ``DataFrame.attrs`` under which a table's notes stand, a list of sentences
_WHOLE = ["layer", "step", "step_from", "step_to", "step_first", "step_second", "step_other"]  # may be missing


def frame_of(blocks: Sequence[dict[str, Any]], columns: Sequence[str], notes: Sequence[str] = ()) -> pd.DataFrame:
    """Return one table of blocks, each of one row or of several.

    Arguments:
        blocks: By column: a value, or an array of the block's length; a value stands in all rows of its block.
        columns: The table's.
        notes: What a reader has to know; goes to ``attrs["notes"]`` and is warned of.
    """
    lengths = [max([1, *(len(value) for value in block.values() if isinstance(value, np.ndarray))]) for block in blocks]
    data: dict[str, Any] = {}
    for name in columns:
        values = [block[name] for block in blocks]
        if values and isinstance(values[0], np.ndarray):
            data[name] = np.concatenate(values)
        else:
            data[name] = [value for value, length in zip(values, lengths, strict=True) for _ in range(length)]
    frame = pd.DataFrame(data, columns=list(columns))
    return with_notes(frame.astype({name: "Int64" for name in _WHOLE if name in columns}), notes)


def with_notes(frame: pd.DataFrame, notes: Sequence[str]) -> pd.DataFrame:
    """Return the table with these notes; each is warned of once."""
    if notes:
        frame.attrs[NOTES] = [*notes_of(frame), *notes]
        for note in notes:
            warnings.warn(note, DeltawWarning, stacklevel=4)
    return frame


def notes_of(frame: pd.DataFrame) -> list[str]:
    """Return the notes of a table."""
    return list(frame.attrs.get(NOTES, []))


def joined(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return tables one below the other, with the notes of all, which ``pandas.concat`` alone would drop."""
    whole = pd.concat(list(frames), ignore_index=True)
    notes = list(dict.fromkeys(note for frame in frames for note in notes_of(frame)))
    whole.attrs = {NOTES: notes} if notes else {}
    return whole
