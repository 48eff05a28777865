"""Tables that are no wider than the terminal."""

import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any

from deltaw.analysis.printable import printable
from deltaw.cli.output import in_columns

ANYWHERE = (110, 40)  # columns and lines where there is no terminal
NARROW = 24  # the least a column of texts is shortened to, as long as there is another way
LEAST = 10  # and where there is none
MARGIN = 2  # between columns
LABELS = ("run", "method", "kind", "layer", "block", "module", "group", "pairs", "step", "matrices")  # of a row

Row = Mapping[str, Any]


def terminal() -> tuple[int, int]:
    """Return how many columns and lines there are."""
    return tuple(shutil.get_terminal_size(ANYWHERE))  # type: ignore[return-value]


def wrapped(text: str, indent: str = "") -> str:
    """Return a text in lines no longer than the terminal is wide."""
    return "\n".join(wrapped_lines(text, terminal()[0], indent))


def wrapped_lines(text: str, width: int, indent: str = "  ") -> list[str]:
    """Return a text in lines of at most so many columns; all but the first are indented."""
    return textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def fitted(rows: Iterable[Row], width: int | None = None) -> str:
    """Return a table no wider than the terminal.

    Where it is too wide, modules lose what their names all begin with, headings are broken at "_", long texts lose
    their middle, and at last the columns that are left over make a table of their own below.

    Example:
        >>> print(fitted([{"module": f"encoder.layer.{i}.attention.query", "rank": 8} for i in range(2)], width=25))
        module              rank
        ------------------  ----
        …0.attention.query     8
        …1.attention.query     8
        >>> print(fitted([{"kind": "query", "delta_m_row": 0.5, "delta_d_column": 0.25}], width=23))
        kind   delta_m  delta_d
                   row   column
        -----  -------  -------
        query      0.5     0.25
    """
    # Printable first: an escaped name is longer than the name, and not to be cut within.
    listed = [{key: printable(cell) if isinstance(cell, str) else cell for key, cell in row.items()} for row in rows]
    width = width or terminal()[0]
    if not listed or _width(text := _text(listed)) <= width:
        return _text(listed)
    heads = {name: name for name in listed[0]}
    if "module" in listed[0] and (shared := _beginning([str(row["module"]) for row in listed])):
        listed = [{**row, "module": "…" + row["module"][len(shared) + 1 :]} for row in listed]
        text = _text(listed)
    if _width(text) > width:
        heads = {name: _broken(name, [row.get(name) for row in listed]) for name in listed[0]}
    listed, text = _narrower(listed, heads, width, NARROW, but="module")
    if _width(text) > width and "module" in listed[0]:
        listed = [{**row, "module": name} for row, name in zip(listed, _apart(listed), strict=True)]
    for least in (NARROW, LEAST):
        listed, text = _narrower(listed, heads, width, least)
        if _width(text) <= width:
            return text
    return "\n\n".join(_text(part, heads) for part in _parts(listed, heads, width))


def _text(rows: Sequence[Row], heads: Mapping[str, str] | None = None) -> str:
    named = rows if heads is None else [{heads[name]: cell for name, cell in row.items()} for row in rows]
    return in_columns(named, floatfmt=".3g", missingval="")


def _width(text: str) -> int:
    return max(map(len, text.splitlines()), default=0)


def _narrower(
    rows: list[Any], heads: Mapping[str, str], width: int, least: int, but: str = ""
) -> tuple[list[Any], str]:
    """Shorten the longest texts, none below so many characters, until the table fits or they could be mistaken."""
    text, done = _text(rows, heads), {but}
    while (over := _width(text) - width) > 0:
        longest = _longest_texts(_only(rows, [name for name in rows[0] if name not in done]), least)
        if longest is None:
            break
        name, size = longest
        cells = [row[name] for row in rows]
        cut = [None if cell is None else shortened(str(cell), max(least, size - over)) for cell in cells]
        if len(set(cut)) < len(set(cells)):  # names that no longer tell rows apart
            done.add(name)
            continue
        rows = [{**row, name: cell} for row, cell in zip(rows, cut, strict=True)]
        text = _text(rows, heads)
    return rows, text


def _parts(rows: Sequence[Row], heads: Mapping[str, str], width: int) -> list[list[dict[str, Any]]]:
    """Return the columns in several tables that fit, each with the labels of the rows."""
    labels = [name for name in rows[0] if name in LABELS] or list(rows[0])[:1]
    parts, chosen = [], list(labels)
    for name in rows[0]:
        if name in labels:
            continue
        if len(chosen) > len(labels) and _width(_text(_only(rows, [*chosen, name]), heads)) > width:
            parts.append(chosen)
            chosen = list(labels)
        chosen.append(name)
    return [_only(rows, names) for names in (*parts, chosen)]


def _only(rows: Sequence[Row], names: Sequence[str]) -> list[dict[str, Any]]:
    return [{name: row.get(name) for name in names} for row in rows]


def _broken(name: str, cells: Sequence[Any]) -> str:
    """Return a heading in as many lines as make it no wider than it has to be, broken at "_"."""
    wide = max(len(f"{cell:.3g}" if isinstance(cell, float) else str(cell)) for cell in cells)
    lines: list[str] = []
    parts = re.split(r"_(?!\d)", name)  # rank_90 stays together
    room = max(wide, 7, *map(len, parts))
    for part in parts:
        if lines and len(lines[-1]) + 1 + len(part) <= room:
            lines[-1] += f"_{part}"
        else:
            lines.append(part)
    return "\n".join(lines)


def _beginning(names: Sequence[str]) -> str:
    """Return the parts of dotted names that all begin with.

    Example:
        >>> _beginning(["a.b.0.query", "a.b.10.query"])
        'a.b'
    """
    alike = takewhile(lambda parts: len(set(parts)) == 1, zip(*(name.split(".")[:-1] for name in names), strict=False))
    return ".".join(parts[0] for parts in alike)


def _apart(rows: Sequence[Row]) -> list[str]:
    """Return the modules' names with "…" in the place of the parts in which no two of them differ.

    Example:
        >>> _apart([{"module": "a.0.self.query"}, {"module": "a.1.self.value"}])
        ['…0…query', '…1…value']
    """
    names = [str(row["module"]).split(".") for row in rows]
    if len(set(map(len, names))) > 1:
        return [".".join(name) for name in names]
    last = len(names[0]) - 1
    kept = [place == last or len({name[place] for name in names}) > 1 for place in range(last + 1)]
    return [
        re.sub(r"\.?…[….]*", "…", ".".join(part if keep else "…" for part, keep in zip(name, kept, strict=True)))
        for name in names
    ]


def _longest_texts(rows: Sequence[Row], least: int) -> tuple[str, int] | None:
    sizes = {
        name: max(len(str(row[name])) for row in rows)
        for name in rows[0]
        if any(isinstance(row[name], str) for row in rows)
    }
    name = max(sizes, key=sizes.__getitem__, default=None)
    return None if name is None or sizes[name] <= least else (name, sizes[name])


def shortened(text: str, length: int) -> str:
    """Return a text without its middle.

    Example:
        >>> shortened("layers.0.attention.query", 11)
        'layer…query'
    """
    if len(text) <= length:
        return text
    half = (length - 1) // 2
    return f"{text[: length - 1 - half]}…{text[len(text) - half :]}"
