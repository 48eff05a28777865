"""A folder that is read from: the contract, and a folder on this machine; ``remote.py`` has those behind addresses.

Both hand out bytes by file name. A name is always one part of a path: nothing that a file says can lead out of its
folder. On this machine the bytes of a tensor are mapped into memory and not read before they are looked at; of a file
behind an address only the range asked for is fetched.
"""

import contextlib
import hashlib
import mmap
import os
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from typing_extensions import override

from deltaw.adapters.errors import RecordError
from deltaw.adapters.small_files import JSON_LIMIT, bounded_json, regular_file, small_file
from deltaw.analysis.records.storage.mapped import remember

Buffer = memoryview | bytearray
LOG_LIMIT = 2**28  # bytes of an index or a log; a line has a hundred
MAPPED_FROM_START = 2**32  # bytes of a file up to which torch maps it
CHUNK = 2**24  # bytes of a file behind an address that are held at once while its checksum is taken
FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pth.lora")  # what a single file with weights is called


class Storage(ABC):
    """A folder."""

    where: str

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names of the files and folders in it, sorted; none where it cannot be listed."""

    @abstractmethod
    def folder(self, name: str) -> "Storage":
        """Return a folder in it."""

    @abstractmethod
    def has(self, name: str) -> bool:
        """Return whether there is a file of this name."""

    @abstractmethod
    def has_folder(self, name: str) -> bool:
        """Return whether there is a folder of this name, one of ``names``."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Return a file's bytes."""

    def stamp(self, name: str) -> tuple[int, ...]:
        """Return what is another where another file has taken a file's place: its bytes, and what else is known."""
        return (self.size(name),)

    def check_unchanged(self, name: str, stamp: tuple[int, ...], now: tuple[int, ...] | None = None) -> None:
        """Raise where a file was written again since it had this stamp; ``now`` is its stamp where it is known.

        Raises:
            RecordError: What was read of it before, as its header, need not be true of it any more.
        """
        if (self.stamp(name) if now is None else now) != stamp:
            raise RecordError(f"{self.file(name)}: was written again since it was opened; open the run again")

    @abstractmethod
    def _bytes(self, name: str, start: int, length: int) -> Buffer:
        """Return a range that is known to lie in the file."""

    @abstractmethod
    def sizes(self, names: Collection[str]) -> dict[str, int | None]:
        """Return the bytes of several files, ``None`` where there is no such file."""

    def stamps(self, name: str | None = None) -> dict[str, tuple[str, float]]:
        """Return of a file, or of all that stand in the folder, what is another after every change.

        Returns:
            By name a text, and when the file was last changed, in seconds since 1970, 0 where only the text tells. None
            where there is no such file, or nothing tells.
        """
        del name
        return {}

    def digest(self, name: str) -> str:
        """Return a file's sha256; reads it whole."""
        found, size = hashlib.sha256(), self.size(name)
        for start in range(0, size, CHUNK):
            found.update(self.read(name, start, min(CHUNK, size - start), size))
        return found.hexdigest()

    def whole(self, name: str) -> bytes:
        """Return all bytes of an index or a log; none where there is no such file.

        Raises:
            RecordError: It has more than ``LOG_LIMIT`` bytes, is no regular file, or cannot be read.
        """
        if not self.has(name):
            return b""
        size = self.size(name)
        if size > LOG_LIMIT:
            raise RecordError(f"{self.file(name)}: has {size} bytes; an index or a log here has at most {LOG_LIMIT}")
        return bytes(self.read(name, 0, size, size))

    def file(self, name: str) -> str:
        """Return how a message names a file."""
        return f"{self.where.rstrip('/')}/{name}"

    def read(self, name: str, start: int, length: int, size: int | None = None) -> Buffer:
        """Return the bytes from ``start``, writable, or raise where the file is shorter.

        Raises:
            RecordError: The file is missing, cannot be read or ends before.
        """
        return self._checked(self._bytes, name, start, length, size)

    def mapped(self, name: str, start: int, length: int, size: int | None = None) -> Buffer:
        """Return the bytes as ``read``; of a local file they stay on the disk until they are looked at."""
        return self._checked(self._mapped_bytes, name, start, length, size)

    def _mapped_bytes(self, name: str, start: int, length: int) -> Buffer:
        return self._bytes(name, start, length)

    def _checked(
        self, read: Callable[[str, int, int], Buffer], name: str, start: int, length: int, size: int | None
    ) -> Buffer:
        size = self.size(name) if size is None else size
        if start < 0 or length < 0 or start + length > size:
            raise RecordError(f"{self.file(name)}: has {size} bytes, {start + length} are needed: it is truncated")
        if length == 0:
            return bytearray()
        found = read(name, start, length)
        if len(found) != length:
            raise RecordError(f"{self.file(name)}: gave {len(found)} bytes where {length} were asked for")
        return found

    def json(self, name: str, *, unique: bool = False) -> Any:
        """Return what a JSON file holds; see ``bounded_json``.

        Raises:
            RecordError: The file is missing, too large, too deep or no JSON.
        """
        size = self.size(name)
        if size > JSON_LIMIT:
            raise RecordError(f"{self.file(name)}: has {size} bytes; a JSON file here has at most {JSON_LIMIT}")
        return parsed(self.read(name, 0, size, size), self.file(name), unique=unique)

    def mapping(self, name: str) -> dict[str, Any]:
        """Return the mapping that a JSON file holds; an empty one where there is no such file."""
        if not self.has(name):
            return {}
        found = self.json(name)
        if not isinstance(found, dict):
            raise RecordError(f"{self.file(name)}: is damaged, it holds no mapping")
        return found


