"""A folder that is read from: on this machine, or behind an address that fsspec knows.

Both hand out bytes by file name. A name is always one part of a path: nothing that a file says can lead out of its
folder. On this machine the bytes of a tensor are mapped into memory and not read before they are looked at; of a file
behind an address only the range asked for is fetched.
"""

import contextlib
import importlib
import json
import mmap
import os
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deltaw.adapters import RecordError

Buffer = memoryview | bytearray
JSON_LIMIT = 100_000_000  # bytes; the largest index of a public model has 10 MB


class Place(ABC):
    """A folder."""

    where: str

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names of the files and folders in it, sorted; none where it cannot be listed."""

    @abstractmethod
    def folder(self, name: str) -> "Place":
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

    @abstractmethod
    def _bytes(self, name: str, start: int, length: int) -> Buffer:
        """Return a range that is known to lie in the file."""

    def file(self, name: str) -> str:
        """Return how a message names a file."""
        return f"{self.where.rstrip('/')}/{name}"

    def read(self, name: str, start: int, length: int, size: int | None = None) -> Buffer:
        """Return the bytes from ``start``, writable, or raise where the file is shorter.

        Raises:
            RecordError: The file is missing, cannot be read or ends before.
        """
        size = self.size(name) if size is None else size
        if start < 0 or length < 0 or start + length > size:
            raise RecordError(f"{self.file(name)}: has {size} bytes, {start + length} are needed: it is truncated")
        if length == 0:
            return bytearray()
        found = self._bytes(name, start, length)
        if len(found) != length:
            raise RecordError(f"{self.file(name)}: gave {len(found)} bytes where {length} were asked for")
        return found

    def json(self, name: str) -> Any:
        """Return what a JSON file holds.

        Raises:
            RecordError: The file is missing, too large or no JSON.
        """
        size = self.size(name)
        if size > JSON_LIMIT:
            raise RecordError(f"{self.file(name)}: has {size} bytes; a JSON file here has at most {JSON_LIMIT}")
        return parsed(self.read(name, 0, size, size), self.file(name))

    def mapping(self, name: str) -> dict[str, Any]:
        """Return the mapping that a JSON file holds; an empty one where there is no such file."""
        if not self.has(name):
            return {}
        found = self.json(name)
        if not isinstance(found, dict):
            raise RecordError(f"{self.file(name)}: is damaged, it holds no mapping")
        return found


class LocalPlace(Place):
    """A folder on this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.where = str(path)

    def names(self) -> list[str]:
        """Return the names in the folder, sorted."""
        with self._errors(self.where):
            return sorted(entry.name for entry in os.scandir(self.path))

    def folder(self, name: str) -> "LocalPlace":
        """Return a folder in it."""
        return LocalPlace(self.path / plain_name(name, self.where))

    def has(self, name: str) -> bool:
        """Return whether there is a regular file of this name."""
        with contextlib.suppress(OSError, ValueError):
            return stat.S_ISREG((self.path / plain_name(name, self.where)).stat().st_mode)
        return False

    def has_folder(self, name: str) -> bool:
        """Return whether there is a folder of this name."""
        return (self.path / plain_name(name, self.where)).is_dir()

    def size(self, name: str) -> int:
        """Return a file's bytes."""
        with self._errors(self.file(name)):
            found = (self.path / plain_name(name, self.where)).stat()
        if not stat.S_ISREG(found.st_mode):
            raise RecordError(f"{self.file(name)}: is no plain file")
        return found.st_size

    def _bytes(self, name: str, start: int, length: int) -> Buffer:
        with self._errors(self.file(name)), (self.path / name).open("rb") as file:
            skipped = start % mmap.ALLOCATIONGRANULARITY
            mapped = mmap.mmap(file.fileno(), skipped + length, access=mmap.ACCESS_COPY, offset=start - skipped)
        return memoryview(mapped)[skipped:]

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise RecordError(f"{what}: there is no such file or folder") from None
        except (OSError, ValueError) as error:
            raise RecordError(f"{what}: cannot be read ({error})") from None


