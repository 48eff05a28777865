"""Writes the folder of a recorded run, so that it is whole whenever the process dies.

The order is the promise: a file is on the disk before the line that announces it, and a line is taken back before the
file that it announced. What is in memory follows the disk: after a write that broke off in any way, Ctrl-C among them,
the index is read again. The seal is written before an index that it would contradict.
"""

import json
import logging
import os
import uuid
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from deltaw.adapters.errors import RecordError, WriteError
from deltaw.analysis.records.run_folder.checked_lines import (
    FINAL,
    FINAL_FROM_END,
    checked_line,
    fault,
    last_check,
    last_line,
    lines_of,
    relinked,
    without_check,
)
from deltaw.analysis.records.run_folder.format import (
    BASE,
    CHECKED,
    CHECKPOINTS,
    INDEX,
    MANIFEST,
    SCALARS,
    CheckpointEntry,
    FileEntry,
    Manifest,
    ModuleEntry,
    check_sum,
    checkpoint_path,
    digest,
    index_text,
    parse_index,
    read_manifest,
    read_tensors,
)
from deltaw.analysis.records.run_folder.lock import FolderLock
from deltaw.analysis.records.run_folder.seal import SEAL, Seal, broken_seal, parse_seal, sealed
from deltaw.analysis.records.storage.atomic import (
    append_line,
    atomic_write,
    disk_errors,
    make_folder,
    overwrite,
    remove_leftovers,
    sync_folder,
    write_text,
)

logger = logging.getLogger(__name__)


