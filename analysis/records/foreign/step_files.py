"""Files of whole models whose names hold a step, as ``step-100.safetensors``; or one such file."""

import logging
from functools import partial

from deltaw.adapters.errors import RecordError
from deltaw.analysis.printable import printable
from deltaw.analysis.records.foreign.base import BaseLike, open_base
from deltaw.analysis.records.foreign.foreign_adapters import INVERSION, foreign_tool, refuse_factors
from deltaw.analysis.records.foreign.formats.opening import adapter_source
from deltaw.analysis.records.foreign.full import FullModelSource, trainer_log
from deltaw.analysis.records.foreign.model_reader import read_file
from deltaw.analysis.records.source import Source
from deltaw.analysis.records.storage.file_names import (
    file_step,
    model_files,
    parts_of_one,
    steps_of_adapters,
    steps_of_files,
    unreadable,
    without_copies,
)
from deltaw.analysis.records.storage.files import FILES
from deltaw.analysis.records.storage.location import LOOKED_AT, Location, adapters_in, own_step
from deltaw.analysis.records.storage.tensors import Tensors

logger = logging.getLogger(__name__)


class StepFilesSource(FullModelSource):
    """The checkpoints of a model that was saved whole, a file a step."""

    format = "safetensors"

    def check_common(self) -> None:
        """Raise where the first and the last file have no tensor in common: then they are parts of one model.

        Raises:
            RecordError: So it is.
        """
        first, last = (self._tensors(step) for step in (self.steps[0], self.steps[-1]))
        if not set(first.names()) & set(last.names()):
            raise RecordError(
                f"{first.where} and {last.where} have no tensor in common: they are parts of one model, or two models, "
                "no steps of one; open one of them by its name"
            )


def recognises(location: Location) -> bool:
    """Return whether files of weights stand there."""
    return location.file is not None or any(name.endswith(FILES) for name in location.names)


def opens(location: Location, base: BaseLike, everything: bool) -> Source:
    """Open one file, or the files of a folder.

    Raises:
        RecordError: A name does not say its step, or these are no models.
    """
    storage = location.storage
    if location.file is not None:
        return _one_file(location, location.file, base, everything)
    files = model_files(location.names)
    files = [name for name in files if name.endswith(".safetensors")] or files
    adapters = [] if files else adapters_in(location)
    if adapters:
        raise RecordError(f"{storage.where}: holds the adapters {', '.join(adapters)}; open one of these folders")
    if not files or parts_of_one(files):
        there = ", ".join(location.names[:8])
        raise RecordError(f"{storage.where}: holds no model weights (there are {there}); {unreadable(location.names)}")
    if len(files) == 1:
        return _one_file(location, files[0], base, everything)
    first = read_file(storage, files[0])  # some files are no steps as they are adapters
    found = foreign_tool(first.names())
    if _is_inversion(first) or (found is not None and _without_steps(files)):
        kept = [name for name in files[:LOOKED_AT] if not _is_inversion(read_file(storage, name))]
        if kept and len(kept) < len(files) <= LOOKED_AT:
            left = printable(", ".join(name for name in files if name not in kept)[:200])
            logger.warning("%s: %s left out, %s", storage.where, left, INVERSION)
            return opens(Location(storage, kept), base, everything)
    if found is not None and not found[0].reads:
        refuse_factors(first.names(), first.where)
    try:
        kept, aside = without_copies(files)
        by_step = steps_of_files(kept) if found is None else steps_of_adapters(files)
    except RecordError as error:
        held = "" if found is None else f"holds {found[0].name}; "
        raise RecordError(f"{storage.where}: {held}{error}") from None
    if found is not None:
        aside = sorted(set(files) - set(by_step.values()))
    if aside:
        logger.warning("%s: %s left out, their names say no step", storage.where, printable(", ".join(aside[:8])))
    readers = {at: partial(read_file, storage, name) for at, name in by_step.items()}
    config, log = storage.mapping("config.json"), trainer_log(storage)[1]
    if found is not None:
        earliest = readers[min(readers)]()
        adapted = adapter_source(storage.where, readers, earliest, dict.fromkeys(readers, storage), base, log=log)
        if adapted is not None:
            return adapted
    source = StepFilesSource(storage.where, readers, config, open_base(base), everything=everything, log=log)
    source.check_common()
    return source


def _is_inversion(tensors: Tensors) -> bool:
    found = foreign_tool(tensors.names())
    return found is not None and found[0].name == INVERSION


def _without_steps(files: list[str]) -> bool:
    return not all(any(letter.isdecimal() for letter in name) for name in files)


def _one_file(location: Location, file: str, base: BaseLike, everything: bool) -> Source:
    storage = location.storage
    if not file.endswith(FILES):
        raise RecordError(f"{storage.file(file)}: is no run's folder, and no file of weights ({', '.join(FILES)})")
    step = file_step(file)
    step = own_step(storage) if step is None else step
    readers = {step or 0: partial(read_file, storage, file)}
    first, known = read_file(storage, file), step is not None
    adapted = adapter_source(storage.file(file), readers, first, {step or 0: storage}, base, steps_known=known)
    if adapted is not None:
        return adapted
    config = storage.mapping("config.json")
    return StepFilesSource(
        storage.file(file), readers, config, open_base(base), everything=everything, steps_known=known, first=first
    )
