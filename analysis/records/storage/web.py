"""Files of a web server, which may lie about their length, send without end, or a byte a minute.

Each answer has a deadline and is counted as it comes, and ends where it gives more than was asked for. None is accepted
compressed: two megabytes would be two gigabytes here.
"""

import asyncio
import importlib
import re
import time
from typing import Any
from urllib.parse import urljoin, urlsplit, urlunsplit

BEGINS = 15.0  # seconds until an answer is there, and one of less than RATE bytes is whole
RATE = 100_000  # bytes a second that a longer answer has to come at, after that
PAGE_LIMIT = 10_000_000  # bytes of the page that lists a folder
PART = 2**20  # bytes that are taken at once
PLAIN = {"Accept-Encoding": "identity"}
ASK = "than were asked for (does it know byte ranges?); copy the folder here"
_SEPARATOR = re.compile(r"%2f|%5c|%00", re.IGNORECASE)
_LINK = re.compile(r"""<[aA]\s[^<>]{0,2000}?[hH][rR][eE][fF]\s{0,9}=\s{0,9}["']([^"'<>]{1,2000})["']""")


class WebError(Exception):
    """An answer is not the one that was asked for."""

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


class Web:
    """Asks for files over http and https.

    Arguments:
        files: fsspec's file system, which has the connections.
        query: What is appended to every address, as a signature.
    """

    def __init__(self, files: Any, query: str = "") -> None:
        self._files, self._query = files, query

    def size(self, url: str) -> int | None:
        """Return a file's bytes, ``None`` where there is no such file."""
        found: int | None = self._done(self._size(url), BEGINS)
        return found

    def read(self, url: str, start: int, length: int) -> bytearray:
        """Return a range of a file, which may have fewer bytes where the file ends."""
        found: bytearray = self._done(self._read(url, start, length), BEGINS + length / RATE)
        return found

    def links(self, url: str) -> list[str]:
        """Return the names that the page of a folder links to in it, those of folders with a slash."""
        text = self._done(self._page(url), BEGINS + PAGE_LIMIT / RATE / 10)
        return links_in(text.decode("utf-8", "replace"), url)

    def _done(self, work: Any, seconds: float) -> Any:
        async def in_time() -> Any:
            begun = time.monotonic()
            try:
                return await asyncio.wait_for(work, seconds)
            except TimeoutError:
                raise WebError(f"the server did not answer whole within {time.monotonic() - begun:.0f} s") from None

        return importlib.import_module("fsspec.asyn").sync(self._files.loop, in_time)

    def _address(self, url: str) -> Any:
        found = self._files.encode_url(url)
        # The query as it stands: a signature that is written otherwise is another.
        return type(found)(f"{found}?{self._query}", encoded=True) if self._query else found

    async def _size(self, url: str) -> int | None:
        session = await self._files.set_session()
        async with session.head(
            self._address(url), headers=PLAIN, allow_redirects=True, timeout=_no_timeout()
        ) as answer:
            if answer.status == 404:
                return None
            length = _number(answer.headers.get("Content-Length"))
            if answer.status == 200 and length is not None and not _compressed(answer):
                return length
        async with session.get(
            self._address(url), headers=PLAIN | {"Range": "bytes=0-0"}, timeout=_no_timeout()
        ) as answer:
            if answer.status == 404:
                return None
            _refuse(answer, 200, 206)
            total = _range(answer)[2] if answer.status == 206 else _number(answer.headers.get("Content-Length"))
            if total is None:
                raise WebError("the server does not say how large it is; copy the folder here")
            return total

    async def _read(self, url: str, start: int, length: int) -> bytearray:
        session = await self._files.set_session()
        asked = PLAIN | {"Range": f"bytes={start}-{start + length - 1}"}
        async with session.get(self._address(url), headers=asked, timeout=_no_timeout()) as answer:
            if answer.status == 404:
                raise FileNotFoundError(url)
            _refuse(answer, 200, 206)
            if answer.status == 206:
                if _range(answer)[0] != start:
                    raise WebError("the server gave another range of bytes than was asked for")
            elif start:
                raise WebError("the server knows no byte ranges; copy the folder here")
            return await _counted(answer, length, ASK)

    async def _page(self, url: str) -> bytearray:
        session = await self._files.set_session()
        async with session.get(self._address(url), headers=PLAIN, timeout=_no_timeout()) as answer:
            if answer.status == 404:
                raise FileNotFoundError(url)
            _refuse(answer, 200)
            if answer.headers.get("Content-Type", "text/html").partition(";")[0].strip() != "text/html":
                return bytearray()
            return await _counted(answer, PAGE_LIMIT, "than the page of a folder may have")


async def _counted(answer: Any, length: int, why: str) -> bytearray:
    """The body, of at most so many bytes."""
    announced = _number(answer.headers.get("Content-Length"))
    if announced is not None and announced > length:
        raise WebError(f"the server gave {announced} bytes where {length} were asked for, more {why}")
    found = bytearray()
    while part := await answer.content.read(PART):
        found += part
        if len(found) > length:
            raise WebError(f"the server gave more than {length} bytes, more {why}")
    return found


def _no_timeout() -> Any:
    """In the place of aiohttp's own, five minutes however much is asked for: ``Web`` has its own deadlines."""
    return importlib.import_module("aiohttp").ClientTimeout(total=None)


def _refuse(answer: Any, *wanted: int) -> None:
    if answer.status not in wanted:
        raise WebError(f"the server answered {answer.status} {answer.reason!s:.60}", answer.status)
    if _compressed(answer):
        raise WebError("the server sent it compressed, though that was not accepted; copy the folder here")


def _compressed(answer: Any) -> bool:
    return answer.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity")


def _range(answer: Any) -> tuple[int, int, int | None]:
    """First and last byte, and the whole file's bytes, of a Content-Range."""
    found = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", answer.headers.get("Content-Range", "").strip())
    if found is None:
        raise WebError("the server does not say which range of bytes it gave")
    first, last, total = found.groups()
    return int(first), int(last), None if total == "*" else int(total)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"\d{1,18}", text) else None


def links_in(page: str, url: str) -> list[str]:
    """Return the names in a folder that its page links to, sorted, those of folders with a slash.

    Example:
        >>> page = '<a href="../">up</a> <a href="b/">b</a> <a href="/run/a.json">a</a> <a href="http://else/x">x</a>'
        >>> links_in(page, "http://host/run")
        ['a.json', 'b/']
    """
    root = urlsplit(url)
    path = root.path.rstrip("/") + "/"
    folder = urlunsplit((root.scheme, root.netloc.rpartition("@")[2], path, "", ""))
    found = set()
    for link in _LINK.findall(page):
        try:
            there = urlsplit(urljoin(folder, link))
        except ValueError:
            continue
        same = there.scheme in ("http", "https") and there.netloc == root.netloc.rpartition("@")[2]
        name = there.path.removeprefix(path)
        if same and there.path.startswith(path) and re.fullmatch(r"[^/]+/?", name) and not _SEPARATOR.search(name):
            found.add(name)
    return sorted(found)
