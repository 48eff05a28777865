"""The format of a recorded run: a folder that is whole after any interruption.

    manifest.json          format and version, the run's identity, its modules and their method, W₀'s checksum
    base.safetensors       W₀ of the recorded modules, once
    checkpoints.jsonl      one line a checkpoint: step, bytes, sha256; a checkpoint exists when its line does
    checkpoints/STEP.safetensors
    scalars.jsonl          one line a step: loss, learning rate, scores
    seal.json              how far the index reached; see ``seal.py``

No path is kept in any of these files: names follow from the step, so no file can point out of its folder. Files are
written to a temporary file, flushed and renamed; a line is appended when what it announces is in place. A last line
that was cut off announces nothing. Every byte is under a checksum: see ``checked_lines.py`` for those of lines.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltaw.adapters.errors import RecordError
from deltaw.adapters.small_files import bounded_json, small_file
from deltaw.analysis.records.run_folder.checked_lines import checked_line, without_check
from deltaw.analysis.records.storage.files import LOG_LIMIT

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "deltaw-trajectory"
VERSION = 3  # 2 had no checksums of manifest, index and log; 1 no constants: they stood in every checkpoint
CHECKED = 3  # the first version whose manifest and lines have checksums
ARCHITECTURE = "architecture"  # the key in ``info`` of what the model's configuration says of attention heads
LINE_LIMIT = 1_000_000  # characters of a line of the index or the log
MANIFEST, BASE, INDEX, SCALARS, CHECKPOINTS = (
    "manifest.json",
    "base.safetensors",
    "checkpoints.jsonl",
    "scalars.jsonl",
    "checkpoints",
)


@dataclass(frozen=True)
class ModuleEntry:
    """A recorded module: its matrix, and the method that W' follows from (``None``: the matrix itself is recorded).

    ``kernel`` is (k…) of a convolution, of which the matrix is [out, in·k…]. The manifest has it where there is one.
    """

    shape: tuple[int, int]
    dtype: str
    method: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    kernel: tuple[int, ...] = ()

    def __repr__(self) -> str:  # kept tables go by it: without a kernel it is what it was before there were any
        own = (f"{key}={value!r}" for key, value in vars(self).items() if key != "kernel" or value)
        return f"ModuleEntry({', '.join(own)})"

    def to_json(self) -> dict[str, Any]:
        """What the manifest has of it."""
        own = {"shape": list(self.shape), "dtype": self.dtype, "method": self.method, "options": self.options}
        return own | ({"kernel": list(self.kernel)} if self.kernel else {})


@dataclass(frozen=True)
class FileEntry:
    """The size and the checksum that a file must have."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The description of a run, apart from its checkpoints.

    ``run_id`` has 32 random digits, and from version 3 on 32 more: the start of the sha256 of ``manifest.json`` as it
    would be without them.

    ``constants`` says for every tensor of a method that never changes (``MODULE.NAME``) under which name the file of
    the base has it; layers that have it in common share one.
    """

    run_id: str
    method: str
    modules: dict[str, ModuleEntry]
    base: FileEntry
    constants: dict[str, str] = field(default_factory=dict)
    created: str = ""
    deltaw: str = ""
    info: dict[str, Any] = field(default_factory=dict)
    version: int = VERSION

    def to_json(self) -> str:
        """The text of ``manifest.json``."""
        text = self._text(self.run_id[:32])
        return self._text(self.run_id[:32] + digest_of(text.encode())[:32]) if self.version >= CHECKED else text

    def _text(self, run_id: str) -> str:
        return json.dumps(
            {
                "format": FORMAT,
                "version": self.version,
                "run_id": run_id,
                "method": self.method,
                "created": self.created,
                "deltaw": self.deltaw,
                "info": self.info,
                "base": vars(self.base),
                "constants": self.constants,
                "modules": {name: entry.to_json() for name, entry in self.modules.items()},
            },
            indent=1,
        )


@dataclass(frozen=True)
class CheckpointEntry:
    """A line of the index."""

    step: int
    file: FileEntry

    def line(self, before: str) -> tuple[str, str]:
        """Return the line with its newline, and its check; ``before`` is the check of the line before."""
        return checked_line({"step": self.step, **vars(self.file)}, before)


def index_text(entries: Iterable[CheckpointEntry]) -> str:
    """Return the text of an index."""
    text, check = [], ""
    for entry in entries:
        line, check = entry.line(check)
        text.append(line)
    return "".join(text)


def checkpoint_name(step: int) -> str:
    """Return what the file of a step is called, in the folder of the checkpoints."""
    return f"{step:010d}.safetensors"


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return where the checkpoint of a step stands."""
    return folder / CHECKPOINTS / checkpoint_name(step)


