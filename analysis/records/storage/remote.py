"""A folder behind an address that fsspec knows, as ``s3://…``, ``hf://…`` or ``https://…``."""

import contextlib
import importlib
import re
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote, unquote

from typing_extensions import override

from deltaw.adapters.errors import RecordError
from deltaw.analysis.records.storage.files import Buffer, Storage, plain_name, without_secrets
from deltaw.analysis.records.storage.web import Web

ASKED_AT_ONCE = 16  # files whose sizes are asked for at the same time
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "hf": "huggingface_hub", "http": "aiohttp", "https": "aiohttp", "gs": "gcsfs"}

MARKS = ("ETag", "etag", "md5Hash", "blob_id", "VersionId", "generation")  # what stores say of a file's content


class NotListedError(RecordError):
    """A web server gives no list of a folder; its files may be there all the same."""


class RemoteStorage(Storage):
    """A folder behind an address, read by fsspec.

    Messages name the address without a password or key that stands in it.

    Arguments:
        url: As ``s3://bucket/run``, ``hf://org/model``, ``https://host/run`` or ``memory://run``.

    Raises:
        RecordError: fsspec, or what it needs for this address, is not installed, or the address makes no sense.
    """

    def __init__(self, url: str, inner: tuple[Any, str] | None = None) -> None:
        plain, _, query = url.partition("?") if is_web(url) else (url, "", "")
        self.where = without_secrets(plain.rstrip("/"))
        self._hidden = _secrets(url)
        if inner is None:
            inner = self._connected(plain.rstrip("/"))
        self._files: Any = inner[0]
        self._root: str = inner[1]
        self._web = Web(self._files, query) if _is_web(self._files) else None
        self._sizes: dict[str, int | None] = {}
        self._listed: dict[str, bool] | None = None  # whether it is a folder, by name

    def _connected(self, url: str) -> tuple[Any, str]:
        try:
            files, root = importlib.import_module("fsspec.core").url_to_fs(url)
            files.invalidate_cache()  # fsspec remembers listings; a run may have grown since
        except ImportError as error:
            protocol = url.partition("://")[0].lower()
            needed = f"fsspec {PACKAGES[protocol]}" if protocol in PACKAGES else "fsspec and what it names"
            raise RecordError(
                f"{self.where}: cannot be read ({self._described(error)}); pip install {needed}"
            ) from None
        except Exception as error:
            raise RecordError(f"{self.where}: is no address that fsspec knows ({self._described(error)})") from None
        return files, root

    def _described(self, error: Exception) -> str:
        """A library's message, in one line and without the secrets of the address."""
        text = " ".join(str(error).split())
        for hidden in self._hidden:
            text = text.replace(hidden, "***")
        text = without_secrets(text[:400])
        return f"{type(error).__name__}: {text}" if text else type(error).__name__

    @override
    def names(self) -> list[str]:
        """Return the names in the folder, sorted; none where a web server lists nothing.

        Raises:
            RecordError: There is no such folder, bucket or repository, it may not be seen, or no server answers.
            NotListedError: A web server forbids the list.
        """
        if self._listed is None:
            try:
                found = self._entries()
            except FileNotFoundError as error:
                if self._web is None:
                    raise RecordError(f"{self.where}: there is no such folder ({self._described(error)})") from None
                found = []
            except Exception as error:
                forbidden = self._web is not None and getattr(error, "status", None) == 403
                kind = NotListedError if forbidden else RecordError
                raise kind(f"{self.where}: cannot be listed ({self._described(error)})") from None
            kinds = {str(e["name"]).rstrip("/").rsplit("/", 1)[-1]: e.get("type") == "directory" for e in found}
            self._listed = {name: kind for name, kind in kinds.items() if name not in ("", ".", "..")}
            for entry in found:
                if entry.get("type") == "file" and isinstance(entry.get("size"), int):
                    self._sizes.setdefault(str(entry["name"]).rsplit("/", 1)[-1], entry["size"])
        return sorted(self._listed)

    def _entries(self) -> list[dict[str, Any]]:
        if self._web is None:
            found: list[dict[str, Any]] = self._files.ls(self._root, detail=True)
            return found
        links = self._web.links(self._root)
        return [{"name": unquote(link), "type": "directory" if link.endswith("/") else "file"} for link in links]

    @override
    def has_folder(self, name: str) -> bool:
        self.names()
        return (self._listed or {}).get(name, False)

    @override
    def folder(self, name: str) -> "RemoteStorage":
        plain_name(name, self.where)
        inside = RemoteStorage(f"{self.where}/{name}", (self._files, f"{self._root.rstrip('/')}/{name}"))
        inside._hidden, inside._web = self._hidden, self._web
        return inside

    @override
    def has(self, name: str) -> bool:
        return self._size(name) is not None

    @override
    def sizes(self, names: Collection[str]) -> dict[str, int | None]:
        if self._web is None:
            with contextlib.suppress(RecordError):
                self.names()
        with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
            return dict(zip(names, pool.map(self._size, names), strict=True))

    @override
    def stamps(self, name: str | None = None) -> dict[str, tuple[str, float]]:
        found: dict[str, tuple[str, float]] = {}
        if self._web is not None:
            return found
        with contextlib.suppress(Exception):  # then nothing tells
            for entry in self._entries():
                marks = [f"{mark} {entry[mark]}" for mark in MARKS if isinstance(entry.get(mark), str)]
                own = str(entry["name"]).rsplit("/", 1)[-1]
                if entry.get("type") == "file" and name in (None, own):
                    if not marks:
                        return {}
                    found[own] = " ".join([str(entry.get("size")), *marks]), 0.0
        return found

    @override
    def size(self, name: str) -> int:
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
            if self._web is not None:
                return self._web.size(self._address(name))
            found: Any = self._files.info(f"{self._root.rstrip('/')}/{name}")
        except FileNotFoundError:
            return None
        except Exception as error:
            raise RecordError(f"{self.file(name)}: cannot be looked at ({self._described(error)})") from None
        if found.get("type") == "directory":
            return None
        if not isinstance(found.get("size"), int):
            raise RecordError(f"{self.file(name)}: the server does not say how large it is; copy the folder here")
        return int(found["size"])

    @override
    def _bytes(self, name: str, start: int, length: int) -> Buffer:
        options = {}
        generic = importlib.import_module("fsspec").AbstractFileSystem.cat_file
        if not self._files.async_impl and type(self._files).cat_file is generic:
            options["cache_type"] = "none"  # it opens the file, as one of the Hub, and would read 5 MB ahead
        try:
            if self._web is not None:
                return self._web.read(self._address(name), start, length)
            found = self._files.cat_file(f"{self._root.rstrip('/')}/{name}", start=start, end=start + length, **options)
        except Exception as error:
            raise RecordError(f"{self.file(name)}: cannot be fetched ({self._described(error)})") from None
        return bytearray(found)

    def _address(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{quote(name)}"


def _secrets(url: str) -> list[str]:
    """The parts of an address that no message may show: user, password, query; as they stand there and decoded."""
    parts = re.match(r"[^:]+://(?:([^/?#]*)@)?[^?#]*(?:\?(.*))?", url)
    user, query = parts.groups() if parts else (None, None)
    found = {text for text in (user, query, *(user or "").split(":", 1)[1:]) if text}
    return sorted({*found, *map(unquote, found)}, key=len, reverse=True)


def is_web(url: str) -> bool:
    """Return whether an address is that of a web server, where a query may follow the path."""
    return url.lower().startswith(("http://", "https://"))


def _is_web(files: Any) -> bool:
    known = (files.protocol,) if isinstance(files.protocol, str) else files.protocol
    return "http" in known
