"""Writing a file whole or not at all, however many write it at once."""

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from deltaw.adapters.errors import WriteError

PARTIAL = ".partial"
_TEMPORARY = re.compile(r"(?P<name>.+)\.[0-9a-f]{16}\.partial")
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Hand out a name beside ``path`` to write to; flush and rename it when the block ends well, drop it when not.

    Of two writers at once each has a temporary file of its own, and the later one's stays. No file that was there
    before is written to, and no symbolic link is followed.

    Raises:
        WriteError: The disk is full or cannot be written to; names the file. What stood there before is untouched.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with atomic_write(path) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> path.read_text(), len(list(path.parent.iterdir()))
        ('whole', 1)
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}{PARTIAL}")
    created = False
    try:
        with disk_errors(path):
            _check_replaceable(path)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o666)
            created = True
            try:
                mode = stat.S_IMODE(os.fstat(descriptor).st_mode)  # as the user's umask has it
            finally:
                os.close(descriptor)
            yield temporary
            # Opened anew: a library that writes to a path may have put another file there. A link it cannot be.
            descriptor = os.open(temporary, os.O_RDWR | _NO_LINK)
            try:
                if os.name == "posix":
                    os.fchmod(descriptor, mode)  # safetensors makes its files private
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(temporary, path)
            created = False
            sync_folder(path.parent)
    finally:
        if created:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes have left in a folder; no other file, whatever its suffix.

    Only where nobody else can be writing: they look like those of a writer that is alive.
    """
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if _TEMPORARY.fullmatch(path.name) and not path.is_symlink():
                path.unlink(missing_ok=True)


def is_leftover(name: str, of: str) -> bool:
    """Whether this is the name of a temporary file of the file ``of``.

    Example:
        >>> is_leftover("results.csv.0123456789abcdef.partial", "results.csv"), is_leftover("my.partial", "my")
        (True, False)
    """
    found = _TEMPORARY.fullmatch(name)
    return found is not None and found["name"] == of


def make_folder(path: Path) -> None:
    """Make a folder, with those above it, so that they are there after a loss of power.

    Raises:
        WriteError: It cannot be made.
    """
    with disk_errors(path):
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for folder in reversed(missing):
            sync_folder(folder.parent)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all.

    Raises:
        WriteError: As ``atomic_write``.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def append_line(path: Path, line: str, *, durable: bool) -> None:
    """Append a line in one write; a line that was cut off is taken back.

    Arguments:
        path: The log.
        line: With its newline.
        durable: Wait until the line is on the disk.

    Raises:
        WriteError: As ``atomic_write``.
    """
    with disk_errors(path):
        new = not path.exists()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | _NO_LINK, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            data = line.encode()
            try:
                if os.write(descriptor, data) != len(data):
                    raise OSError(errno.ENOSPC, "the line was cut off, the disk is probably full")
                if durable:
                    os.fsync(descriptor)
                    if new:
                        sync_folder(path.parent)
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)


def overwrite(path: Path, from_end: int, data: bytes) -> None:
    """Write over a few bytes of a file, so many before its end, and wait until they are on the disk.

    Where that fails in the middle, what was there is put back.

    Raises:
        WriteError: As ``atomic_write``.
    """
    with disk_errors(path):
        descriptor = os.open(path, os.O_RDWR | _NO_LINK)
        try:
            place = os.lseek(descriptor, -from_end, os.SEEK_END)
            before = os.read(descriptor, len(data))
            try:
                _write_at(descriptor, place, data)
            except OSError:
                _write_at(descriptor, place, before)
                raise
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_at(descriptor: int, place: int, data: bytes) -> None:
    os.lseek(descriptor, place, os.SEEK_SET)
    while data:  # a write may be short
        data = data[os.write(descriptor, data) :]


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a failure to write into an error that names the file; it asks for free space where the disk is full."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            full = ". Free some space and go on" if _is_full(error) else ""
            raise WriteError(f"{path}: cannot be written ({error}); what was there before is safe{full}") from error
        raise


def _is_full(error: Exception) -> bool:
    """Whether the disk, or this user's share of it, is full; safetensors hands on the system's words alone."""
    numbers = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in numbers
    return any(f"os error {number}" in str(error) or os.strerror(number) in str(error) for number in numbers)


def _check_replaceable(path: Path) -> None:
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "no regular file"
        raise WriteError(f"{path}: is {kind}; choose the name of a file that may be replaced")


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
