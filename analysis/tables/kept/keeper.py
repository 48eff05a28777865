"""Keeping the rows of a measure of one run, and finding them again."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deltaw.adapters.errors import DeltawWarning
from deltaw.analysis.records.source import Source
from deltaw.analysis.records.storage.files import is_address
from deltaw.analysis.tables.kept.files import CACHE_LIMIT, Rows, Shelf, cache_folder, real_folder, shorten
from deltaw.analysis.tables.kept.keys import SETTLED, Stamps, arithmetic, digest, newest
from deltaw.analysis.tables.kept.rows import without_labels
from deltaw.analysis.tables.run import Run, Step

TABLES = "tables"  # the folder in that of a run
PAYS = 1.0  # seconds: what takes less is not worth a file
EVERY = 2.0  # seconds between two writes; as much is lost where the process is killed
logger = logging.getLogger(__name__)

Pair = tuple[Step, int]


class Keeper:
    """The kept rows of one measure of one run.

    Rows are written as they come, so that a call that was interrupted goes on from where it was. Nothing is written for
    what takes less than a second, nor for a stop whose files have changed since the run was opened.

    Arguments:
        run: Opened.
        measure: The function of a stop.
        device: Where it is measured.
    """

    def __init__(self, run: Run, measure: Callable[..., Any], device: str) -> None:
        self._run, self._measure, self._device = run, measure, device
        self._stamps = Stamps(run.source)
        self._waiting: list[tuple[str, Pair, list[dict[str, Any]]]] = []
        self._shelf: Shelf | None = None
        self._kept: Rows = {}
        self._key: str | None = None
        self._began = self._written = time.monotonic()
        self._stopped = False
        there = [folder for folder in folders_of(run.source) if real_folder(folder)]
        if there and self._knows_key():
            for folder in reversed(there):
                self._kept |= Shelf(folder, str(self._key)).read()

    def _knows_key(self) -> bool:
        if self._key is None and not self._stopped:
            self._key = arithmetic(self._measure, self._device)
            self._stopped = self._key is None
        return self._key is not None

    def find(self, module: str, stops: Sequence[Pair]) -> dict[Pair, list[dict[str, Any]]]:
        """Return the kept rows of a module by stop, as they were measured."""
        about = self._about(module) if self._kept else None
        if about is None:
            return {}
        labels = self._run.labels(module)
        keys = {stop: self._key_of(about, stop) for stop in stops}
        return {
            stop: [labels | row for row in self._kept[key[0]]]
            for stop, key in keys.items()
            if key is not None and key[0] in self._kept
        }

    def add(self, module: str, stop: Pair, rows: list[dict[str, Any]]) -> None:
        """Keep the rows of a stop, now or a little later."""
        if self._stopped:
            return
        self._waiting.append((module, stop, rows))
        now = time.monotonic()
        if now - self._began > PAYS and now - self._written > EVERY:
            self._write()

    def close(self) -> None:
        """Write what is left."""
        if self._waiting and time.monotonic() - self._began > PAYS:
            self._write()
        if self._shelf is not None:
            self._shelf.close()
            if self._shelf.folder.parent == cache_folder():
                shorten(cache_folder(), CACHE_LIMIT)
            self._shelf = None

    def _write(self) -> None:
        rows = self._keyed() if self._knows_key() else {}
        self._waiting, self._written = [], time.monotonic()
        if not rows:
            return
        reason = ""
        for folder in [self._shelf.folder] if self._shelf is not None else folders_of(self._run.source):
            try:
                shelf = self._shelf or Shelf(folder, str(self._key))
                shelf.write(rows)
                self._shelf = shelf
                return
            except OSError as error:
                reason = reason or f"{folder}: {error.strerror or error}"
            except TypeError as error:  # a measure with values of a kind that is not kept
                self._stopped = True
                logger.debug("%s: not kept: %s", self._run.source.where, error)
                return
        self._stopped, self._shelf = True, None
        warnings.warn(
            f"{self._run.source.where}: what is measured is not kept for the next time ({reason}); set XDG_CACHE_HOME "
            "to a folder that can be written to, or pass cache=False (at the command line --no-cache)",
            DeltawWarning,
            stacklevel=2,
        )

    def _keyed(self) -> Rows:
        """The waiting rows that may be kept, by key."""
        settled = self._run.source.opened - SETTLED
        found: Rows = {}
        for module, stop, rows in self._waiting:
            about = self._about(module)
            key = None if about is None else self._key_of(about, stop)
            plain = without_labels(rows, self._run.labels(module))
            if key is not None and plain is not None and key[1] < settled:
                found[key[0]] = plain
        return found

    def _about(self, module: str) -> str | None:
        about = self._run.source.described(module)
        return None if about is None else digest(str(self._key), module, str(self._run.shape(module)), about)

    def _key_of(self, about: str, stop: Pair) -> tuple[str, float] | None:
        """The key of a stop, and when its files were last changed."""
        stamps = [self._stamps.of(step) for step in (None, *stop)]
        known = [stamp for stamp in stamps if stamp is not None]
        if len(known) < len(stamps):
            return None
        return digest(about, *(text for text, _ in known)), newest(known)


@contextmanager
def keeping(run: Run, measure: Callable[..., Any], device: str, cache: bool) -> Iterator[Keeper | None]:
    """Hand out the keeper of a measure of a run, ``None`` where nothing is to be kept."""
    keeper = Keeper(run, measure, device) if cache else None
    try:
        yield keeper
    finally:
        if keeper is not None:
            keeper.close()


def folders_of(source: Source) -> list[Path]:
    """Return where the tables of a run may stand: in the folder of a run of one's own, else in the user's cache."""
    where = source.where if is_address(source.where) else os.path.abspath(source.where)
    found = [cache_folder() / digest(where)]
    folder = source.folder
    if folder is not None:
        inside = folder / TABLES
        try:
            mine = os.name != "posix" or folder.stat().st_uid == os.geteuid()
        except OSError:
            mine = False
        if mine and os.access(folder, os.W_OK) and (real_folder(inside) or not os.path.lexists(inside)):
            found.insert(0, inside)
    return found