class RunWriter:
    """Writes one run folder, which is this object's alone from ``open`` to ``close``.

    Arguments:
        folder: The run folder; other files in it are left alone.

    Example:
        >>> import tempfile
        >>> writer = RunWriter(Path(tempfile.mkdtemp()) / "run")
        >>> writer.open(resume=False)
        False
        >>> entry = ModuleEntry((2, 3), "float32")
        >>> writer.create({"0": torch.zeros(2, 3)}, method="ft", modules={"0": entry}, constants={}, info={})
        >>> for step in range(3):
        ...     writer.append(step, {"0.weight": torch.full((2, 3), float(step))})
        >>> writer.drop([1])
        >>> writer.steps
        [0, 2]
        >>> writer.close()
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: FolderLock | None = None
        self._known: list[CheckpointEntry] | None = []  # None: the disk may be ahead of it
        self._broke_off = False  # the last line of the index may be cut off
        self._check = ""  # of the last line of the index, where the entries are known
        self._log_check: str | None = None  # of the last line of the log; None: the disk knows
        self._process: int | None = None  # that has begun or gone on with the run, and seals it

    @property
    def entries(self) -> list[CheckpointEntry]:
        """The announced checkpoints; read from the disk where a write broke off."""
        if self._known is None:
            data = _bytes(self.folder / INDEX)
            found = parse_index(data, str(self.folder / INDEX))
            self._check, self._known = last_check(data), found
        return self._known

    @property
    def steps(self) -> list[int]:
        """The steps of the announced checkpoints."""
        return [entry.step for entry in self.entries]

    def open(self, *, resume: bool) -> bool:
        """Take the folder, and return whether it holds a run to go on with.

        Raises:
            RecordError: Another recorder has it; or it holds a run, without ``resume``.
            WriteError: It cannot be made.
        """
        make_folder(self.folder)
        lock = FolderLock(self.folder)
        lock.acquire()
        self._lock = lock
        if not (self.folder / MANIFEST).exists():
            if _lines(self.folder / INDEX):
                raise RecordError(
                    f"{self.folder}: holds the checkpoints of a run whose {MANIFEST} is missing; choose another folder"
                )
            return False
        if not resume:
            manifest = read_manifest(self.folder)
            raise RecordError(
                f"{self.folder}: already holds a run (method {manifest.method}); resume it, or choose another folder"
            )
        return True

    def close(self) -> None:
        """Seal the run, and release the folder."""
        if self._process == os.getpid():
            try:
                self._seal()
            except WriteError as error:  # the run is whole all the same, as after a kill
                logger.warning("%s: is not sealed: %s", self.folder, error)
            finally:
                self._release()
        else:
            self._release()

    def _release(self) -> None:
        self._process = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def create(
        self,
        base: dict[str, Tensor],
        *,
        method: str,
        modules: dict[str, ModuleEntry],
        constants: dict[str, str],
        info: dict[str, Any],
    ) -> None:
        """Begin a run: its base, and last the manifest that makes it one.

        Arguments:
            base: W₀ by module, and what never changes under the names that ``constants`` refer to.
            method, modules, constants, info: See ``Manifest``.

        Raises:
            WriteError: The disk is full.
        """
        self._prepare()
        manifest = Manifest(
            run_id=uuid.uuid4().hex,
            method=method,
            modules=modules,
            base=_write_tensors(self.folder / BASE, base),
            constants=constants,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            deltaw=_version(),
            info=info,
        )
        write_text(self.folder / SEAL, sealed(b"").to_json())
        write_text(self.folder / MANIFEST, manifest.to_json())
        self._known, self._check, self._log_check = [], "", None
        self._process = os.getpid()

    def resume(
        self,
        base: Mapping[str, Tensor],
        *,
        modules: dict[str, ModuleEntry],
        constants: dict[str, str],
        frozen: Collection[str],
    ) -> dict[str, str]:
        """Go on with the run in the folder, and return its constants.

        Arguments:
            base, modules, constants: Of this model; see ``create``.
            frozen: The modules whose W₀ must be the one of the record.

        Raises:
            RecordError: It is a run of another model, or is damaged.
        """
        self._prepare()
        manifest = read_manifest(self.folder)
        if modules.keys() != manifest.modules.keys():
            odd = sorted(modules.keys() ^ manifest.modules.keys())[0]
            raise RecordError(f"{self.folder}: cannot be resumed, its modules are others (for example {odd!r})")
        for name, entry in modules.items():
            if entry != manifest.modules[name]:
                raise RecordError(
                    f"{self.folder}: cannot be resumed, {name!r} was recorded as {manifest.modules[name]}, not {entry}"
                )
        check_sum(self.folder / BASE, manifest.base)
        fixed = {name: kept for name, kept in manifest.constants.items() if name.rpartition(".")[0] in frozen}
        own = {name: name for name in frozen} | constants
        for name, there in read_tensors(self.folder / BASE, {name: name for name in frozen} | fixed).items():
            if name not in own or not torch.equal(there, base[own[name]]):
                raise RecordError(f"{self.folder}: cannot be resumed, its base of {name!r} is not this model's")
        self._check_end()
        for log in (INDEX, SCALARS):
            self._drop_cut_line(log)
        self._known = self._log_check = None
        self.entries  # noqa: B018 - a damaged index is refused now, and not in the middle of the training
        index = _bytes(self.folder / INDEX)
        found = fault(lines_of(index), old=manifest.version < CHECKED)
        if found is not None:
            raise RecordError(f"{self.folder / INDEX}: {found}; see what deltaw repair can save")
        write_text(self.folder / SEAL, sealed(index).to_json())
        self._process = os.getpid()
        return manifest.constants

    def append(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Write a checkpoint, and announce it.

        Raises:
            WriteError: The disk is full; everything announced before stays.
        """
        entries = self._unsettled()
        entry = CheckpointEntry(step, _write_tensors(checkpoint_path(self.folder, step), tensors))
        line, check = entry.line(self._check)
        append_line(self.folder / INDEX, line, durable=True)
        self._check = check
        self._known, self._broke_off = [*entries, entry], False

    def drop(self, steps: Collection[int]) -> None:
        """Take checkpoints back: first out of the index.

        Raises:
            WriteError: As ``append``.
        """
        if not steps:
            return
        kept = [entry for entry in self._unsettled() if entry.step not in steps]
        text = index_text(kept).encode()
        before, after = sealed(_bytes(self.folder / INDEX)), sealed(text)
        write_text(self.folder / SEAL, Seal(False, before.reached + after.reached).to_json())
        _write_bytes(self.folder / INDEX, text)
        write_text(self.folder / SEAL, after.to_json())
        with disk_errors(self.folder / CHECKPOINTS):
            for step in steps:
                checkpoint_path(self.folder, step).unlink(missing_ok=True)
        self._check = last_check(text)
        self._known, self._broke_off = kept, False

    def rewind(self, step: int) -> None:
        """Drop checkpoints and scalars from this step on; a second time it does nothing.

        A line of the log that cannot be read stays: it may be of any step.

        Raises:
            WriteError: As ``append``.
        """
        self.drop([s for s in self.steps if s >= step])
        lines = _lines(self.folder / SCALARS)
        kept = [line for line in lines if not _is_from(line, step)]
        if len(kept) < len(lines):
            self._log_check = None
            with disk_errors(self.folder / SCALARS):
                if kept:
                    _write_bytes(self.folder / SCALARS, relinked(kept))
                else:
                    (self.folder / SCALARS).unlink()
                    sync_folder(self.folder)

    def log(self, line: Mapping[str, Any]) -> None:
        """Append a line of scalars; it may be lost with the power, and with nothing else.

        Raises:
            WriteError: As ``append``.
        """
        self._hold()
        before, self._log_check = self._log_check, None
        if before is None:
            self._drop_cut_line(SCALARS)
            before = last_check(_bytes(self.folder / SCALARS))
        text, check = checked_line(line, before)
        append_line(self.folder / SCALARS, text, durable=False)
        self._log_check = check

    def base(self, names: dict[str, str]) -> dict[str, Tensor]:
        """Read tensors of the base's file: the wanted key -> the name in the file."""
        return read_tensors(self.folder / BASE, names)

    def _prepare(self) -> None:
        for name in (MANIFEST, BASE, INDEX, SCALARS, CHECKPOINTS, SEAL):
            if (self.folder / name).is_symlink():
                raise RecordError(f"{self.folder}: {name} is a symbolic link; a record holds its files itself")
        make_folder(self.folder / CHECKPOINTS)
        remove_leftovers(self.folder)
        remove_leftovers(self.folder / CHECKPOINTS)

    def _unsettled(self) -> list[CheckpointEntry]:
        """The entries; from here until they are set again, the disk may be ahead of them."""
        self._hold()
        if self._broke_off:
            self._drop_cut_line(INDEX)
        entries, self._known, self._broke_off = self.entries, None, True
        return entries

    def _hold(self) -> None:
        if self._lock is not None:
            self._lock.renew()

    def _check_end(self) -> None:
        """Warn where the run ends before its seal: training goes on all the same."""
        try:
            data = _bytes(self.folder / SEAL)
            log = _bytes(self.folder / SCALARS) if (self.folder / SCALARS).exists() else None
            found = broken_seal(parse_seal(data, SEAL), _bytes(self.folder / INDEX), log)
        except RecordError:
            found = "the seal is damaged"
        if data and found is not None:
            logger.warning("%s: %s", self.folder, found)

    def _seal(self) -> None:
        """Mark the ends of the log and the index, once both are on the disk."""
        for name in (INDEX, SCALARS):
            self._drop_cut_line(name)
        log = _bytes(self.folder / SCALARS)
        last = last_line(log)
        if not log:
            with disk_errors(self.folder / SCALARS):  # empty where its first line could not be written
                (self.folder / SCALARS).unlink(missing_ok=True)
        elif last is not None and last.checked:
            overwrite(self.folder / SCALARS, FINAL_FROM_END, FINAL)
        write_text(self.folder / SEAL, sealed(_bytes(self.folder / INDEX), closed=True).to_json())

    def _drop_cut_line(self, name: str) -> None:
        path = self.folder / name
        whole = b"".join(line + b"\n" for line in _lines(path))
        if path.exists() and path.stat().st_size != len(whole):
            _write_bytes(path, whole)


def _lines(path: Path) -> list[bytes]:
    """The lines of a log without their newlines, and without a last one that was cut off."""
    return _bytes(path).split(b"\n")[:-1]


def _bytes(path: Path) -> bytes:
    """The bytes of a file, none where there is none."""
    with disk_errors(path):
        return path.read_bytes() if path.exists() else b""


def _is_from(line: bytes, step: int) -> bool:
    try:
        return bool(json.loads(without_check(line))["step"] >= step)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _write_bytes(path: Path, data: bytes) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> FileEntry:
    with atomic_write(path) as temporary:
        save_file(tensors, str(temporary))
        return FileEntry(temporary.stat().st_size, digest(temporary))


def _version() -> str:
    try:
        return version("deltaw")
    except PackageNotFoundError:
        return "unknown"
