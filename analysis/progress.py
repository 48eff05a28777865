"""Progress of long work: a bar on a terminal, a few lines anywhere else."""

import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, overload

from deltaw.analysis.printable import printable

T = TypeVar("T")
BETWEEN_LINES = 60.0  # seconds

BETWEEN_MESSAGES = 0.1

_hidden: ContextVar[bool] = ContextVar("_hidden", default=False)
_forward: ContextVar[Callable[[Any], None] | None] = ContextVar("_forward", default=None)


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


class _Forwarded(Progress[T]):
    """Shows nothing here, and says it to another process: see ``forwarded``."""

    _numbers = itertools.count()

    def __init__(
        self, items: Iterable[T] | None, total: int | None, desc: str, unit: str, initial: int, send: Callable[..., Any]
    ) -> None:
        super().__init__(items, total, desc, unit, initial=initial, drawn=False, told=False)
        self._send, self._number, self._unsent = send, next(self._numbers), 0
        send(("begin", self._number, total, desc, unit, initial))

    def update(self, count: int = 1) -> None:
        self._unsent += count
        if time.monotonic() - self._said >= BETWEEN_MESSAGES:
            self._flush()

    def close(self) -> None:
        if self._open:
            self._open = False
            self._flush()
            self._send(("close", self._number))

    def _flush(self) -> None:
        self._send(("update", self._number, self._unsent, dict(self._notes)))
        self._said, self._unsent = time.monotonic(), 0


class Mirror:
    """Shows the progress that another process forwards.

    Example:
        >>> mirror = Mirror()
        >>> with forwarded(mirror.receive), hidden():
        ...     sum(progress([1, 2, 3], "sums"))
        6
    """

    def __init__(self) -> None:
        self._bars: dict[int, Progress[Any]] = {}

    def receive(self, message: Any) -> None:
        """Show what a message says."""
        match message:
            case "begin", number, total, desc, unit, initial:
                self._bars[number] = progress(total, desc, unit, initial=initial)
            case "update", number, count, notes:
                self._bars[number].note(**notes)
                self._bars[number].update(count)
            case "close", number:
                self._bars.pop(number).close()
            case "tell", text:
                tell(text)

    def close(self) -> None:
        """End the bars that are open, as those of a process that is gone."""
        for bar in self._bars.values():
            bar.close()
        self._bars.clear()


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
    send = _forward.get()
    if enabled and send is not None:
        return _Forwarded(items, total, desc, unit, initial, send)
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


@contextlib.contextmanager
def forwarded(send: Callable[[Any], None]) -> Iterator[None]:
    """Show no progress in a block, and hand messages of it on, to be shown by a ``Mirror`` elsewhere.

    Arguments:
        send: Called with each message; all of it can be pickled.
    """
    token = _forward.set(send)
    try:
        yield
    finally:
        _forward.reset(token)


def tell(text: str, *, enabled: bool = True) -> None:
    """Write a line on stderr, beside the bars that are there.

    Example:
        >>> tell("runs/bora: goes on from step 50 of 268", enabled=False)
    """
    send = _forward.get()
    if not enabled:
        return
    if send is not None:
        send(("tell", text))
    elif shows_bars():
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
