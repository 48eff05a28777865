"""Folders of PEFT's adapters: one, or one a ``checkpoint-*/``."""

from deltaw.adapters.errors import RecordError
from deltaw.adapters.peft.names import CONFIG
from deltaw.analysis.records.foreign.base import BaseLike
from deltaw.analysis.records.foreign.full import trainer_log
from deltaw.analysis.records.foreign.peft import Adapters
from deltaw.analysis.records.source import Source
from deltaw.analysis.records.storage.location import Location, own_step


def opens(location: Location, base: BaseLike, everything: bool) -> Source:
    """Open an adapter, or those of all steps.

    Raises:
        RecordError: One is damaged, or a checkpoint has no adapter while others do.
    """
    del everything  # an adapter shows what it adapts
    storage = location.storage
    folders = {step: folder.storage for step, folder in location.checkpoints.items()}
    if not folders:
        step, log = trainer_log(storage)
        step = own_step(storage, above=1) if step is None else step
        source = Adapters(storage.where, {step or 0: storage}, base, log)
        source.steps_known = step is not None
        return source
    step, log = trainer_log(storage if "trainer_state.json" in location.names else folders[max(folders)])
    for folder in location.checkpoints.values():
        if CONFIG not in folder.names:
            where = folder.storage.where
            raise RecordError(f"{where}: has no {CONFIG}, other checkpoints here do; move it away")
    if step is not None and step not in folders and CONFIG in location.names:
        folders[step] = storage
    return Adapters(storage.where, dict(sorted(folders.items())), base, log)
