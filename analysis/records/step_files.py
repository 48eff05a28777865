"""Files of whole models whose names hold a step, as ``step-100.safetensors``; or one such file."""

import re
from collections.abc import Sequence
from functools import partial

from deltaw.adapters.errors import RecordError
from deltaw.analysis.records.base import BaseLike, open_base
from deltaw.analysis.records.full import FullModelSource, trainer_log
from deltaw.analysis.records.location import Location
from deltaw.analysis.records.model_reader import SHARD, hint, model_files, read_file
from deltaw.analysis.records.source import Source
from deltaw.analysis.records.storage import FILES


class StepFilesSource(FullModelSource):
    """The checkpoints of a model that was saved whole, a file a step."""

    format = "safetensors"


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
    files = [name for name in location.names if name.endswith(".safetensors")] or model_files(location.names)
    if not files:
        raise RecordError(f"{storage.where}: holds no model weights (there are {', '.join(location.names[:8])})")
    if any(SHARD.fullmatch(name) for name in files):
        raise RecordError(f"{storage.where}: {hint(files)}")
    if len(files) == 1:
        return _one_file(location, files[0], base, everything)
    try:
        by_step = step_in(files)
    except RecordError as error:
        raise RecordError(f"{storage.where}: {error}") from None
    readers = {at: partial(read_file, storage, name) for at, name in by_step.items()}
    config, log = storage.mapping("config.json"), trainer_log(storage)[1]
    return StepFilesSource(storage.where, readers, config, open_base(base), everything=everything, log=log)


def _one_file(location: Location, file: str, base: BaseLike, everything: bool) -> Source:
    storage = location.storage
    if not file.endswith(FILES):
        raise RecordError(f"{storage.file(file)}: is no run's folder, and no file of weights ({', '.join(FILES)})")
    numbers = re.findall(r"step[-_=]?(\d{1,18})(?!\d)", file)
    readers = {int(numbers[-1]) if numbers else 0: partial(read_file, storage, file)}
    config = storage.mapping("config.json")
    return StepFilesSource(
        storage.file(file), readers, config, open_base(base), everything=everything, steps_known=bool(numbers)
    )


def step_in(names: Sequence[str]) -> dict[int, str]:
    """Return the files by the step that their names hold: the number after "step" and the like, or the only one.

    Raises:
        RecordError: A name holds no number, or two hold the same; names them.

    Example:
        >>> step_in(["w-epoch1-step20.safetensors", "w-epoch1-step40.safetensors"])
        {20: 'w-epoch1-step20.safetensors', 40: 'w-epoch1-step40.safetensors'}
    """
    found: dict[int, str] = {}
    for name in names:
        stem = re.sub(r"\.[A-Za-z]+$", "", name)
        named = re.findall(r"(?:step|checkpoint|ckpt|iter|iteration)s?[-_=]?(\d{1,18})(?!\d)", stem, re.IGNORECASE)
        numbers = named[-1:] or re.findall(r"\d+", stem)
        if len(numbers) != 1 or len(numbers[0]) > 18:
            raise RecordError(f"{name!r} does not say its step; name the files as step-100{name[len(stem) :]}")
        step = int(numbers[0])
        if step in found:
            raise RecordError(f"{found[step]!r} and {name!r} both say step {step}")
        found[step] = name
    return found
