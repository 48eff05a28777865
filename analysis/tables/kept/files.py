"""The files of kept rows: whoever keeps writes a file of its own, so that no two ever write to one.

    tables/KEY.ID.open    is being written, or was when its process was killed; read like the others
    tables/KEY.ID.rows    is finished

A line is the checksum of what follows, a space, and a JSON mapping from the key of a stop to its rows. A line that was
cut off or changed has another checksum and is passed over. Files are never unpickled, those of another user never read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import stat
import sys
import time
from pathlib import Path

from deltaw.adapters.small_files import small_file
from deltaw.analysis.records.storage.atomic import atomic_write
from deltaw.analysis.tables.kept.rows import Row, from_plain, to_plain

FILE_LIMIT = 2**26  # bytes of a file; a table of 224 matrices and 80 checkpoints has 2**23
FOLDER_LIMIT = 2**28  # bytes of all files of a run
CACHE_LIMIT = 2**30  # bytes of the user's cache, of all runs
MANY = 8  # files of one key that are put together
DEAD = 24 * 3600.0  # seconds after which nobody writes to an open file any more
_NAME = re.compile(r"(?P<key>[0-9a-f]{32})\.[0-9a-f]{16}\.(?P<state>rows|open)")
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)

Rows = dict[str, list[Row]]  # by the key of a stop


def line_of(rows: Rows) -> bytes:
    """Return a line with its checksum and its newline.

    Raises:
        TypeError: A row holds what cannot be kept.
    """
    plain = {key: to_plain(of_stop) for key, of_stop in rows.items()}
    text = json.dumps(plain, separators=(",", ":"), ensure_ascii=True).encode()
    return _checksum(text) + b" " + text + b"\n"


def rows_in(data: bytes) -> Rows:
    """Return the rows that a file's bytes hold; what is not whole is passed over.

    Example:
        >>> data = line_of({"a": [{"step": 0}]}) + line_of({"b": []})[:-3]
        >>> rows_in(data)
        {'a': [{'step': 0}]}
    """
    found: Rows = {}
    for line in data.split(b"\n"):
        checksum, _, text = line.partition(b" ")
        if checksum != _checksum(text):
            continue
        with contextlib.suppress(ValueError, RecursionError):
            rows = json.loads(text)
            for key in rows if isinstance(rows, dict) else ():
                with contextlib.suppress(ValueError, TypeError, KeyError):
                    found[key] = from_plain(rows[key])
    return found


def _checksum(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=16).hexdigest().encode()


class Shelf:
    """The files of one key in a folder.

    Arguments:
        folder: It need not be there yet.
        key: What the rows of all stops have in common.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self._key = folder, key
        self._descriptor: int | None = None
        self._open: Path | None = None
        self._bytes = 0

    def read(self) -> Rows:
        """Return what is kept here, nothing where there is no folder."""
        found: Rows = {}
        total = 0
        for path in sorted(_files(self.folder, self._key)):
            with contextlib.suppress(OSError, ValueError):
                if _own(path) and total < FILE_LIMIT:
                    data = small_file(path, FILE_LIMIT)
                    found |= rows_in(data)
                    total += len(data)
        return found

    def write(self, rows: Rows) -> None:
        """Append rows to this process' own file.

        Raises:
            OSError: It cannot be written.
            TypeError: A row holds what cannot be kept.
        """
        line = line_of(rows)
        if self._bytes + len(line) > FILE_LIMIT:
            return  # a table as large as that is soon read from the checkpoints
        if self._descriptor is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._open = self.folder / f"{self._key}.{secrets.token_hex(8)}.open"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | _NO_LINK | getattr(os, "O_BINARY", 0)
            self._descriptor = os.open(self._open, flags, 0o666)
        self._bytes += len(line)
        while line:  # a write may be short
            line = line[os.write(self._descriptor, line) :]

    def close(self) -> None:
        """Finish the file, put many small ones together, and keep to the limit."""
        if self._descriptor is None or self._open is None:
            return
        os.close(self._descriptor)
        self._descriptor, done = None, self._open.with_suffix(".rows")
        with contextlib.suppress(OSError, ValueError):  # another process may tidy up as well
            self._open.replace(done)
            self._put_together()
        shorten(self.folder, FOLDER_LIMIT)

    def _put_together(self) -> None:
        own = [path for path in _files(self.folder, self._key) if _own(path)]
        finished = [path for path in own if path.suffix == ".rows" or _dead(path)]
        if len(finished) < MANY:
            return
        rows: Rows = {}
        for path in finished:
            rows |= rows_in(small_file(path, FILE_LIMIT))
        line = line_of(rows)
        if len(line) <= FILE_LIMIT:
            with atomic_write(self.folder / f"{self._key}.{secrets.token_hex(8)}.rows") as temporary:
                temporary.write_bytes(line)
        for path in finished:
            path.unlink(missing_ok=True)


def shorten(folder: Path, limit: int) -> None:
    """Remove the oldest files of a folder, and of those in it, until all together are within the limit."""
    found = []
    for path in [*_files(folder), *(path for inner in _folders(folder) for path in _files(inner))]:
        with contextlib.suppress(OSError):
            about = path.lstat()
            found.append((about.st_mtime, about.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= limit:
            return
        with contextlib.suppress(OSError):
            path.unlink()
            total -= size


def real_folder(path: Path) -> bool:
    """Return whether there is a folder, and no link to one: what is written would be elsewhere."""
    with contextlib.suppress(OSError):
        return stat.S_ISDIR(path.lstat().st_mode)
    return False


def cache_folder() -> Path:
    """Return where kept tables of the user stand, by the system's own rule: XDG_CACHE_HOME, or ~/.cache."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):  # another is to be ignored, says the rule
        return Path(given) / "deltaw" / "tables"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "deltaw" / "tables"
    if sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        return Path(os.environ["LOCALAPPDATA"]) / "deltaw" / "Cache" / "tables"
    return Path.home() / ".cache" / "deltaw" / "tables"


def _files(folder: Path, key: str | None = None) -> list[Path]:
    with contextlib.suppress(OSError):
        if real_folder(folder):
            names = ((name, _NAME.fullmatch(name)) for name in os.listdir(folder))
            return [folder / name for name, parts in names if parts and key in (None, parts["key"])]
    return []


def _folders(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return [path for path in folder.iterdir() if real_folder(path)]
    return []


def _own(path: Path) -> bool:
    """Whether a file is this user's: what another writes is not believed."""
    found = path.lstat()
    return stat.S_ISREG(found.st_mode) and (os.name != "posix" or found.st_uid == os.geteuid())


def _dead(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime > DEAD
    return False