def read_manifest(folder: Path) -> Manifest:
    """Read and check ``manifest.json``.

    Raises:
        RecordError: The folder is no run, its format is newer, or the manifest is damaged.
    """
    path = folder / MANIFEST
    if not folder.exists():
        raise RecordError(f"{folder}: there is no such folder")
    if not path.is_file():
        raise RecordError(f"{folder}: is not a recorded run (it has no {MANIFEST})")
    try:
        raw = bounded_json(small_file(path), unique=True)
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: is damaged, it is not JSON ({error})") from None
    return parse_manifest(raw, str(path))


def parse_manifest(raw: Any, where: str) -> Manifest:
    """Return what the JSON of ``manifest.json`` says; ``where`` is for messages.

    Raises:
        RecordError: It is no manifest, its format is newer, or it is damaged.
    """
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise RecordError(f"{where}: is not the manifest of a deltaw run")
    version = raw.get("version")
    if type(version) is not int or not 1 <= version < 2**53:
        raise RecordError(f"{where}: is damaged, its version is {version!r:.60}")
    if version > VERSION:
        raise RecordError(
            f"{where}: has format version {version}, this deltaw reads up to {VERSION}; pip install -U deltaw"
        )
    try:
        return Manifest(
            run_id=_string(raw["run_id"]),
            method=_string(raw["method"]),
            modules={_string(name): _module(entry) for name, entry in raw["modules"].items()},
            base=_file(raw["base"]),
            constants={_string(name): _string(kept) for name, kept in raw.get("constants", {}).items()},
            created=_string(raw.get("created", "")),
            deltaw=_string(raw.get("deltaw", "")),
            info=dict(raw.get("info", {})),
            version=version,
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise RecordError(f"{where}: is damaged ({type(error).__name__}: {error!s:.200})") from None


def manifest_fault(data: bytes, manifest: Manifest) -> str | None:
    """Return what is wrong with the bytes of a manifest, ``None`` where they are as they were written, or are older."""
    run_id = manifest.run_id
    if manifest.version < CHECKED and len(run_id) <= 32:
        return None
    stated = f'"run_id": "{run_id}"'.encode()
    without = data.replace(stated, f'"run_id": "{run_id[:32]}"'.encode(), 1)
    if len(run_id) == 64 and without != data and digest_of(without)[:32] == run_id[32:]:
        return None
    return "has another checksum than the one in its run_id: it was changed"


def read_index(folder: Path) -> list[CheckpointEntry]:
    """Read the announced checkpoints, in order.

    Raises:
        RecordError: A line other than a cut last one cannot be read, or the steps do not rise.
    """
    return parse_index(_log(folder / INDEX), str(folder / INDEX))


def parse_index(data: bytes, where: str) -> list[CheckpointEntry]:
    """Return the checkpoints that the bytes of an index announce, in order.

    Raises:
        RecordError: As ``read_index``.
    """
    entries: list[CheckpointEntry] = []
    for number, line in numbered_lines(data, where):
        try:
            raw = json.loads(line)
            entry = CheckpointEntry(_whole(raw["step"]), _file(raw))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise RecordError(f"{where}: line {number} is damaged ({error})") from None
        if entries and entry == entries[-1]:
            continue  # announced twice: an interrupt between the line and the memory made recorders do so
        if entries and entry.step <= entries[-1].step:
            raise RecordError(
                f"{where}: line {number} has step {entry.step} after step {entries[-1].step}; steps must rise"
            )
        entries.append(entry)
    return entries


def read_scalars(folder: Path) -> list[dict[str, float]]:
    """Read the scalar log, one mapping a line.

    Raises:
        RecordError: A line other than a cut last one cannot be read.
    """
    return parse_scalars(_log(folder / SCALARS), str(folder / SCALARS))


def parse_scalars(data: bytes, where: str) -> list[dict[str, float]]:
    """Return the mappings that the bytes of a scalar log hold.

    Raises:
        RecordError: As ``read_scalars``.
    """
    rows = []
    for number, line in numbered_lines(data, where):
        try:
            raw = json.loads(without_check(line.encode()))
            rows.append({_string(key): float("nan") if value is None else float(value) for key, value in raw.items()})
        except (TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
            raise RecordError(f"{where}: line {number} is damaged ({error})") from None
    return rows


def complete_lines(path: Path) -> list[tuple[int, str]]:
    """Return the numbered lines of a log, without a last one that was cut off; none where there is no file."""
    return list(numbered_lines(_log(path), str(path)))


def numbered_lines(data: bytes, where: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that a log's bytes hold, without a last one that was cut off.

    Raises:
        RecordError: It is no text, or a line has more than ``LINE_LIMIT`` characters.
    """
    try:
        text = data[: data.rfind(b"\n") + 1].decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(f"{where}: is damaged, it is not text ({error.reason} at byte {error.start})") from None
    start = 0
    for number in itertools.count(1):  # one at a time: a file of line breaks alone is damaged at its first
        end = text.find("\n", start)
        if end < 0:
            return
        if end - start > LINE_LIMIT:
            raise RecordError(f"{where}: line {number} has {end - start} characters; a line has at most {LINE_LIMIT}")
        yield number, text[start:end]
        start = end + 1


def _log(path: Path) -> bytes:
    try:
        return small_file(path, LOG_LIMIT)
    except FileNotFoundError:
        return b""
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def compare_size(where: str, size: int | None, entry: FileEntry) -> None:
    """Raise where a file of so many bytes, ``None`` where there is none, is not the announced one."""
    if size is None:
        raise RecordError(f"{where}: is missing, though the record announces it")
    if size != entry.bytes:
        raise RecordError(f"{where}: has {size} bytes, the record says {entry.bytes}: it is truncated or was changed")


def compare_sum(where: str, found: str, entry: FileEntry) -> None:
    """Raise where a file of this sha256 is not the announced one."""
    if found != entry.sha256:
        raise RecordError(f"{where}: has checksum {found[:12]}…, the record says {entry.sha256[:12]}…: it was changed")


def check_sum(path: Path, entry: FileEntry) -> None:
    """Raise where a file is missing, was cut, or its checksum is another; reads it whole."""
    try:
        size = path.stat().st_size
    except OSError:
        size = None
    compare_size(str(path), size, entry)
    compare_sum(str(path), digest(path), entry)


def digest(path: Path) -> str:
    """Return a file's sha256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensors(path: Path, names: dict[str, str]) -> dict[str, Tensor]:
    """Read some tensors of a safetensors file.

    Arguments:
        path: The file.
        names: The key wanted in the result -> the tensor's name in the file.

    Raises:
        RecordError: The file cannot be read or lacks a tensor.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            there = set(file.keys())
            for name in names.values():
                if name not in there:
                    raise RecordError(f"{path}: lacks the tensor {name!r}")
            return {key: file.get_tensor(name) for key, name in names.items()}
    except (OSError, SafetensorError) as error:
        raise RecordError(f"{path}: cannot be read as a safetensors file ({error})") from None


def digest_of(data: bytes) -> str:
    """Return the sha256 of some bytes."""
    return hashlib.sha256(data).hexdigest()


def finite_or_none(value: float) -> float | None:
    """Return the number, ``None`` for NaN and infinity, which JSON does not have."""
    return value if math.isfinite(value) else None


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.60} is no text")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**53:  # which pandas and every JSON reader count exactly
        raise ValueError(f"{value!r:.60} is no whole number from 0 to 2^53")
    return value


def _file(raw: Any) -> FileEntry:
    return FileEntry(_whole(raw["bytes"]), _string(raw["sha256"]))


def _module(raw: Any) -> ModuleEntry:
    rows, columns = raw["shape"]
    method = raw.get("method")
    kernel = tuple(_whole(places) for places in raw.get("kernel", ()))
    if kernel and (len(kernel) > 3 or 0 in kernel or _whole(columns) % math.prod(kernel)):
        raise ValueError(f"{kernel!r:.60} is no kernel of {columns!r:.20} columns")
    return ModuleEntry(
        (_whole(rows), _whole(columns)),
        _string(raw["dtype"]),
        None if method is None else _string(method),
        dict(raw.get("options", {})),
        kernel,
    )
