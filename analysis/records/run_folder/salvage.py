"""What counts as whole when a run is repaired: a line of the index, a row of the log, a checkpoint's file."""

import re
from collections.abc import Callable
from pathlib import Path

from deltaw.adapters.errors import RecordError
from deltaw.analysis.records.run_folder.checked_lines import Line, lines_of
from deltaw.analysis.records.run_folder.format import (
    INDEX,
    SCALARS,
    CheckpointEntry,
    FileEntry,
    checkpoint_name,
    digest,
    parse_index,
    parse_scalars,
)
from deltaw.analysis.records.run_folder.headers import Shapes, check_checkpoint
from deltaw.analysis.records.storage.files import LocalStorage
from deltaw.analysis.records.storage.safetensors_file import read_header

_BETWEEN = re.compile(rb'(?<="\})[^{]?(?=\{)')  # two lines whose newline was lost, or became another byte
_CHECKPOINT = re.compile(r"(\d{10,18})\.safetensors")


def step_of(name: str) -> int | None:
    """Return the step whose checkpoint has this name, ``None`` where no checkpoint has it.

    Example:
        >>> step_of("0000000050.safetensors"), step_of("50.safetensors")
        (50, None)
    """
    found = _CHECKPOINT.fullmatch(name)
    return int(found[1]) if found and name == checkpoint_name(int(found[1])) else None


def with_tail(data: bytes, lines: list[Line], is_whole: Callable[[Line], object]) -> list[Line]:
    """Return the lines, and what stands behind the last newline as one more, where that is a whole line.

    It is where the newline was lost, or became another byte. Else the line was cut off when its process died.
    """
    tail = data[data.rfind(b"\n") + 1 :]
    if not tail:
        return lines
    for text in (tail, tail[:-1]):
        line = list(lines_of(data[: -len(tail)] + text + b"\n"))[-1]
        if text and line.checked and line.whole and is_whole(line):
            return [*lines, line]
    return lines


def entry_of(line: Line) -> CheckpointEntry | None:
    """Return what a line of the index announces, ``None`` where it cannot be read."""
    try:
        (entry,) = parse_index(line.content + b"\n", INDEX)
    except RecordError:
        return None
    return entry


def is_row(line: Line) -> bool:
    """Return whether a line of the log can be read."""
    try:
        return len(parse_scalars(line.content + b"\n", SCALARS)) == 1
    except RecordError:
        return False


def rows_in(raw: bytes) -> list[bytes]:
    """Return the whole rows in a line of the log that cannot be read: the newline between them was lost."""
    found = [next(lines_of(part + b"\n")) for part in _BETWEEN.split(raw)]
    return [line.raw for line in found if line.checked and line.whole and is_row(line)] if len(found) > 1 else []


def file_entry(path: Path) -> FileEntry:
    """Return what a line announces of a file that is as it should be."""
    return FileEntry(path.stat().st_size, digest(path))


def unfit(path: Path, shapes: Shapes) -> str:
    """Return why a file cannot be a checkpoint of the run, "" where it can."""
    import torch
    from safetensors.torch import load_file

    try:
        header = read_header(LocalStorage(path.parent), path.name)
        check_checkpoint(shapes, header, path.name)
        if odd := sorted(header.keys() - shapes.keys()):
            return f"it has a tensor that the run has not, {odd[0]!r}"
        for name, value in load_file(path).items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                return f"{name} holds NaN or infinity"
    except (RecordError, OSError) as error:
        return str(error)
    return ""