class LocalStorage(Storage):
    """A folder on this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.where = str(path)

    @override
    def names(self) -> list[str]:
        with self._errors(self.where):
            return sorted(entry.name for entry in os.scandir(self.path))

    @override
    def folder(self, name: str) -> "LocalStorage":
        return LocalStorage(self.path / plain_name(name, self.where))

    @override
    def has(self, name: str) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return stat.S_ISREG((self.path / plain_name(name, self.where)).stat().st_mode)
        return False

    @override
    def has_folder(self, name: str) -> bool:
        return (self.path / plain_name(name, self.where)).is_dir()

    @override
    def size(self, name: str) -> int:
        return self.stamp(name)[0]

    @override
    def stamp(self, name: str) -> tuple[int, ...]:
        with self._errors(self.file(name)):
            found = os.stat(f"{self.where}/{plain_name(name, self.where)}")
        if not stat.S_ISREG(found.st_mode):
            raise RecordError(f"{self.file(name)}: is no plain file")
        return found.st_size, found.st_dev, found.st_ino, found.st_mtime_ns

    @override
    def sizes(self, names: Collection[str]) -> dict[str, int | None]:
        found: dict[str, int | None] = dict.fromkeys(names)
        for name in names:
            with contextlib.suppress(OSError, ValueError):
                seen = os.stat(f"{self.where}/{plain_name(name, self.where)}")
                found[name] = seen.st_size if stat.S_ISREG(seen.st_mode) else None
        return found

    @override
    def stamps(self, name: str | None = None) -> dict[str, tuple[str, float]]:
        found = {}
        for each in self.names() if name is None else [name]:
            with contextlib.suppress(OSError, ValueError):
                seen = os.stat(f"{self.where}/{plain_name(each, self.where)}")
                if stat.S_ISREG(seen.st_mode):
                    # Nobody can set the time of the last change of a file (ctime), and a new file has another inode.
                    text = f"{seen.st_size} {seen.st_ino} {seen.st_mtime_ns} {seen.st_ctime_ns}"
                    found[each] = text, max(seen.st_mtime, seen.st_ctime)
        return found

    @override
    def digest(self, name: str) -> str:
        with self._errors(self.file(name)), regular_file(self.path / plain_name(name, self.where)) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @override
    def whole(self, name: str) -> bytes:
        path = self.path / plain_name(name, self.where)
        with self._errors(self.file(name)):
            try:
                return small_file(path, LOG_LIMIT)  # opened once: a recorder may put another in its place
            except FileNotFoundError:
                return b""

    @override
    def _bytes(self, name: str, start: int, length: int) -> Buffer:
        found = bytearray(length)
        with self._errors(self.file(name)), regular_file(f"{self.where}/{name}") as file:
            file.seek(start)
            read = file.readinto(found)
        return memoryview(found)[:read]

    @override
    def _mapped_bytes(self, name: str, start: int, length: int) -> Buffer:
        import torch  # names, sizes and headers are read without it

        path, end = self.path / name, start + length
        with self._errors(self.file(name)):
            if end <= MAPPED_FROM_START:  # mmap keeps the file open: a program may hold a thousand, but more matrices
                whole = torch.from_file(str(path), shared=False, size=end, dtype=torch.uint8).numpy()
                remember(whole, str(path))
                return whole.data[start:]
            skipped = start % mmap.ALLOCATIONGRANULARITY
            with path.open("rb") as file:
                part = mmap.mmap(file.fileno(), skipped + length, access=mmap.ACCESS_COPY, offset=start - skipped)
        return memoryview(part)[skipped:]

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise RecordError(f"{what}: there is no such file or folder") from None
        except (OSError, ValueError, RuntimeError) as error:
            raise RecordError(f"{what}: cannot be read ({error})") from None


def is_address(where: str) -> bool:
    """Return whether it is an address as ``s3://…``, and not a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", where) is not None


def plain_name(name: Any, where: str) -> str:
    """Return a file's name, or raise where it is not one part of a path.

    Raises:
        RecordError: It is empty, ``..``, or has a separator in it.
    """
    if not isinstance(name, str):  # not shown: what a pickle nests may take years to write out
        raise RecordError(f"{where}: names a file by a {type(name).__name__}; only files of the folder itself are read")
    if name in ("", ".", "..") or re.search(r"[/\\\0:]", name):
        raise RecordError(f"{where}: names the file {name!r:.200}; only files of the folder itself are read")
    return name


def parsed(data: Buffer | bytes, where: str, *, unique: bool = False) -> Any:
    """Return what some JSON says; see ``bounded_json``.

    Raises:
        RecordError: It is no JSON, or beyond a bound.
    """
    try:
        return bounded_json(data, unique=unique)
    except ValueError as error:
        raise RecordError(f"{where}: is damaged, it is not JSON ({error})") from None


def without_secrets(text: str) -> str:
    """Return a text where the password, token or signature of an address in it is three stars.

    Example:
        >>> without_secrets("https://me:word@host/run?token=word")
        'https://***@host/run?***'
    """
    text = re.sub(r"(?<=://)[^/\s?#]*@", "***@", text)
    return re.sub(r"(://[^\s?'\"]*)\?[^\s'\"]*", r"\1?***", text)
