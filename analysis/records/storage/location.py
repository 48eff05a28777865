"""The location behind a path or an address: a folder or a file, the names there, and the folders of its checkpoints."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from deltaw.adapters.errors import OptionError, RecordError
from deltaw.adapters.peft.names import CONFIG
from deltaw.analysis.records.storage.file_names import folder_step, is_readable
from deltaw.analysis.records.storage.files import FILES, LocalStorage, Storage, is_address
from deltaw.analysis.records.storage.remote import NotListedError, RemoteStorage, is_web

TRIED = (
    "manifest.json",
    CONFIG,
    "model.safetensors",
    "model.safetensors.index.json",
    ".metadata",
)  # where nothing is listed


LOOKED_AT = 100  # names in a folder, when it is looked for adapters in folders
# Where trainers put the model in a step's folder: NeMo, verl, OLMo-core, TRL, Megatron with one part
INNER = ("model", "actor", "lora_adapter", "policy", "huggingface", "weights", "model_and_optim", "mp_rank_00", "hf")


@dataclass(frozen=True)
class Folder:
    """A folder, and the names of the files and folders in it."""

    storage: Storage
    names: Sequence[str]


@dataclass(frozen=True)
class Location(Folder):
    """A folder that may hold a run.

    Arguments:
        storage: The folder.
        names: What is in it.
        file: The file that was asked for, where it was not the folder.
        checkpoints: The folders in it whose names say a step, by step.
    """

    file: str | None = None
    checkpoints: Mapping[int, Folder] = field(default_factory=dict)

    def any_has(self, name: str) -> bool:
        """Return whether one of the checkpoints, or the folder where it has none, holds a file of this name."""
        if self.file is not None:
            return False
        return any(name in folder.names for folder in self.checkpoints.values() or (self,))

    def has(self, *names: str) -> bool:
        """Return whether the folder itself was asked for and holds one of these."""
        return self.file is None and any(name in self.names for name in names)


def locate(path: str | Path) -> Location:
    """Look at a path or an address.

    Raises:
        RecordError: There is nothing there, no way to it, or two folders in it are of the same step.
        OptionError: It is no path.
    """
    adapter = _adapter_of_each(path)
    storage, file = storage_of(path if adapter is None else Path(path).parent)
    if file is not None:
        return Location(storage, [file], file)
    names = listed(storage)
    steps: dict[int, str] = {}
    for name in names:
        step = folder_step(name)
        if step is None or not storage.has_folder(name):
            continue
        if step in steps:
            raise RecordError(
                f"{storage.where}: {steps[step]} and {name} are folders of the same step; move one of them away"
            )
        steps[step] = name
    if (
        not steps and own_step(storage) is not None and not is_readable(names)
    ):  # one step's folder, with the model deeper
        inside = _model_in(storage)
        return Location(inside.storage, inside.names)
    return Location(
        storage, names, None, {step: _model_in(storage.folder(steps[step]), adapter) for step in sorted(steps)}
    )


def _adapter_of_each(path: str | Path) -> str | None:
    """The name of an adapter in RUN/checkpoint-N/NAME, where the path is RUN/NAME."""
    if (isinstance(path, str) and is_address(path)) or not isinstance(path, (str, Path)) or os.path.exists(path):
        return None
    parent, name = Path(path).parent, Path(path).name
    if not is_folder(parent):
        return None
    steps = [found for found in os.listdir(parent) if folder_step(found) is not None]
    return name if steps and all(os.path.isfile(parent / step / name / CONFIG) for step in steps) else None


def own_step(storage: Storage, *, above: int = 0) -> int | None:
    """Return the step that the name of an opened folder says, or of the step's folder that it is the model's place in.

    Arguments:
        storage: The folder.
        above: Folders of any name to climb, at most: an adapter in a step's folder has a name of its own.

    Example:
        >>> own_step(LocalStorage(Path("run/step1000-unsharded"))), own_step(LocalStorage(Path("run")))
        (1000, None)
    """
    where = str(Path(storage.where).resolve()) if isinstance(storage, LocalStorage) else storage.where.partition("?")[0]
    for name in reversed(where.replace(os.sep, "/").rstrip("/").split("/")):
        step = folder_step(name)
        if step is not None:
            return step
        if name not in INNER:
            above -= 1
            if above < 0:
                return None
    return None


def adapters_in(folder: Folder) -> list[str]:
    """Return the folders in a folder that hold an adapter, of the first ``LOOKED_AT`` names."""
    return [
        name
        for name in folder.names[:LOOKED_AT]
        if folder.storage.has_folder(name) and CONFIG in folder.storage.folder(name).names()
    ]


def _model_in(storage: Storage, adapter: str | None = None) -> Folder:
    """The folder of a step, or the one in it that holds its model, as in epoch_0_step_20/model."""
    folder = Folder(storage, storage.names())
    if adapter is not None:
        inside = storage.folder(adapter)
        return Folder(inside, inside.names())
    while not is_readable(folder.names):
        if sum(name.startswith("mp_rank_") for name in folder.names) > 1:
            break  # parts of one model
        inner = [name for name in INNER if name in folder.names and folder.storage.has_folder(name)]
        if len(inner) != 1:
            inner = adapters_in(folder)
        if len(inner) != 1:
            break
        inside = folder.storage.folder(inner[0])
        folder = Folder(inside, inside.names())
    return folder


def storage_of(where: str | Path) -> tuple[Storage, str | None]:
    """Return the folder that a path or address names, or the folder and the file where it is a file's.

    Raises:
        RecordError: There is nothing there, or no way to it.
        OptionError: It is no path.
    """
    if not isinstance(where, (str, Path)):
        raise OptionError(f"path is a {type(where).__name__}; give a folder, a file or an address")
    if isinstance(where, str) and is_address(where):
        plain, mark, query = where.partition("?") if is_web(where) else (where, "", "")
        head, _, last = plain.rstrip("/").rpartition("/")
        if last.endswith(FILES):
            return RemoteStorage(f"{head}{mark}{query}"), unquote(last) if is_web(where) else last
        return RemoteStorage(where), None
    path = Path(where)
    if os.path.isfile(path):
        return LocalStorage(path.parent), path.name
    if not is_folder(path):
        raise RecordError(f"{path}: there is no such folder")
    return LocalStorage(path), None


def is_folder(path: Path) -> bool:
    """Return whether there is such a folder; a name that no file system could have is none."""
    return os.path.isdir(path)


def listed(storage: Storage) -> list[str]:
    """Return the names in a folder; where a web server does not list it, which of the usual names are there."""
    try:
        found = storage.names()
    except NotListedError:
        found = [name for name in TRIED if storage.has(name)]
        if not found:
            raise
    return found or [name for name in TRIED if storage.has(name)]
