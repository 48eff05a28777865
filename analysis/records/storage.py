"""A folder that is read from: on this machine, or behind an address that fsspec knows.

Both hand out bytes by file name. A name is always one part of a path: nothing that a file says can lead out of its
folder. On this machine the bytes of a tensor are mapped into memory and not read before they are looked at; of a file
behind an address only the range asked for is fetched.
"""

import contextlib
import hashlib
import importlib
import json
import mmap
import os
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import torch

from deltaw.adapters.errors import RecordError

Buffer = memoryview | bytearray
JSON_LIMIT = 100_000_000  # bytes; the largest index of a public model has 10 MB
MAPPED_FROM_START = 2**32  # bytes of a file up to which torch maps it
CHUNK = 2**24  # bytes of a file behind an address that are held at once while its checksum is taken
ASKED_AT_ONCE = 16  # files whose sizes are asked for at the same time


class NotListedError(RecordError):
    """A web server gives no list of a folder; its files may be there all the same."""


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

    @abstractmethod
    def sizes(self, names: Collection[str]) -> dict[str, int | None]:
        """Return the bytes of several files, ``None`` where there is no such file."""

    def digest(self, name: str) -> str:
        """Return a file's sha256; reads it whole."""
        found, size = hashlib.sha256(), self.size(name)
        for start in range(0, size, CHUNK):
            found.update(self.read(name, start, min(CHUNK, size - start), size))
        return found.hexdigest()

    def whole(self, name: str) -> bytes:
        """Return all bytes of a file; none where there is no such file."""
        return bytes(self.read(name, 0, self.size(name))) if self.has(name) else b""

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

    def sizes(self, names: Collection[str]) -> dict[str, int | None]:
        """Return the bytes of several files, by one look at each."""
        found: dict[str, int | None] = dict.fromkeys(names)
        for name in names:
            with contextlib.suppress(OSError, ValueError):
                seen = os.stat(f"{self.where}/{plain_name(name, self.where)}")
                found[name] = seen.st_size if stat.S_ISREG(seen.st_mode) else None
        return found

    def digest(self, name: str) -> str:
        """Return a file's sha256."""
        with self._errors(self.file(name)), (self.path / plain_name(name, self.where)).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def whole(self, name: str) -> bytes:
        """Return all bytes of a file; none where there is no such file."""
        with self._errors(self.file(name)):
            try:
                return (self.path / plain_name(name, self.where)).read_bytes()
            except FileNotFoundError:
                return b""

    def _bytes(self, name: str, start: int, length: int) -> Buffer:
        path, end = self.path / name, start + length
        with self._errors(self.file(name)):
            if end <= MAPPED_FROM_START:  # mmap keeps the file open: a program may hold a thousand, but more matrices
                mapped = torch.from_file(str(path), shared=False, size=end, dtype=torch.uint8)
                return mapped.numpy().data[start:]
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


