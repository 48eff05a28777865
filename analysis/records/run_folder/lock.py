"""The lock of a run folder: one recorder at a time, in one process or in many.

Two things are locked, of which either is enough. The folder itself, on POSIX: this lock lasts where somebody cleans up
the lock file. And the file ``.recording.lock`` in it: network file systems lock files, but no folders. There ``renew``
looks, before each write, whether the file is still the one that was locked. A process that ends in any way gives both
back. Where the file system locks neither, the file's being there is the lock; then a process
that was killed leaves it behind, and the next recorder is refused until somebody removes it.
"""

import contextlib
import errno
import os
import socket
import weakref
from pathlib import Path
from typing import Any

from deltaw.adapters.errors import RecordError, WriteError

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".recording.lock"
_BUSY = {errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK}
# What file systems answer that have no such lock: of NFS for a folder, EBADF.
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EBADF, errno.EINVAL}
_held: "weakref.WeakSet[FolderLock]" = weakref.WeakSet()


class FolderLock:
    """The right to write into a run folder.

    Arguments:
        folder: It exists.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     lock = FolderLock(Path(folder))
        ...     lock.acquire()
        ...     FolderLock(Path(folder)).acquire()
        Traceback (most recent call last):
        deltaw.adapters.errors.RecordError: ...: is being recorded to in this process, not by another process...
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._descriptors: list[int] = []
        self._file: tuple[int, int] | None = None  # device and inode of the lock file
        self._where: tuple[int, int] | None = None  # and of the folder
        self._folder_locked = False

    def acquire(self) -> None:
        """Take the folder.

        Raises:
            RecordError: Somebody has it.
            WriteError: The lock file cannot be made.
        """
        try:
            self._where = _identity(os.stat(self.folder))
            self._folder_locked = self._lock_folder()
            self._lock_file(alone=not self._folder_locked)
        except BaseException as error:
            self._close()
            if isinstance(error, OSError):
                raise WriteError(f"{self.folder / LOCK}: cannot be made ({error.strerror})") from error
            raise
        _held.add(self)

    def renew(self) -> None:
        """Make the lock file again where a cleaner has removed it and the folder itself could not be locked.

        Raises:
            RecordError: Another recorder has come since then.
            WriteError: The lock file cannot be made.
        """
        if self._folder_locked or self._file is None:
            return
        with contextlib.suppress(OSError):
            if _identity(os.stat(self.folder / LOCK)) == self._file:
                return
        try:
            self._lock_file(alone=True)
        except OSError as error:
            raise WriteError(f"{self.folder / LOCK}: cannot be made ({error.strerror})") from error

    def release(self) -> None:
        """Give the folder back; the second time, and in a process that was forked off, nothing happens to it."""
        if self._file is not None:
            path = self.folder / LOCK
            with contextlib.suppress(OSError):
                if _identity(os.lstat(path)) == self._file:  # a cleaner may have removed it, and another made one
                    path.unlink()
        self._close(unlock=True)

    def _lock_folder(self) -> bool:
        if fcntl is None:
            return False
        descriptor = os.open(self.folder, os.O_RDONLY)
        self._descriptors.append(descriptor)
        return self._flock(descriptor)

    def _lock_file(self, *, alone: bool) -> None:
        """Lock the file; ``alone``: the folder could not be locked."""
        path, no_link = self.folder / LOCK, getattr(os, "O_NOFOLLOW", 0)
        while True:
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | no_link, 0o644)
                made = True
            except FileExistsError:
                try:
                    descriptor, made = os.open(path, os.O_RDWR | no_link), False
                except FileNotFoundError:
                    continue
            self._descriptors.append(descriptor)
            locked = self._flock(descriptor)
            there = os.fstat(descriptor)
            if not locked and alone and not made:
                raise self._left_behind(path)
            with contextlib.suppress(FileNotFoundError):
                if _identity(os.stat(path)) == _identity(there):
                    self._file = _identity(there)
                    if not locked and alone:
                        os.write(descriptor, " ".join(_owner()).encode())  # for people, and for ``_left_behind``
                    return
            # Whoever had it has removed it between the opening and the locking: a lock on no file keeps nobody out.
            os.close(self._descriptors.pop())

    def _left_behind(self, path: Path) -> RecordError:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if path.read_text(encoding="utf-8")[:200].split() == _owner():
                return self._busy()
        return RecordError(
            f"{self.folder}: another process is recording to it, or was killed: the file system has no locks, and "
            f"{LOCK} is there. Where nobody records there any more, remove that file"
        )

    def _flock(self, descriptor: int) -> bool:
        """Lock it; whether the file system has such locks."""
        if fcntl is None:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _BUSY:
                raise self._busy() from None
            if error.errno in _NO_LOCKS:
                return False
            raise
        return True

    def _busy(self) -> RecordError:
        if any(lock._where == self._where for lock in _held):
            return RecordError(
                f"{self.folder}: is being recorded to in this process, not by another process; close the recorder that "
                "was opened first, or choose another folder"
            )
        return RecordError(f"{self.folder}: another process is recording to it; choose another folder")

    def _close(self, *, unlock: bool = False) -> None:
        for descriptor in self._descriptors:
            with contextlib.suppress(OSError):
                if unlock and fcntl is not None:
                    fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child that was forked off may have it open, too
                os.close(descriptor)
        self._descriptors.clear()
        self._file = self._where = None
        _held.discard(self)


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino


def _owner() -> list[str]:
    return [str(os.getpid()), socket.gethostname()]


def _leave_to_the_parent() -> None:
    """In a forked child: close what it has inherited, which unlocks nothing, so that its end or ``close`` does not."""
    for lock in list(_held):
        lock._close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_the_parent)
