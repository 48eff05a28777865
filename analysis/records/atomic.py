"""Writing a file whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from deltaw.adapters.errors import WriteError

PARTIAL = ".partial"


@contextlib.contextmanager
def written_aside(path: str | Path) -> Iterator[Path]:
    """Hand out a name beside ``path`` to write to; flush and rename it when the block ends well, drop it when not.

    Raises:
        WriteError: The disk is full or cannot be written to; names the file. What stood there before is untouched.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with written_aside(path) as aside:
        ...     _ = aside.write_text("whole")
        >>> path.read_text(), len(list(path.parent.iterdir()))
        ('whole', 1)
    """
    path = Path(path)
    aside = path.with_name(path.name + PARTIAL)
    try:
        with disk_errors(path):
            yield aside
            with aside.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(aside, path)
            _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all.

    Raises:
        WriteError: As ``written_aside``.
    """
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8", newline="\n")


def append_line(path: Path, line: str, *, durable: bool) -> None:
    """Append a line in one write; a line that was cut off is taken back.

    Arguments:
        path: The log.
        line: With its newline.
        durable: Wait until the line is on the disk.

    Raises:
        WriteError: As ``written_aside``.
    """
    with disk_errors(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            data = line.encode()
            try:
                if os.write(descriptor, data) != len(data):
                    raise OSError("the line was cut off, the disk is probably full")
                if durable:
                    os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a failure to write into an error that names the file."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            raise WriteError(
                f"{path}: cannot be written ({error}); what was there before is safe. Free some space and go on"
            ) from error
        raise


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