class RemotePlace(Place):
    """A folder behind an address, read by fsspec.

    Arguments:
        url: As ``s3://bucket/run``, ``hf://org/model``, ``https://host/run`` or ``memory://run``.

    Raises:
        RecordError: fsspec, or what it needs for this address, is not installed, or the address makes no sense.
    """

    def __init__(self, url: str, inner: tuple[Any, str] | None = None) -> None:
        self.where = url.rstrip("/")
        if inner is None:
            try:
                inner = importlib.import_module("fsspec.core").url_to_fs(self.where)
            except ImportError as error:
                raise RecordError(f"{url}: cannot be read ({error}); pip install fsspec and what it names") from None
            except Exception as error:
                raise RecordError(f"{url}: is no address that fsspec knows ({_told(error)})") from None
        self._files: Any = inner[0]
        self._root: str = inner[1]
        self._sizes: dict[str, int | None] = {}
        self._listed: dict[str, bool] | None = None  # whether it is a folder, by name

    def names(self) -> list[str]:
        """Return the names in the folder, sorted; none where the server lists nothing."""
        if self._listed is None:
            try:
                found = self._files.ls(self._root, detail=True)
            except FileNotFoundError:
                found = []
            except Exception as error:
                raise RecordError(f"{self.where}: cannot be listed ({_told(error)})") from None
            kinds = {str(e["name"]).rstrip("/").rsplit("/", 1)[-1]: e.get("type") == "directory" for e in found}
            self._listed = {name: kind for name, kind in kinds.items() if name not in ("", ".", "..")}
        return sorted(self._listed)

    def has_folder(self, name: str) -> bool:
        """Return whether there is a folder of this name."""
        self.names()
        return (self._listed or {}).get(name, False)

    def folder(self, name: str) -> "RemotePlace":
        """Return a folder in it."""
        plain_name(name, self.where)
        return RemotePlace(f"{self.where}/{name}", (self._files, f"{self._root.rstrip('/')}/{name}"))

    def has(self, name: str) -> bool:
        """Return whether there is a file of this name."""
        return self._size(name) is not None

    def size(self, name: str) -> int:
        """Return a file's bytes."""
        found = self._size(name)
        if found is None:
            raise RecordError(f"{self.file(name)}: there is no such file")
        return found

    def _size(self, name: str) -> int | None:
        plain_name(name, self.where)
        if name not in self._sizes:
            self._sizes[name] = self._asked_size(name)
        return self._sizes[name]

    def _asked_size(self, name: str) -> int | None:
        try:
            found = self._files.info(f"{self._root.rstrip('/')}/{name}")
        except FileNotFoundError:
            return None
        except Exception as error:
            raise RecordError(f"{self.file(name)}: cannot be looked at ({_told(error)})") from None
        if found.get("type") == "directory":
            return None
        if not isinstance(found.get("size"), int):
            raise RecordError(f"{self.file(name)}: the server does not say how large it is; copy the folder here")
        return int(found["size"])

    def _bytes(self, name: str, start: int, length: int) -> Buffer:
        try:
            found = self._files.cat_file(f"{self._root.rstrip('/')}/{name}", start=start, end=start + length)
        except Exception as error:
            raise RecordError(f"{self.file(name)}: cannot be fetched ({_told(error)})") from None
        if len(found) != length:
            raise RecordError(
                f"{self.file(name)}: the server gave {len(found)} bytes where {length} were asked for (does it know "
                "byte ranges?); copy the folder here"
            )
        return bytearray(found)


def place_of(where: str | Path) -> tuple[Place, str | None]:
    """Return the folder that a path or address names, or the folder and the file where it is a file's.

    Raises:
        RecordError: There is nothing there, or no way to it.
    """
    if isinstance(where, str) and is_address(where):
        head, _, last = where.rstrip("/").rpartition("/")
        if last.endswith(FILES):
            return RemotePlace(head), last
        return RemotePlace(where), None
    path = Path(where)
    if path.is_file():
        return LocalPlace(path.parent), path.name
    if not path.is_dir():
        raise RecordError(f"{path}: there is no such folder")
    return LocalPlace(path), None


FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")  # what a single file with weights is called


def is_address(where: str) -> bool:
    """Return whether it is an address as ``s3://…``, and not a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", where) is not None


def plain_name(name: Any, where: str) -> str:
    """Return a file's name, or raise where it is not one part of a path.

    Raises:
        RecordError: It is empty, ``..``, or has a separator in it.
    """
    if not isinstance(name, str) or name in ("", ".", "..") or re.search(r"[/\\\0:]", name):
        raise RecordError(f"{where}: names the file {name!r}; only files of the folder itself are read")
    return name


def parsed(data: Buffer, where: str) -> Any:
    """Return what some JSON says.

    Raises:
        RecordError: It is no JSON.
    """
    try:
        return json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{where}: is damaged, it is not JSON ({error})") from None


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
