"""Progress of long work: a bar on a terminal, a few lines anywhere else."""

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, overload

from deltaw.analysis.printable import printable

T = TypeVar("T")
BETWEEN_LINES = 60.0  # seconds

_hidden: ContextVar[bool] = ContextVar("_hidden", default=False)


class Progress(Generic[T]):
    """Counts what is done, and shows it; made by ``progress``. Iterate over it, or call ``update`` in a with statement.

    Arguments:
        items: What to iterate over; ``None`` where ``update`` is called.
        total: How many there are; ``None`` where nobody knows.
        desc, unit, initial: See ``progress``.
        drawn: Draw a bar.
        told: Write lines.
    """

    def __init__(
        self,
        items: Iterable[T] | None,
        total: int | None,
        desc: str,
        unit: str,
        *,
        initial: int,
        drawn: bool,
        told: bool,
    ) -> None:
        self._items, self._total, self._desc, self._unit = items, total, desc, unit
        self._done, self._initial = initial, initial
        self._notes: dict[str, Any] = {}
        self._open, self._lines = True, told
        self._bar: Any = None
        self._began = self._said = time.monotonic()
        if drawn:
            from tqdm.auto import tqdm  # takes long to import, and only this needs it

            self._bar = tqdm(total=total, initial=initial, desc=desc, unit=unit)
        elif told:
            self._say(f"{initial} of {total} {_many(unit, total)}" if total is not None else "begins")

    def update(self, count: int = 1) -> None:
        """Note that so many more are done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._lines and time.monotonic() - self._said >= BETWEEN_LINES:
            done = f"{self._done} of {self._total}" if self._total is not None else str(self._done)
            self._say(f"{done} {_many(self._unit, self._total)} after {self._elapsed()}{self._noted()}")

    def note(self, **values: Any) -> None:
        """Show values beside the count: on the bar, or with the next line."""
        self._notes |= values
        if self._bar is not None:
            self._bar.set_postfix(self._notes, refresh=False)

    def close(self) -> None:
        """End the bar, or write the last line; the second time nothing."""
        if not self._open:
            return
        self._open = False
        if self._bar is not None:
            self._bar.close()
        elif self._lines:
            done = self._done - self._initial
            whole = self._total is None or self._done >= self._total
            end = f"{done} {_many(self._unit, done)}" if whole else f"ended at {self._done} of {self._total}"
            self._say(f"{end} in {self._elapsed()}{self._noted()}")

    def __iter__(self) -> Iterator[T]:
        if self._items is None:
            return
        with self:
            for item in self._items:
                yield item
                self.update()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _elapsed(self) -> str:
        seconds = round(time.monotonic() - self._began)
        minutes, seconds = divmod(seconds, 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

    def _noted(self) -> str:
        return "".join(f", {name} {value}" for name, value in self._notes.items())

    def _say(self, text: str) -> None:
        self._said = time.monotonic()
        print(f"{self._desc}: {text}", file=sys.stderr, flush=True)


@overload
def progress(
    work: Iterable[T], desc: str, unit: str = ..., enabled: bool = ..., *, initial: int = ...
) -> Progress[T]: ...
@overload
def progress(
    work: int | None, desc: str, unit: str = ..., enabled: bool = ..., *, initial: int = ...
) -> Progress[Any]: ...
def progress(
    work: Iterable[Any] | int | None, desc: str, unit: str = "item", enabled: bool = True, *, initial: int = 0
) -> Progress[Any]:
    """Return an iterable, or a counter, that shows on stderr how far the work is.

    On a terminal, and in a notebook, it is a bar. Anywhere else, as in a log of a cluster, it is one line at the start,
    at most one a minute, and one at the end.

    Arguments:
        work: What to iterate over, or how many ``update`` will count; ``None`` where nobody knows.
        desc: What is done, before the count.
        unit: What is counted, in the singular.
        enabled: Show it at all.
        initial: How many are done already, in work that goes on.

    Example:
        >>> sum(progress([1, 2, 3], "sums", "number", enabled=False))
        6
        >>> with progress(3, "sums", "number", enabled=False) as bar:
        ...     bar.update(3)
    """
    total = work if work is None or isinstance(work, int) else _length(work)
    items = None if work is None or isinstance(work, int) else work
    enabled = enabled and not _hidden.get()
    drawn = enabled and shows_bars()
    return Progress(items, total, printable(desc), unit, initial=initial, drawn=drawn, told=enabled and not drawn)


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """Show no progress in a block, whatever asks for it.

    Example:
        >>> with hidden():
        ...     sum(progress([1, 2, 3], "sums"))
        6
    """
    token = _hidden.set(True)
    try:
        yield
    finally:
        _hidden.reset(token)


def tell(text: str, *, enabled: bool = True) -> None:
    """Write a line on stderr, beside the bars that are there.

    Example:
        >>> tell("runs/bora: goes on from step 50 of 268", enabled=False)
    """
    if not enabled:
        return
    if shows_bars():
        from tqdm.auto import tqdm

        tqdm.write(text, file=sys.stderr)
    else:
        print(text, file=sys.stderr, flush=True)


def shows_bars() -> bool:
    """Whether stderr is a terminal or a notebook, where a line can be drawn over."""
    return bool(sys.stderr.isatty()) or type(sys.stderr).__module__.startswith("ipykernel.")


def _length(work: Iterable[Any]) -> int | None:
    try:
        return len(work)  # type: ignore[arg-type]
    except TypeError:
        return None


def _many(unit: str, count: int | None) -> str:
    if count == 1:
        return unit
    if unit.endswith(("s", "x", "ch", "sh")):
        return {"matrix": "matrices"}.get(unit, unit + "es")
    return unit + "s"
