"""Files of a stranger that are read whole: regular ones of a stated size, and JSON of a stated size and depth.

Every reader of the project goes through here, so that a FIFO, a device, a directory in a file's place, a sparse file of
a terabyte or a million nested brackets is one error and no standstill.
"""

import contextlib
import io
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

JSON_LIMIT = 100_000_000  # bytes; the largest index of a public model has 10 MB
DEPTH = 64  # of nesting; a configuration of transformers has 6
PARTS = 4_000_000  # mappings and lists in one text: of "{}," three bytes become seventy in memory


@contextlib.contextmanager
def regular_file(path: Path | str) -> Iterator[io.BufferedReader]:
    """Open a regular file; anything else, as a FIFO that nobody writes to, is refused without waiting for it.

    Raises:
        OSError: There is no such file, it may not be read, or it is no regular one.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb", closefd=True) as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path}: is no regular file")
        yield file


def small_file(path: Path, limit: int = JSON_LIMIT) -> bytes:
    """Return the bytes of a regular file that has at most so many.

    Raises:
        OSError: As ``regular_file``.
        ValueError: It has more bytes.
    """
    with regular_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = b"" if size > limit else file.read(limit + 1)
    if max(size, len(data)) > limit:
        raise ValueError(f"it has {max(size, len(data))} bytes; at most {limit} are read")
    return data


def bounded_json(data: bytes | bytearray | memoryview, *, unique: bool = False) -> Any:
    """Return the value of a JSON text of at most ``JSON_LIMIT`` bytes, ``DEPTH`` levels and ``PARTS`` parts.

    Arguments:
        data: The text in UTF-8.
        unique: Refuse a mapping that has a name twice, of which the json module takes the last.

    Raises:
        ValueError: It is no JSON, or beyond one of the bounds.

    Example:
        >>> bounded_json(b'{"rank": 8}')
        {'rank': 8}
        >>> bounded_json(b"[" * 100 + b"]" * 100)
        Traceback (most recent call last):
        ValueError: it is nested more than 64 deep
    """
    text = bytes(data)
    if len(text) > JSON_LIMIT:
        raise ValueError(f"it has {len(text)} bytes; a JSON text here has at most {JSON_LIMIT}")
    if text.count(b"{") + text.count(b"[") > PARTS:  # those in strings counted too: no file comes near
        raise ValueError(f"it has more than {PARTS} mappings and lists")
    try:
        found = json.loads(text, object_pairs_hook=_once if unique else None)
    except RecursionError:
        raise ValueError(f"it is nested more than {DEPTH} deep") from None
    _check_depth(found)
    return found


def _check_depth(found: Any) -> None:
    level = [found] if isinstance(found, (dict, list)) else []
    for _ in range(DEPTH):
        parts = (inner for part in level for inner in (part.values() if isinstance(part, dict) else part))
        level = [inner for inner in parts if isinstance(inner, (dict, list))]
        if not level:
            return
    raise ValueError(f"it is nested more than {DEPTH} deep")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"it has {twice!r:.60} twice")
    return found
