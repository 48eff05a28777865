"""Recognise what a path holds, and open it.

A foreign format is a file with a ``Source`` and one line in ``FORMATS``: a function that says whether a location is of
this format, by names alone, and one that opens it. The first that recognises a location opens it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from deltaw.adapters.errors import OptionError, RecordError
from deltaw.adapters.patterns import matching
from deltaw.adapters.peft.names import CONFIG
from deltaw.analysis.records import recorded
from deltaw.analysis.records.foreign import full, step_files
from deltaw.analysis.records.foreign.base import BaseLike
from deltaw.analysis.records.foreign.pair import PairSource, is_adapter
from deltaw.analysis.records.foreign.split import SplitSource
from deltaw.analysis.records.source import Source
from deltaw.analysis.records.storage.file_names import NO_PARTS, folder_step, unreadable
from deltaw.analysis.records.storage.files import LocalStorage, is_address
from deltaw.analysis.records.storage.location import (
    LOOKED_AT,
    Location,
    adapters_in,
    is_folder,
    listed,
    locate,
    storage_of,
)

READABLE = (
    "a run of deltaw, checkpoint-*/ folders of Hugging Face or PEFT, a model or adapter folder, a folder of "
    "torch.distributed.checkpoint, or safetensors files whose names hold a step"
)


class Format(NamedTuple):
    """A format that can be opened.

    Arguments:
        recognises: Whether a location is of this format.
        opens: Open it, with W₀ where the run does not hold it, and with embeddings and output heads or without.
    """

    recognises: Callable[[Location], bool]
    opens: Callable[[Location, BaseLike, bool], Source]


def _opens_other(location: Location, base: BaseLike, everything: bool) -> Source:
    from deltaw.analysis.records.foreign.formats.opening import opens

    return opens(location, base, everything)


def _is_other(location: Location) -> bool:
    if not location.any_has(CONFIG):
        return False
    from deltaw.analysis.records.foreign.formats.opening import recognises

    return recognises(location)


def _opens_peft(location: Location, base: BaseLike, everything: bool) -> Source:
    from deltaw.analysis.records.foreign.peft_folders import opens  # its formulas need torch

    return opens(location, base, everything)


FORMATS = [
    Format(recorded.recognises, recorded.opens),
    Format(_is_other, _opens_other),
    Format(lambda location: location.any_has(CONFIG), _opens_peft),
    Format(full.recognises, full.opens),
    Format(step_files.recognises, step_files.opens),
]


@dataclass(frozen=True)
class Opening:
    """How a run was opened, so that another process opens the same: what can be pickled, and no open file.

    Arguments:
        path: The run; of a pair of models, the second.
        before: The first model of a pair.
        base, modules, split: See ``open_source``. A model or a state dict goes along as it is.
        folder: Where relative paths begin.
    """

    path: str | Path
    before: str | Path | None = None
    base: BaseLike = None
    modules: Sequence[str] | None = None
    split: bool | None = None
    folder: str = field(default_factory=os.getcwd)

    def source(self) -> Source:
        """Open it.

        Raises:
            As ``open_source`` and ``open_pair``.
        """
        path, base = self._from_here(self.path), self.base
        if self.before is not None:
            return open_pair(self._from_here(self.before), path, modules=self.modules, split=self.split)
        if isinstance(base, str | Path) and (self.folder != os.getcwd()) and Path(self.folder, base).exists():
            base = self._from_here(base)
        return open_source(path, base=base, modules=self.modules, split=self.split)

    def _from_here(self, path: str | Path) -> str | Path:
        """Return a relative path as it is where it leads to the same place, so that messages name what was given."""
        if self.folder == os.getcwd() or (isinstance(path, str) and is_address(path)):
            return path
        return Path(self.folder, path)


def open_source(
    path: str | Path, *, base: BaseLike = None, modules: Sequence[str] | None = None, split: bool | None = None
) -> Source:
    """Open a run, whoever wrote it.

    Arguments:
        path: A folder or a file, or the address of one that fsspec knows.
        base: W₀, where the run does not hold it.
        modules: Glob patterns over its modules, of which embeddings are shown only so; ``None`` for linear layers.
        split: Show query, key and value of a fused matrix apart; by default in all but deltaw's own runs.

    Raises:
        RecordError: Nothing readable is there, or it is damaged.
        OptionError: ``base`` is given for a run that records it itself.
        TargetError: A pattern of ``modules`` matches nothing.
    """
    source = glance(path, base=base, modules=modules, split=split)
    source.check_methods()
    return source


def glance(
    path: str | Path, *, base: BaseLike = None, modules: Sequence[str] | None = None, split: bool | None = None
) -> Source:
    """Open a run as ``open_source`` does, but take the names of its methods as they are.

    No method is made of its options, so a recorded run is opened without torch.

    Raises:
        As ``open_source``, except that an unknown method is noticed only when a matrix is read.
    """
    modules, began = _patterns(modules), time.time()
    location = locate(path)
    for form in FORMATS:
        if form.recognises(location):
            return _shown(form.opens(location, base, modules is not None), modules, split, began)
    inner = _inner(location)
    if inner:
        raise RecordError(f"{location.storage.where}: holds {inner}; open one of these folders")
    why = unreadable(location.names)
    if why != NO_PARTS:
        raise RecordError(f"{location.storage.where}: holds no model weights; {why}")
    raise RecordError(
        f"{location.storage.where}: is not a recorded run (it has no manifest.json), nor what else can be read: "
        f"{READABLE}"
    )


def _inner(location: Location) -> str:
    """What can be opened in the folders of a folder, in words."""
    storage = location.storage
    if not isinstance(storage, LocalStorage):
        return ""
    adapters = adapters_in(location)
    if adapters:
        return f"the adapters {', '.join(adapters[:8])}"
    folders = [name for name in location.names[:LOOKED_AT] if storage.has_folder(name)]
    runs = [name for name in folders if any(folder_step(step) is not None for step in storage.folder(name).names())]
    return f"the runs {', '.join(runs[:8])}" if runs else ""


def is_own(path: str | Path) -> bool:
    """Return whether it is the folder, or its address, of a run that deltaw recorded."""
    if not (isinstance(path, str) and is_address(path)) and not is_folder(Path(path)):
        return False
    storage, file = storage_of(path)
    return file is None and recorded.recognises(Location(storage, listed(storage)))


def open_pair(
    before: str | Path,
    after: str | Path,
    *,
    modules: Sequence[str] | None = None,
    split: bool | None = None,
) -> Source:
    """Open two models as one run: the first is W₀ and step 0, the second step 1.

    Arguments:
        before, after: Each a file or a folder of one model, or its address; the second may be an adapter of the first.
        modules, split: See ``open_source``.

    Raises:
        RecordError: One of them is no model, or they are not of one model.
    """
    modules, began = _patterns(modules), time.time()
    location, everything = locate(after), modules is not None
    if location.has(CONFIG) and not _is_other(location):
        return _shown(_opens_peft(location, before, everything), modules, split, began)
    if _is_other(location) or is_adapter(after):
        form = next(form for form in FORMATS if form.recognises(location))
        return _shown(form.opens(location, before, everything), modules, split, began)
    return _shown(PairSource(before, after, everything=everything), modules, split, began)


def _patterns(modules: Sequence[str] | str | None) -> list[str] | None:
    given = [modules] if isinstance(modules, str) else modules
    if given is None:
        return None
    if not isinstance(given, (list, tuple, set, frozenset)) or not all(isinstance(one, str) for one in given):
        raise OptionError(f"modules is {modules!r:.80}; give glob patterns over module names, or None for all")
    return list(given)


def _shown(source: Source, modules: Sequence[str] | None, split: bool | None, began: float) -> Source:
    if split or (split is None and not source.keeps_base):
        source = SplitSource(source)
    source.opened = began
    if modules is not None:
        kept = matching(source.shapes, modules, "module")
        source.shapes = {name: source.shapes[name] for name in kept}
    return source