class RemotePlace(Place):
    """A folder behind an address, read by fsspec.

    Messages name the address without a password or key that stands in it.

    Arguments:
        url: As ``s3://bucket/run``, ``hf://org/model``, ``https://host/run`` or ``memory://run``.

    Raises:
        RecordError: fsspec, or what it needs for this address, is not installed, or the address makes no sense.
    """

    def __init__(self, url: str, inner: tuple[Any, str] | None = None) -> None:
        self.where = without_secrets(url.rstrip("/"))
        self._hidden = _secrets(url)
        if inner is None:
            inner = self._connected(url.rstrip("/"))
        self._files: Any = inner[0]
        self._root: str = inner[1]
        self._sizes: dict[str, int | None] = {}
        self._listed: dict[str, bool] | None = None  # whether it is a folder, by name

    def _connected(self, url: str) -> tuple[Any, str]:
        try:
            files, root = importlib.import_module("fsspec.core").url_to_fs(url)
            files.invalidate_cache()  # fsspec remembers listings; a run may have grown since
        except ImportError as error:
            protocol = url.partition("://")[0].lower()
            needed = f"fsspec {PACKAGES[protocol]}" if protocol in PACKAGES else "fsspec and what it names"
            raise RecordError(f"{self.where}: cannot be read ({self._told(error)}); pip install {needed}") from None
        except Exception as error:
            raise RecordError(f"{self.where}: is no address that fsspec knows ({self._told(error)})") from None
        return files, root

    def _told(self, error: Exception) -> str:
        """What a library says, in one line and without the secrets of the address."""
        text = " ".join(str(error).split())
        for hidden in self._hidden:
            text = text.replace(hidden, "***")
        text = without_secrets(text[:400])
        return f"{type(error).__name__}: {text}" if text else type(error).__name__

    def names(self) -> list[str]:
        """Return the names in the folder, sorted; none where a web server lists nothing.

        Raises:
            RecordError: There is no such folder, bucket or repository, it may not be seen, or no server answers.
            NotListedError: A web server forbids the list.
        """
        if self._listed is None:
            try:
                found = self._files.ls(self._root, detail=True)
            except FileNotFoundError as error:
                if not _is_web(self._files):
                    raise RecordError(f"{self.where}: there is no such folder ({self._told(error)})") from None
                found = []
            except Exception as error:
                forbidden = _is_web(self._files) and getattr(error, "status", None) == 403
                kind = NotListedError if forbidden else RecordError
                raise kind(f"{self.where}: cannot be listed ({self._told(error)})") from None
            kinds = {str(e["name"]).rstrip("/").rsplit("/", 1)[-1]: e.get("type") == "directory" for e in found}
            self._listed = {name: kind for name, kind in kinds.items() if name not in ("", ".", "..")}
            for entry in found:
                if entry.get("type") == "file" and isinstance(entry.get("size"), int):
                    self._sizes.setdefault(str(entry["name"]).rsplit("/", 1)[-1], entry["size"])
        return sorted(self._listed)

    def has_folder(self, name: str) -> bool:
        """Return whether there is a folder of this name."""
        self.names()
        return (self._listed or {}).get(name, False)

    def folder(self, name: str) -> "RemotePlace":
        """Return a folder in it."""
        plain_name(name, self.where)
        inside = RemotePlace(f"{self.where}/{name}", (self._files, f"{self._root.rstrip('/')}/{name}"))
        inside._hidden = self._hidden
        return inside

    def has(self, name: str) -> bool:
        """Return whether there is a file of this name."""
        return self._size(name) is not None

    def sizes(self, names: Collection[str]) -> dict[str, int | None]:
        """Return the bytes of several files: from one list, or where there is none, several asked for at a time."""
        if not _is_web(self._files):
            with contextlib.suppress(RecordError):
                self.names()
        with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
            return dict(zip(names, pool.map(self._size, names), strict=True))

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
            raise RecordError(f"{self.file(name)}: cannot be looked at ({self._told(error)})") from None
        if found.get("type") == "directory":
            return None
        if not isinstance(found.get("size"), int):
            raise RecordError(f"{self.file(name)}: the server does not say how large it is; copy the folder here")
        return int(found["size"])

    def _bytes(self, name: str, start: int, length: int) -> Buffer:
        options = {}
        generic = importlib.import_module("fsspec").AbstractFileSystem.cat_file
        if not self._files.async_impl and type(self._files).cat_file is generic:
            options["cache_type"] = "none"  # it opens the file, as one of the Hub, and would read 5 MB ahead
        try:
            found = self._files.cat_file(f"{self._root.rstrip('/')}/{name}", start=start, end=start + length, **options)
        except Exception as error:
            raise RecordError(f"{self.file(name)}: cannot be fetched ({self._told(error)})") from None
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


PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "hf": "huggingface_hub", "http": "aiohttp", "https": "aiohttp", "gs": "gcsfs"}
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


def parsed(data: Buffer | bytes, where: str) -> Any:
    """Return what some JSON says.

    Raises:
        RecordError: It is no JSON.
    """
    try:
        return json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{where}: is damaged, it is not JSON ({error})") from None


def without_secrets(text: str) -> str:
    """Return a text where the password, token or signature of an address in it is three stars.

    Example:
        >>> without_secrets("https://me:word@host/run?token=word")
        'https://***@host/run?***'
    """
    text = re.sub(r"(?<=://)[^/\s?#]*@", "***@", text)
    return re.sub(r"(://[^\s?'\"]*)\?[^\s'\"]*", r"\1?***", text)


def _secrets(url: str) -> list[str]:
    """What of an address no message may show: user, password, query; as they stand there and decoded."""
    parts = re.match(r"[^:]+://(?:([^/?#]*)@)?[^?#]*(?:\?(.*))?", url)
    user, query = parts.groups() if parts else (None, None)
    found = {text for text in (user, query, *(user or "").split(":", 1)[1:]) if text}
    return sorted({*found, *map(unquote, found)}, key=len, reverse=True)


def _is_web(files: Any) -> bool:
    known = (files.protocol,) if isinstance(files.protocol, str) else files.protocol
    return "http" in known
