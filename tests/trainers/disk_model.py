"""A model of a disk that loses its power: which states of a folder a crash may leave behind.

The calls that a program makes are traced, and from the trace every state is made that a file system may show after a
crash behind any of them:

- Bytes of a file that were not flushed (``fsync``) are there, or not, or in part, or zeros stand in their place.
- A name that was made, renamed or removed is there or not until its folder is flushed, each by itself, in any order.

That is more than a journalled file system does, which keeps the order of names.
"""

import contextlib
import itertools
import os
import stat
from collections import defaultdict
from pathlib import Path


class Trace:
    """Records what is done below a folder.

    Arguments:
        root: The folder.
        patch: pytest's monkeypatch.
    """

    def __init__(self, root, patch):
        self.root = Path(root)
        self.events = []
        self._files = {}  # inode -> number
        self._count = itertools.count()
        self._real = {}
        for name in ("open", "write", "fsync", "replace", "rename", "unlink", "mkdir", "ftruncate"):
            self._real[name] = getattr(os, name)
            patch.setattr(os, name, getattr(self, f"_{name}"))

    def note(self, what):
        """Put a mark: what was announced up to here."""
        self.events.append(("note", what))

    def _below(self, path):
        with contextlib.suppress(TypeError, ValueError):
            path = Path(os.path.abspath(os.fsdecode(path)))
            return path if self.root in path.parents or path == self.root else None
        return None

    def _path_of(self, descriptor):
        return self._below(os.readlink(f"/proc/self/fd/{descriptor}"))

    def _number(self, path, *, new=False):
        inode = os.stat(path).st_ino
        if new or inode not in self._files:  # numbers of inodes are used again
            self._files[inode] = next(self._count)
            self.events.append(("link", str(path.parent), path.name, self._files[inode]))
        return self._files[inode]

    def _data(self, path):
        number = self._number(path)
        self.events.append(("data", number, path.read_bytes()))
        return number

    def _open(self, path, flags, *rest, **more):
        below = self._below(path)
        new = below is not None and not below.exists()
        descriptor = self._real["open"](path, flags, *rest, **more)
        if new and flags & os.O_CREAT:
            self._number(below, new=True)
        return descriptor

    def _write(self, descriptor, data):
        written = self._real["write"](descriptor, data)
        path = self._path_of(descriptor)
        if path is not None:
            self._data(path)
        return written

    def _ftruncate(self, descriptor, size):
        self._real["ftruncate"](descriptor, size)
        if (path := self._path_of(descriptor)) is not None:
            self._data(path)

    def _fsync(self, descriptor):
        self._real["fsync"](descriptor)
        path = self._path_of(descriptor)
        if path is None:
            return
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            self.events.append(("sync folder", str(path)))
        else:
            self.events.append(("sync", self._data(path)))

    def _replace(self, old, new, **more):
        below = self._below(old)
        number = None if below is None or below.is_dir() else self._data(below)
        self._real["replace"](old, new, **more)
        if number is not None:
            self.events.append(("rename", str(below.parent), below.name, Path(new).name, number))

    def _rename(self, old, new, **more):
        self._replace(old, new, **more)

    def _unlink(self, path, **more):
        self._real["unlink"](path, **more)
        if (below := self._below(path)) is not None:
            self.events.append(("unlink", str(below.parent), below.name))

    def _mkdir(self, path, *rest, **more):
        self._real["mkdir"](path, *rest, **more)
        if (below := self._below(path)) is not None:
            self.events.append(("link", str(below.parent), below.name, str(below)))


def states(trace):
    """Yield each state once: what was announced before it, and its files by path, folders as ``None``."""
    seen = set()
    for end in range(1, len(trace.events) + 1):
        announced, durable, pending, kept, current = _replayed(trace.events[:end])
        folders = list(pending)
        for masks in itertools.product(*(_subsets(pending[folder]) for folder in folders)):
            names = {folder: dict(durable[folder]) for folder in durable}
            for folder, operations in zip(folders, masks, strict=True):
                for operation in operations:
                    _apply(names.setdefault(folder, {}), operation)
            there = dict(_walk(names, str(trace.root)))
            loose = sorted({n for n in there.values() if isinstance(n, int) and kept.get(n) != current.get(n)})
            for contents in itertools.product(*(_variants(kept.get(n, b""), current[n]) for n in loose)):
                chosen = kept | dict(zip(loose, contents, strict=True))
                files = {p: None if isinstance(n, str) else chosen.get(n, b"") for p, n in there.items()}
                key = (str(announced), *sorted((p, d) for p, d in files.items() if d is not None), len(files))
                if hash(key) not in seen:
                    seen.add(hash(key))
                    yield announced, files


def _replayed(events):
    announced, durable, pending = None, defaultdict(dict), defaultdict(list)
    kept, current = {}, {}
    for kind, *rest in events:
        if kind == "note":
            announced = rest[0]
        elif kind == "data":
            current[rest[0]] = rest[1]
        elif kind == "sync":
            kept[rest[0]] = current[rest[0]]
        elif kind == "sync folder":
            for operation in pending.pop(rest[0], []):
                _apply(durable[rest[0]], operation)
        else:
            pending[rest[0]].append((kind, *rest[1:]))
            if kind == "link":
                current.setdefault(rest[2], b"")
    return announced, durable, pending, kept, current


def _apply(names, operation):
    kind, name, *rest = operation
    if kind == "link":
        names[name] = rest[0]
    elif kind == "unlink":
        names.pop(name, None)
    else:
        names.pop(name, None)
        names[rest[0]] = rest[1]


def _subsets(operations):
    """All of them where there are few, else those that lack one, have one, or are a beginning."""
    count = len(operations)
    if count <= 3:
        masks = itertools.product((False, True), repeat=count)
    else:
        masks = {
            *(tuple(i < n for i in range(count)) for n in range(count + 1)),
            *(tuple(i != n for i in range(count)) for n in range(count)),
            *(tuple(i == n for i in range(count)) for n in range(count)),
        }
    return [[o for o, taken in zip(operations, mask, strict=True) if taken] for mask in masks]


def _variants(kept, current):
    """What may be there of bytes that were not flushed."""
    found = [kept, current]
    if len(current) > len(kept):
        middle = (len(kept) + len(current)) // 2
        found += [current[:middle], kept + bytes(len(current) - len(kept)), current[:middle].ljust(len(current), b"\0")]
    return list(dict.fromkeys(found))


def _walk(names, folder):
    for name, number in names.get(folder, {}).items():
        path = f"{folder}/{name}"
        yield path, number
        if isinstance(number, str):
            yield from _walk(names, path)
