"""Lines of JSON that show whether one of them was changed, and whether one before them is missing.

A line ends in ``"check": "…"``, 32 hexadecimal digits:

    own  = the first 16 digits of sha256(the line up to the check)
    link = the first 16 digits of sha256(the check of the line before ‖ own)

A line whose own digits fit is as it was written; one whose link fits follows the line that it was written after. So a
change is told from a gap, and the lines after either still count. The first line links to no check, "".

The last line of a log that was closed has "final" in the place of "check". Lines without a check are those of format
versions 1 and 2; what follows one links to the first 32 digits of sha256(the check before it ‖ the line).
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

FINAL = b"final"
FINAL_FROM_END = len(b'check": "0123456789abcdef0123456789abcdef"}\n')  # where the word stands in the last line
_CHECKED = re.compile(rb'(\{.*), "(?:check|final)": "([0-9a-f]{16})([0-9a-f]{16})"\}', re.DOTALL)


@dataclass(frozen=True)
class Line:
    """A line of a file.

    Attributes:
        number: Its place, from 1 on.
        raw: Its bytes, without the newline.
        check: Its check, or what stands for it where it has none: what the next line links to.
        checked: Whether it has one.
        whole: Whether its own digits fit; of a line without any nobody knows, and it counts as whole.
        linked: Whether it follows the line that it was written after.
        repeated: Whether it is the line before once more.
    """

    number: int
    raw: bytes
    check: str
    checked: bool
    whole: bool
    linked: bool
    repeated: bool

    @property
    def final(self) -> bool:
        """Whether it was the last one of a log that was closed."""
        return self.checked and self.raw[1 - FINAL_FROM_END :].startswith(FINAL)

    @property
    def content(self) -> bytes:
        """The JSON that was to be written."""
        return without_check(self.raw)


def checked_line(content: Mapping[str, Any], before: str) -> tuple[str, str]:
    """Return a line with its newline, and its check.

    Arguments:
        content: What to write; not empty.
        before: The check of the line before, "" where it is the first.

    Example:
        >>> line, check = checked_line({"step": 0}, "")
        >>> line
        '{"step": 0, "check": "566b58ce7230c2ca1fe05f89e976c691"}\\n'
        >>> [found.whole and found.linked for found in lines_of(line.encode())]
        [True]
    """
    text = json.dumps(content)[:-1]
    own = _digits(text.encode())
    check = own + _digits((before + own).encode())
    return f'{text}, "check": "{check}"}}\n', check


def lines_of(data: bytes) -> Iterator[Line]:
    """Yield the lines of a file's bytes, without a last one that was cut off."""
    before, raw_before = "", None
    for number, raw in enumerate(data[: data.rfind(b"\n") + 1].split(b"\n")[:-1], start=1):
        found = _CHECKED.fullmatch(raw)
        repeated = raw == raw_before
        if repeated:
            yield Line(number, raw, before, found is not None, True, True, repeated)
            continue
        if found is None:
            before = hashlib.sha256(before.encode() + raw).hexdigest()[:32]
            yield Line(number, raw, before, False, True, True, repeated)
        else:
            own, link = found[2].decode(), found[3].decode()
            whole, linked = own == _digits(found[1]), link == _digits((before + own).encode())
            before = own + link
            yield Line(number, raw, before, True, whole, linked, repeated)
        raw_before = raw


def follows(line: Line, check: str) -> bool:
    """Return whether a line was written after the one with this check."""
    found = _CHECKED.fullmatch(line.raw)
    return found is not None and line.whole and found[3].decode() == _digits((check + found[2].decode()).encode())


def last_check(data: bytes) -> str:
    """Return what the next line links to; only of lines without checks all are read."""
    last = last_line(data)
    if last is not None and last.checked:
        return last.check
    check = ""
    for line in lines_of(data):
        check = line.check
    return check


def last_line(data: bytes) -> Line | None:
    """Return the last line that is not cut off, seen by itself: ``number`` and ``linked`` say nothing of its place."""
    end = data.rfind(b"\n") + 1
    return next(lines_of(data[data.rfind(b"\n", 0, end - 1) + 1 : end]), None) if end else None


def relinked(lines: Iterable[bytes]) -> bytes:
    """Return lines, each linked to the one before it, as after some were taken out; a changed one stays as it is."""
    before, raw_before = "", None
    text: list[bytes] = []
    for raw in lines:
        if raw == raw_before:
            text.append(text[-1])
            continue
        raw_before, found = raw, _CHECKED.fullmatch(raw)
        if found is not None and found[2].decode() == _digits(found[1]):
            link = _digits((before + found[2].decode()).encode())
            before = found[2].decode() + link
            text.append(found[1] + b', "check": "' + before.encode() + b'"}\n')
        else:
            before = last_check(raw + b"\n") if found else hashlib.sha256(before.encode() + raw).hexdigest()[:32]
            text.append(raw + b"\n")
    return b"".join(text)


def without_check(raw: bytes) -> bytes:
    """Return a line's JSON without its check, however it came by it."""
    found = _CHECKED.fullmatch(raw)
    return raw if found is None else found[1] + b"}"


def fault(lines: Iterable[Line], *, old: bool) -> str | None:
    """Return what is wrong with the first line that was changed or follows a gap, ``None`` where nothing is.

    Arguments:
        lines: All of a file.
        old: Lines without a check may come first, as they do in runs that format versions 1 and 2 began.
    """
    begun = not old
    for line in lines:
        if not line.checked and begun:
            return f"line {line.number} has no checksum: it was changed"
        begun |= line.checked
        if not line.whole:
            return f"line {line.number} has another checksum than it was written with: it was changed"
        if not line.linked:
            return f"line {line.number} has the checksum of another place: a line before it is missing or was changed"
    return None


def _digits(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
