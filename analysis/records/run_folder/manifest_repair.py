"""Puts a damaged manifest back, where its own checksum proves what it said."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from deltaw.adapters.errors import RecordError
from deltaw.analysis.records.run_folder.format import (
    BASE,
    MANIFEST,
    FileEntry,
    Manifest,
    digest,
    manifest_fault,
    parse_manifest,
)
from deltaw.analysis.records.storage.files import LocalStorage
from deltaw.analysis.records.storage.safetensors_file import read_header

FLIPPED = 16_384  # bytes of a manifest up to which each of its bits is tried: seconds
NOWHERE_ELSE = "the methods of its modules and their options stand in no other file; put it back from a copy"
_RUN_ID = re.compile(rb'"run_id": "([0-9a-f]{64})"')
_HEAD = 200  # bytes in which the run_id stands


def restored_manifest(data: bytes, folder: Path) -> tuple[Manifest, bytes, str | None]:
    """Return what a manifest says or said, its bytes then, and what is wrong with it now.

    Arguments:
        data: Its bytes; empty where it is missing.
        folder: The run folder.

    Raises:
        RecordError: It is damaged, and nothing proves what it said.
    """
    where = str(folder / MANIFEST)
    if not data:
        raise RecordError(f"{folder}: has no {MANIFEST}, or an empty one; {NOWHERE_ELSE}")
    manifest, found = _read(data, where)
    if manifest is not None and found is None:
        return manifest, data, None
    for candidate in _candidates(data, folder):
        manifest, still = _read(candidate, where)
        if manifest is not None and still is None and len(manifest.run_id) == 64:
            return manifest, candidate, found
    raise RecordError(f"{where}: {found}; what it said cannot be proved, and {NOWHERE_ELSE}")


def _read(data: bytes, where: str) -> tuple[Manifest | None, str | None]:
    """What the bytes say, where they are a manifest, and what is wrong with them."""
    try:
        manifest = parse_manifest(json.loads(data), where)
    except RecordError as error:
        return None, str(error).removeprefix(f"{where}: ")
    except (ValueError, RecursionError) as error:
        return None, f"is damaged, it is not JSON ({error})"
    return manifest, manifest_fault(data, manifest)


def _candidates(data: bytes, folder: Path) -> Iterator[bytes]:
    """What it may have been."""
    with_base = _with_base(data, folder)
    if with_base is not None:
        yield with_base
    if len(data) <= FLIPPED:
        yield from _flipped(data)


def _with_base(data: bytes, folder: Path) -> bytes | None:
    """With what follows from the base's file: its size and sha256, shapes and dtypes."""
    try:
        raw = json.loads(data)
        header = read_header(LocalStorage(folder), BASE)
        path = folder / BASE
        raw["base"] = vars(FileEntry(path.stat().st_size, digest(path)))
        for name, entry in raw["modules"].items():
            raw["modules"][name] = entry | {"shape": list(header[name].shape), "dtype": header[name].dtype}
        return json.dumps(raw, indent=1).encode()
    except (RecordError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _flipped(data: bytes) -> Iterator[bytes]:
    """With one bit flipped back, where the checksum fits then."""
    found = _RUN_ID.search(data)
    if found is None:  # the bit is in the run_id, or in its name
        for at in range(min(_HEAD, len(data))):
            for bit in range(8):
                changed = data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
                if _RUN_ID.search(changed, 0, _HEAD):
                    yield changed
        return
    at = found.start(1) + 32
    check, without = found[1][32:].decode(), data[:at] + data[at + 32 :]
    true = hashlib.sha256(without).hexdigest()[:32]
    if sum(a != b for a, b in zip(true, check, strict=True)) == 1:
        yield data[:at] + true.encode() + data[at + 32 :]
    before = hashlib.sha256()
    for place, byte in enumerate(without):
        after = without[place + 1 :]
        for bit in range(8):
            tried = before.copy()
            tried.update(bytes([byte ^ 1 << bit]) + after)
            if tried.hexdigest()[:32] == check:
                shown = place if place < at else place + 32
                yield data[:shown] + bytes([byte ^ 1 << bit]) + data[shown + 1 :]
        before.update(bytes([byte]))
