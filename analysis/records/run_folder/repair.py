"""Saves what is whole of a damaged run, and guesses nothing.

A checkpoint is whole where its file has the size and the sha256 that its line announces, whatever happened to the line
besides. A line that is gone is put back where the checks of the lines around it, or the seal, prove that it stood
there. A row of the log is whole where its own check fits. A manifest is put back where its checksum proves which bit
was flipped, or that what follows from the base's file is what it said: its methods and options stand nowhere else.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from deltaw.adapters.errors import OptionError, RecordError
from deltaw.analysis.records.run_folder.checked_lines import (
    FINAL,
    FINAL_FROM_END,
    Line,
    fault,
    follows,
    last_line,
    lines_of,
    relinked,
)
from deltaw.analysis.records.run_folder.format import (
    BASE,
    CHECKED,
    CHECKPOINTS,
    INDEX,
    MANIFEST,
    SCALARS,
    CheckpointEntry,
    Manifest,
    check_sum,
    checkpoint_path,
    index_text,
)
from deltaw.analysis.records.run_folder.headers import tensor_shapes
from deltaw.analysis.records.run_folder.lock import FolderLock
from deltaw.analysis.records.run_folder.manifest_repair import restored_manifest
from deltaw.analysis.records.run_folder.salvage import entry_of, file_entry, is_row, rows_in, step_of, unfit, with_tail
from deltaw.analysis.records.run_folder.seal import SEAL, Seal, broken_seal, parse_seal, sealed
from deltaw.analysis.records.storage.atomic import atomic_write, disk_errors, sync_folder, write_text
from deltaw.analysis.records.storage.files import is_address


@dataclass
class Repair:
    """What was found and done.

    Attributes:
        path: The run folder.
        whole: Whether nothing was damaged.
        dry_run: Whether nothing was written, and the rest says what would be.
        found: What was damaged, a line each.
        restored: What was brought back though its line was damaged or gone, a line each.
        dropped: What could not be saved, and why, a line each.
        unannounced: Checkpoints in the folder that nothing announces, and whether they could be adopted.
        written: The files that were written anew.
        kept: Where the damaged ones are.
        steps: The checkpoints of the run as it is now.
    """

    path: str
    whole: bool = True
    dry_run: bool = False
    found: list[str] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    unannounced: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)


def repair_run(path: str | Path, *, adopt: bool = False, dry_run: bool = False) -> Repair:
    """Save what is whole of a run that deltaw recorded; the damaged files are kept beside as NAME.damaged-N.

    Arguments:
        path: The run folder.
        adopt: Announce checkpoints that stand in the folder whole but unannounced. What their checksum was nobody
            knows: they have the manifest's tensors and shapes, and finite numbers.
        dry_run: Write nothing.

    Returns:
        What was found and done.

    Raises:
        RecordError: Nothing can be saved, or somebody is recording to it; nothing was written.
        OptionError: ``path`` is an address.
        WriteError: The disk is full; what was there before is safe.

    Example:
        >>> import tempfile, torch
        >>> from deltaw.trainers import Recorder
        >>> folder = tempfile.mkdtemp()
        >>> with Recorder(torch.nn.Sequential(torch.nn.Linear(3, 2)), folder) as recorder:
        ...     for step in range(3):
        ...         _ = recorder.step(step)
        >>> index = Path(folder) / "checkpoints.jsonl"
        >>> _ = index.write_text(index.read_text().replace('"step": 1', '"stop": 1'))
        >>> done = repair_run(folder)
        >>> done.steps, done.written
        ([0, 1, 2], ['checkpoints.jsonl'])
    """
    if is_address(str(path)):
        raise OptionError(f"{path}: is an address; only a folder on this machine can be repaired")
    folder = Path(path)
    if not folder.is_dir():
        raise RecordError(f"{folder}: there is no such folder")
    for name in (MANIFEST, BASE, INDEX, SCALARS, CHECKPOINTS, SEAL):
        if (folder / name).is_symlink():
            raise RecordError(f"{folder}: {name} is a symbolic link; a record holds its files itself")
    if dry_run:
        return _Repairs(folder, adopt).done(dry_run=True)
    lock = FolderLock(folder)
    lock.acquire()
    try:
        return _Repairs(folder, adopt).done(dry_run=False)
    finally:
        lock.release()


class _Repairs:
    """One repair: looks at everything, and only then writes."""

    def __init__(self, folder: Path, adopt: bool) -> None:
        self.folder, self.adopt = folder, adopt
        self.report = Repair(str(folder))
        self.new: dict[str, bytes] = {}  # the files to write, by name
        self.aside: list[Path] = []  # checkpoints that are not what was announced

    def done(self, *, dry_run: bool) -> Repair:
        report = self.report
        manifest = self._manifest()
        seal, index, log = self._seal(), self._bytes(INDEX), self._bytes(SCALARS)
        entries, rewrite = self._index(manifest, seal, index)
        kept_log = self._log(manifest, log)
        if index and not entries and not kept_log:
            raise RecordError(f"{self.folder}: nothing can be saved: {'; '.join(report.dropped)[:1000]}")
        text = index_text(entries).encode() if rewrite else index
        if rewrite:
            self.new[INDEX] = text
        if self._needs_seal(manifest, seal, text):
            self._finish_log(kept_log)
            self.new[SEAL] = sealed(text, closed=True).to_json().encode()
        report.whole = not self.new and not self.aside
        report.dry_run = dry_run
        report.steps = [entry.step for entry in entries]
        report.written = [name for name, data in self.new.items() if data != self._bytes(name)]
        if not dry_run and not report.whole:
            self._write(index, text, seal)
        return report

    # --- the manifest and the base ---

    def _manifest(self) -> Manifest:
        data = self._bytes(MANIFEST)
        manifest, text, found = restored_manifest(data, self.folder)
        if found is not None:
            self.report.found.append(f"{MANIFEST}: {found}")
        if text != data:
            self.report.restored.append(f"{MANIFEST}: put back, its checksum proves it")
            self.new[MANIFEST] = text
        try:
            check_sum(self.folder / BASE, manifest.base)
        except RecordError as error:
            raise RecordError(f"{error}; W₀ is in no other file: put it back from a copy") from None
        return manifest

    # --- the index ---

    def _index(self, manifest: Manifest, seal: Seal | None, data: bytes) -> tuple[list[CheckpointEntry], bool]:
        """The checkpoints that are whole, and whether their lines have to be written anew."""
        report = self.report
        lines = list(lines_of(data))
        message = fault(lines, old=manifest.version < CHECKED)
        rewrite = message is not None
        if message is not None:
            report.found.append(f"{INDEX}: {message}")
        whole: dict[int, tuple[CheckpointEntry, Line]] = {}
        last = 0
        for line in with_tail(data, lines, entry_of):
            entry = entry_of(line)
            why = "cannot be read" if entry is None else self._not_whole(entry, line)
            if entry is None or why:
                report.dropped.append(f"{INDEX}: line {line.number} {why}")
                rewrite = True
                continue
            if line.number > len(lines):
                report.restored.append(f"{INDEX}: line {line.number} has lost its newline, and is whole")
            rewrite |= line.number > len(lines) or line.repeated or entry.step < last or entry.step in whole
            if line.repeated or entry.step in whole:
                report.found.append(f"{INDEX}: line {line.number} repeats step {entry.step}")
            elif entry.step < last:
                report.found.append(f"{INDEX}: line {line.number} has step {entry.step} after step {last}")
            last = max(last, entry.step)
            whole.setdefault(entry.step, (entry, line))
        proven = self._proven(whole, seal)
        for step in proven:
            report.restored.append(f"{INDEX}: the line of step {step} is put back, the checks around it prove it")
        adopted = self._adopted(manifest, set(whole) | set(proven))
        missing = min((count for count, _ in seal.reached), default=0) - len(lines) - len(proven) if seal else 0
        if missing > 0:
            report.dropped.append(f"{INDEX}: {missing} at the end, which the seal knows of, are gone")
        entries = {step: entry for step, (entry, _) in whole.items()} | proven | adopted
        return [entries[step] for step in sorted(entries)], rewrite or bool(proven) or bool(adopted)

    def _not_whole(self, entry: CheckpointEntry, line: Line) -> str:
        """Why a file is not what its line announces, "" where it is; the file is at fault where the line is whole."""
        file = checkpoint_path(self.folder, entry.step)
        try:
            check_sum(file, entry.file)
        except RecordError as error:
            if line.checked and line.whole and file.is_file() and not file.is_symlink() and file not in self.aside:
                self.aside.append(file)
            return f"announces step {entry.step}, but {str(error).removeprefix(str(self.folder))[1:]}"
        return ""

    def _unannounced(self, announced: set[int]) -> Iterator[tuple[int, Path]]:
        there = self.folder / CHECKPOINTS
        for name in sorted(os.listdir(there)) if there.is_dir() else ():
            step, path = step_of(name), there / name
            if step is None or step in announced or path in self.aside or path.is_symlink() or not path.is_file():
                continue
            yield step, path

    def _proven(self, whole: dict[int, tuple[CheckpointEntry, Line]], seal: Seal | None) -> dict[int, CheckpointEntry]:
        """The lines that are gone and must have been there: with them the checks of those around them fit."""
        proven: dict[int, CheckpointEntry] = {}
        order = sorted(whole)
        ends = {check for _, check in seal.reached} if seal is not None else set()
        loose = [(step, CheckpointEntry(step, file_entry(path))) for step, path in self._unannounced(set(whole))]
        for place in range(len(order) + 1):
            low = order[place - 1] if place else -1
            following = whole[order[place]][1] if place < len(order) else None
            high = order[place] if place < len(order) else None
            run = [entry for step, entry in loose if step > low and (high is None or step < high)]
            check = whole[low][1].check if place else ""
            for end, entry in enumerate(run, start=1):
                check = entry.line(check)[1]
                fits = check in ends or (following is not None and follows(following, check))
                if fits:
                    proven |= {e.step: e for e in run[:end]}
        return proven

    def _adopted(self, manifest: Manifest, announced: set[int]) -> dict[int, CheckpointEntry]:
        adopted = {}
        loose = list(self._unannounced(announced))
        shapes = tensor_shapes(manifest, str(self.folder)) if loose else {}
        for step, path in loose:
            why = unfit(path, shapes)
            name = f"{CHECKPOINTS}/{path.name}"
            if why:
                self.report.unannounced.append(f"{name}: is announced by no line, and cannot be adopted: {why}")
            elif not self.adopt:
                self.report.unannounced.append(f"{name}: is announced by no line; --adopt takes it as it is")
            else:
                self.report.restored.append(f"{name}: adopted, though its checksum is not known")
                adopted[step] = CheckpointEntry(step, file_entry(path))
        return adopted

    # --- the log and the seal ---

    def _log(self, manifest: Manifest, data: bytes) -> bytes:
        """The rows that are whole."""
        lines = list(lines_of(data))
        message = fault(lines, old=manifest.version < CHECKED)
        kept, dropped = [], []
        begun = manifest.version >= CHECKED
        for line in with_tail(data, lines, is_row):
            why = "" if is_row(line) else "cannot be read"
            if not why and not line.whole:
                why = "was changed"
            if not why and not line.checked and begun:
                why = "has lost its checksum"
            begun |= line.checked
            parts = rows_in(line.raw) if why else []
            if parts:
                kept += parts
                self.report.restored.append(
                    f"{SCALARS}: line {line.number} has lost a newline: {len(parts)} rows of it"
                )
            elif why:
                dropped.append(f"{SCALARS}: line {line.number} {why}")
            else:
                kept.append(line.raw)
        if message is None and len(kept) == len(lines):
            return data
        self.report.found.append(f"{SCALARS}: {message or 'a line cannot be read'}")
        self.report.dropped += dropped
        self.new[SCALARS] = relinked(kept)
        return self.new[SCALARS]

    def _seal(self) -> Seal | None:
        data = self._bytes(SEAL)
        try:
            return parse_seal(data, SEAL) if data else None
        except RecordError:
            self.report.found.append(f"{SEAL}: is damaged")
            return None

    def _needs_seal(self, manifest: Manifest, seal: Seal | None, index: bytes) -> bool:
        if self.new:
            return True
        if seal is None:
            if manifest.version >= CHECKED and not (self.folder / SEAL).exists():
                self.report.found.append(f"{SEAL}: is missing")
            return manifest.version >= CHECKED or (self.folder / SEAL).exists()
        log = self._bytes(SCALARS) if (self.folder / SCALARS).exists() else None
        message = broken_seal(seal, index, log)
        if message is not None:
            self.report.found.append(f"{SEAL}: {message}")
        return message is not None

    def _finish_log(self, log: bytes) -> None:
        """Let the log end in its final line."""
        log = log[: log.rfind(b"\n") + 1]
        last = last_line(log)
        if last is not None and last.checked:
            log = log[:-FINAL_FROM_END] + FINAL + log[len(log) - FINAL_FROM_END + len(FINAL) :]
        if log != self._bytes(SCALARS):
            self.new[SCALARS] = log

    # --- writing ---

    def _bytes(self, name: str) -> bytes:
        path = self.folder / name
        try:
            return path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise RecordError(f"{path}: cannot be read ({error.strerror})") from None

    def _write(self, index: bytes, text: bytes, seal: Seal | None) -> None:
        for name in self.report.written:
            if (self.folder / name).exists():
                self._keep(self.folder / name, move=False)
        for path in self.aside:
            self._keep(path, move=True)
        reached = (seal.reached if seal is not None else ()) + sealed(index).reached + sealed(text).reached
        write_text(self.folder / SEAL, Seal(False, reached).to_json())  # true before and after what follows
        for name in (MANIFEST, INDEX, SCALARS, SEAL):
            if name in self.new:
                with atomic_write(self.folder / name) as temporary:
                    temporary.write_bytes(self.new[name])

    def _keep(self, path: Path, *, move: bool) -> None:
        number = 1
        while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists() or aside.is_symlink():
            number += 1
        with disk_errors(aside):
            if move:
                path.rename(aside)
                sync_folder(path.parent)
            else:
                with atomic_write(aside) as temporary:
                    temporary.write_bytes(path.read_bytes())
        self.report.kept.append(str(aside.relative_to(self.folder)))
