"""A stranger's TOML within bounds, and the line of every key, which Python's own reader does not tell."""

import re
import tomllib
from pathlib import Path
from typing import Any

from deltaw.adapters.errors import PackError
from deltaw.adapters.small_files import small_file
from deltaw.analysis.printable import printable

LARGEST = 512 * 1024  # bytes; the largest of ours has 50,000
DEPTH = 8  # of brackets in brackets, and of dots in a key

# Whole strings first, so that no sign within one counts. A string that nobody closes is an error at once: to look for
# its end again behind every quote would take quadratic time.
_TOKENS = re.compile(
    r"""
    (?P<string>
        "{3}(?:\\.|[^\\])*?"{3,5} | "(?!"")(?:\\.|[^"\\\n])*" | ""(?!")
      | '{3}.*?'{3,5} | '(?!'')[^'\n]*' | ''(?!')
    )
    | (?P<open>["'])
    | (?P<comment>\#[^\n]*)
    | (?P<newline>\n)
    | (?P<sign>[\[\]{}=,])
    | (?P<bare>[^"'\#\n\[\]{}=,]+)
    """,
    re.VERBOSE | re.DOTALL,
)

Where = tuple[str | int, ...]


class Document:
    """What a TOML file holds, and where.

    Arguments:
        source: What it is called in a message.
        text: Its text.

    Raises:
        PackError: It is no TOML, or beyond a bound; names the line.

    Example:
        >>> document = Document("mine.toml", 'name = "mine"\\n\\n[[claims]]\\nid = "one"\\n')
        >>> document.values["claims"][0]["id"], document.line("claims", 0, "id")
        ('one', 4)
    """

    def __init__(self, source: str, text: str) -> None:
        self.source = printable(source)
        self._lines: dict[Where, int] = {}
        text = text.replace("\r\n", "\n")
        self._scan(text)
        try:
            self.values: dict[str, Any] = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            said, _, place = str(error).rpartition(" (at ")
            found = re.match(r"line (\d+)", place)
            raise self.error(said if found else str(error), line=int(found[1]) if found else None) from None
        except (RecursionError, ValueError) as error:
            raise self.error(f"is no TOML that can be read ({error})") from None

    def line(self, *where: str | int) -> int | None:
        """Return the line of a key, or of the nearest one that it is in."""
        for end in range(len(where), 0, -1):
            if where[:end] in self._lines:
                return self._lines[where[:end]]
        return None

    def error(self, said: str, *where: str | int, line: int | None = None) -> PackError:
        """Return the error that says what is wrong with a key, with its line."""
        at = self.line(*where) if line is None else line
        named = ".".join(f"{part + 1}" if isinstance(part, int) else part for part in where)
        place = self.source if at is None else f"{self.source}, line {at}"
        return PackError(f"{place}: {printable(f'{named} ' if named else '')}{printable(said)}")

    def _scan(self, text: str) -> None:
        """Note the line of every table and key."""
        line, depth, dots = 1, 0, 0
        statement: list[str] = []
        start = 1
        table: Where = ()
        counts: dict[Where, int] = {}
        for token in _TOKENS.finditer(text):
            kind, value = token.lastgroup, token.group()
            if kind == "open":
                raise self.error("a string is not closed", line=line)
            if kind == "newline" and depth <= 0:
                table = self._note("".join(statement), start, table, counts)
                statement, dots, depth = [], 0, 0
            elif kind != "comment":
                if not statement:
                    start = line
                dots = 0 if kind in ("sign", "newline") else dots + (value.count(".") if kind == "bare" else 0)
                depth += (value in "[{") - (value in "]}") if kind == "sign" else 0
                if max(depth, dots) > DEPTH:
                    raise self.error(f"is nested more than {DEPTH} deep", line=line)
                if value.strip() or statement:
                    statement.append(value)
            line += value.count("\n")
        self._note("".join(statement), start, table, counts)

    def _note(self, statement: str, line: int, table: Where, counts: dict[Where, int]) -> Where:
        """Note one statement; return the table that the next keys are in."""
        header = re.match(r"\s*(\[\[?)([^\[\]]*)\]", statement)
        if header:
            table = _keys(header[2])
            if header[1] == "[[":
                counts[table] = counts.get(table, -1) + 1
                table = (*table, counts[table])
            self._lines.setdefault(table, line)
        elif statement.strip():
            key = re.match(r"[^=]*", statement)
            self._lines.setdefault((*table, *_keys(key[0] if key else "")), line)
        return table


def read_toml(path: str | Path) -> Document:
    """Return the document in a file of at most ``LARGEST`` bytes.

    Raises:
        PackError: It cannot be read, or is no TOML.
    """
    shown = printable(str(path))
    try:
        text = small_file(Path(path), LARGEST).decode("utf-8")
    except UnicodeDecodeError:
        raise PackError(f"{shown}: is no text in UTF-8") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise PackError(f"{shown}: cannot be read ({printable(str(reason))})") from None
    return Document(str(path), text)


def _keys(text: str) -> Where:
    """The parts of a key; of quoted ones what stands between the quotes."""
    found = re.findall(r'"((?:\\.|[^"\\])*)"|\'([^\']*)\'|([^.\s"\']+)', text)
    return tuple(next(filter(None, parts), "") for parts in found)
