"""Printing and writing, the same for every verb; nothing of it reaches a terminal raw."""

import contextlib
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deltaw.adapters.errors import DataError, OptionError, WriteError
from deltaw.analysis.printable import printable
from deltaw.cli.commands import Session, session

if TYPE_CHECKING:
    import pandas as pd

TABLES = (".csv", ".parquet", ".json")

logger = logging.getLogger(__name__)


class StoppedError(Exception):
    """Ctrl-C, with what can be said of the work so far."""


def emit(text: str) -> None:
    """Print lines, with what a terminal would obey written out: see ``printable``."""
    click.echo(printable(text, keep="\n"))


def remark(text: str) -> None:
    """Print a line beside the answer, as where it was written to; nothing with --quiet."""
    if not session().quiet:
        emit(text)


def complain(message: str, code: int) -> int:
    """Print an error as one line on stderr, and return the exit code."""
    _line(f"deltaw: {message}")
    return code


def emit_json(value: Any) -> None:
    """Print a value as JSON; NaN and infinity, which JSON lacks, as null."""
    click.echo(json.dumps(_plain(value), indent=1))


def emit_table(frame: "pd.DataFrame", as_json: bool, path: Path | None, note: str = "") -> None:
    """Print a table, and write it to a file where one is named."""
    if path is not None:
        write_table(frame, path)
    if as_json:
        emit_json(frame.to_dict(orient="records"))
        return
    emit(in_columns(frame.to_dict(orient="records"), floatfmt=".4g", missingval=""))
    if note:
        emit(note)
    if path is not None:
        remark(f"written to {path}")


def in_columns(rows: Iterable[Mapping[Any, Any]], **layout: Any) -> str:
    """Return rows as a table for a terminal, a line a row; the columns are those of the first.

    A text stays as it is, also where it reads like a number, as the name "0.10" of a module.

    Arguments:
        rows: By column.
        layout: tabulate's.
    """
    import tabulate

    shown = [
        {
            printable(str(name), keep="\n"): printable(cell) if isinstance(cell, str) else cell
            for name, cell in row.items()
        }
        for row in rows
    ]
    texts = (
        [place for place, name in enumerate(shown[0]) if any(isinstance(row.get(name), str) for row in shown)]
        if shown
        else []
    )
    padding = tabulate.MIN_PADDING
    # Two blanks at a heading, beside the two between columns, would make a table a third wider.
    tabulate.MIN_PADDING = 0
    try:
        return tabulate.tabulate(shown, headers="keys", **{"disable_numparse": texts, **layout})
    finally:
        tabulate.MIN_PADDING = padding


def write_table(frame: "pd.DataFrame", path: Path) -> None:
    """Write a table by its suffix, whole or not at all; a missing folder is made.

    In CSV, texts are escaped as ``spreadsheet_cell`` does; JSON and Parquet hold them as they are.

    Raises:
        OptionError, WriteError: As ``check_table_path``.
    """
    from deltaw.analysis.printable import spreadsheet_safe
    from deltaw.analysis.records.storage.atomic import atomic_write, make_folder

    check_table_path(path)
    make_folder(path.parent)
    with atomic_write(path) as aside:
        if path.suffix == ".csv":
            spreadsheet_safe(frame).to_csv(aside, index=False)
        elif path.suffix == ".json":
            aside.write_text(json.dumps(_plain(frame.to_dict(orient="records"))))
        else:
            frame.to_parquet(aside, index=False)
    logger.info("%s: %d rows written", path, len(frame))


def check_table_path(path: Path) -> None:
    """Raise what would stop ``write_table``, before anything is computed.

    Raises:
        OptionError: The suffix is none of .csv, .parquet, .json, or Parquet's library is missing.
        WriteError: As ``check_writable``.
    """
    if path.suffix not in TABLES:
        raise OptionError(f"{path}: tables are written as {', '.join(TABLES)}, not {path.suffix!r}")
    if path.suffix == ".parquet" and not any(find_spec(name) for name in ("pyarrow", "fastparquet")):
        raise OptionError(f"{path}: parquet needs pyarrow: pip install pyarrow, or write .csv")
    if path.is_dir():
        raise OptionError(f"{path}: is a folder; choose the name of a file")
    check_writable(path.parent)


def check_writable(folder: Path) -> None:
    """Raise a WriteError where a folder is not there and cannot be made, or nothing can be written to it."""
    there = next((place for place in (folder, *folder.absolute().parents) if place.exists()), folder)
    if not there.is_dir():
        raise WriteError(f"{there}: is a file, so that nothing can be written below it; choose another place")
    if not os.access(there, os.W_OK):
        raise WriteError(f"{there}: you may not write there; choose another place, or change its rights")


def check_libraries(names: Iterable[str], extra: str, doing: str) -> None:
    """Raise a DataError that names the extra to install where one of these libraries is missing."""
    for name in names:
        if find_spec(name) is None:
            raise DataError(f"{doing} needs {name}: pip install 'deltaw[{extra}]'")


def progress(as_json: bool = False) -> bool:
    """Whether the library is to show how far it is: not with --json or --quiet."""
    return not (as_json or session().quiet)


@contextlib.contextmanager
def going_on(out: Path) -> Iterator[None]:
    """Say on Ctrl-C whether the same call would go on from something in ``out``, or begin again."""
    try:
        yield
    except KeyboardInterrupt:
        if _kept(out):
            raise StoppedError("the same command goes on where it stopped") from None
        raise StoppedError("nothing was kept yet, and the same command begins again") from None


def _kept(out: Path) -> bool:
    """Whether a finished run or the state of an unfinished one lies below a folder."""
    from deltaw.analysis.records.run_folder.results import RESULT
    from deltaw.trainers.finished import TRAINING

    return any(next(out.rglob(pattern), None) for pattern in (RESULT, f"{TRAINING}/checkpoint-*"))


@contextlib.contextmanager
def messages(session: Session) -> Iterator[None]:
    """Show the library's warnings and log on stderr, a line each, as --quiet and --verbose want it."""

    def show(message: Warning | str, *rest: Any, **more: Any) -> None:
        if not session.quiet:
            _line(f"warning: {message}")

    handler, log = _Lines(session), logging.getLogger("deltaw")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


class _Lines(logging.Handler):
    """Prints what the call's volume lets through."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line."""
        least = logging.ERROR if self.session.quiet else logging.INFO if self.session.verbose else logging.WARNING
        if record.levelno >= least:
            _line(f"{record.levelname.lower()}: {record.getMessage()}")


def _line(text: str) -> None:
    print(printable(" ".join(text.split())), file=sys.stderr)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if type(value).__name__ == "NAType" or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value.item() if hasattr(value, "item") else value
