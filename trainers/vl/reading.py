"""Shared by the readers of data sets: JSON that may be cut, fields that may be missing, pictures to be found."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from deltaw.adapters.errors import DataError
from deltaw.trainers.vl.examples import Example

SAMPLE = 50  # pictures that are looked for in each layout before one is chosen


@dataclass
class Part:
    """The content of a folder: examples, and where the pictures that they name should be."""

    name: str
    train: list[Example] = field(default_factory=list)
    dev: list[Example] = field(default_factory=list)
    pictures: dict[str, Path] = field(default_factory=dict)


def find(folder: Path, name: str, places: Sequence[str] = ("",)) -> Path | None:
    """Return the first of ``folder/place/name`` that is a file, or None."""
    return next((folder / place / name for place in places if (folder / place / name).is_file()), None)


def read_json(path: Path, kind: type) -> Any:
    """Read a JSON file whose outermost value is a list or an object.

    Raises:
        DataError: The file cannot be read, is cut or is not JSON, or holds another kind of value.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error})") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{path}: is not whole JSON ({error}); it may be cut: get it again") from None
    if not isinstance(value, kind):
        raise DataError(f"{path}: holds {_kind(type(value))}; wanted is {_kind(kind)}")
    return value


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, object) for every line of a JSON-lines file; blank lines are passed over.

    Raises:
        DataError: As ``read_json``, with the line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error})") from None
    if not any(line.strip() for line in lines):
        raise DataError(f"{path}: is empty")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{where} is not whole JSON ({error}); the file may be cut: get it again") from None
        if not isinstance(row, dict):
            raise DataError(f"{where} holds {_kind(type(row))}; wanted is {_kind(dict)}")
        yield where, row


def take(row: Any, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """Return ``row[name]`` and be sure of its type.

    Raises:
        DataError: The row is no object, has no such field, or one of another type.
    """
    if not isinstance(row, dict):
        raise DataError(f"{where}: holds {_kind(type(row))}; wanted is {_kind(dict)} with {name!r}")
    if name not in row:
        raise DataError(f"{where}: has no {name!r}")
    value = row[name]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    # True is an int in Python, but no number in an annotation.
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(_kind(kind) for kind in kinds)
        raise DataError(f"{where}: {name!r} is {value!r:.60}; wanted is {wanted}")
    return value


def take_text(row: Any, name: str, where: str) -> str:
    """Return a text field without the blanks around it.

    Raises:
        DataError: As ``take``, or the text is blank.
    """
    text: str = take(row, name, str, where).strip()
    if not text:
        raise DataError(f"{where}: {name!r} is blank; correct it or take it out")
    return text


def refuse_twice(names: Iterable[Any], what: str, where: str) -> None:
    """Refuse a name that stands twice.

    Raises:
        DataError: Two of the names are equal; names the first such one.
    """
    seen = set()
    for name in names:
        if name in seen:
            raise DataError(f"{where}: two {what} have the id {name!r}; keep one of them")
        seen.add(name)


def inside(name: str, where: str) -> str:
    """Return a relative path of an annotation, if it stays in its folder.

    Raises:
        DataError: The path is absolute or goes up.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if not name.strip() or path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise DataError(f"{where}: {name!r} is not the path of a picture inside the folder")
    return str(path)


def first_layout(folder: Path, layouts: Sequence[Sequence[str]]) -> list[Path]:
    """Return the pictures' paths in the first layout in which any of the first few of them is there.

    Arguments:
        folder: The data set's folder.
        layouts: For each layout every picture's path in the folder, in one order.

    Returns:
        The paths; those of the first layout where nothing is found, so that what is missing is named as published.
    """
    for layout in layouts:
        if any((folder / path).is_file() for path in layout[:SAMPLE]):
            return [folder / path for path in layout]
    return [folder / path for path in layouts[0]]


def open_picture(path: Path) -> Image.Image:
    """Open a picture in RGB; what is transparent becomes white.

    Raises:
        OSError: The file is missing or is no picture; ``FileNotFoundError`` when it is missing.
    """
    with Image.open(path) as picture:
        if not picture.has_transparency_data:
            return picture.convert("RGB")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")


def _kind(kind: type) -> str:
    names = {dict: "an object", list: "a list", str: "a text", int: "a whole number", bool: "true or false"}
    return names.get(kind, "nothing" if kind is type(None) else kind.__name__)
