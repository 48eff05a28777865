"""Pieces of work in several processes of this machine: a pool that hands them out and yields what comes back.

A process that ends by itself is replaced, and what it was at may be tried once more. Processes may stay for the next
call, as starting one takes seconds; without work they end by themselves after a while.
"""

import atexit
import contextlib
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any, NoReturn, TypeVar

import torch

from deltaw.adapters.errors import DeltawError
from deltaw.analysis.progress import Mirror, forwarded
from deltaw.analysis.workers.early import started
from deltaw.analysis.workers.lost import LostError

R = TypeVar("R")
K = TypeVar("K")
PATIENCE = 30.0  # seconds for processes to close what they write, once they are to end
IDLE = 60.0  # seconds that a process which stays waits for more work
GUARD = 'a script that asks for several processes does so below if __name__ == "__main__":'

Task = Callable[..., R]


def outcomes(
    work: Iterable[tuple[K, Task[R]]],
    jobs: int,
    *,
    shared: Mapping[str, Any] | None = None,
    threads: int | None = None,
    again: bool = False,
    stay: bool = False,
) -> Generator[tuple[K, R | Exception], None, None]:
    """Call functions in several processes, and yield what each returned or raised, by its key, as they come.

    Where the caller stops, by an error or by Ctrl-C, all processes are ended; each closes what it writes.

    Arguments:
        work: Keys and functions, taken when a process is free for the next one. A function is called without positional
            arguments and can be pickled, as ``functools.partial`` of a function of a module.
        jobs: How many processes at a time.
        shared: Keyword arguments of all functions; a process gets them once.
        threads: How many threads torch has in each; ``None`` for as many as it has here.
        again: Call once more what was called in a process that ended by itself, while no other one has work: where
            memory was short, there is more of it then.
        stay: Let the processes wait for the next call.

    Yields:
        A key, and what the function returned. An error comes back as it was, where that can be pickled, else as a
        DeltawError with its kind and message; of a process that ended by itself as a LostError.
    """
    pool = _Pool(iter(work), jobs, dict(shared or {}), threads or torch.get_num_threads(), again=again)
    try:
        yield from pool.run()
    finally:
        pool.end(stay=stay)


def outcome_of(function: Task[R], given: Mapping[str, Any]) -> R | Exception:
    """Return what a function returns or raises."""
    try:
        return function(**given)
    except Exception as error:  # whatever it is, the others need not fail with it
        traceback.clear_frames(error.__traceback__)  # they hold the model
        return error


def reason(error: Exception) -> str:
    """Return an error in one line; with its kind, where it is none of ours.

    Example:
        >>> reason(ValueError("out of\\nrange")), reason(DeltawError("no run"))
        ('ValueError: out of range', 'no run')
    """
    text = " ".join(str(error).split())
    return text if isinstance(error, DeltawError) else f"{type(error).__name__}: {text}"


@dataclass(eq=False)
class Piece:
    """A piece of work, and how often a process has ended at it."""

    key: Any
    function: Task[Any]
    lost: int = 0


class _Worker:
    """A process, the pipe to it, and the piece that it works at."""

    def __init__(self) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = started(_serve, (theirs,), "deltaw-job")
        theirs.close()  # so that this end notices when the process is gone
        self.piece: Piece | None = None
        self.began = False  # since when it was hired; it says so once it has read the program and what is shared
        self.rested = False
        self.mirror = Mirror()

    def begin(self, given: dict[str, Any], threads: int) -> None:
        self._say(("begin", threads, _levels()))
        self._say(given)

    def rest(self) -> None:
        """Let go of what was shared; the process waits for another call."""
        self.began, self.rested = False, True
        self._say(("rest",))

    def give(self, piece: Piece) -> None:
        self.piece = piece
        self._say(("work", str(piece.key), pickle.dumps(piece.function)))

    def _say(self, value: Any) -> None:
        with contextlib.suppress(OSError):  # it is gone already, which shows when it is listened to
            self.pipe.send(value)

    def how_it_ended(self) -> str:
        self.process.join(PATIENCE)
        code = self.process.exitcode
        if code is not None and code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"ended by itself with code {code}"


_idle: list[_Worker] = []  # that wait for the next call


@atexit.register
def release() -> None:
    """Let the processes go that wait for the next call."""
    while _idle:
        _idle.pop().pipe.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)  # they are the parent's


class _Pool:
    """Hands work to processes until there is none left."""

    def __init__(
        self, work: Iterator[tuple[Any, Task[Any]]], jobs: int, given: dict[str, Any], threads: int, *, again: bool
    ) -> None:
        self.work = (Piece(key, function) for key, function in work)
        self.jobs, self.given, self.threads, self.again = jobs, given, threads, again
        self.workers: list[_Worker] = []
        self.returned: deque[Piece] = deque()  # that go to another process
        self.found: deque[tuple[Any, Any]] = deque()
        self.registry: dict[Any, Any] = {}  # of warnings that were shown

    def run(self) -> Iterator[tuple[Any, Any]]:
        self._fill()
        while self._busy():
            for worker in self._with_news():
                self._hear(worker)
            while self.found:
                yield self.found.popleft()
            self._fill()

    def _busy(self) -> list[_Worker]:
        return [worker for worker in self.workers if worker.piece is not None]

    def _fill(self) -> None:
        """Give work to all that are free. At what a process has ended, the next one is alone."""
        while True:
            busy = self._busy()
            alone = self.returned or any(worker.piece is not None and worker.piece.lost for worker in busy)
            if len(busy) >= self.jobs or (busy and alone):
                return
            piece = self.returned.popleft() if self.returned else next(self.work, None)
            if piece is None:
                return
            free = next((worker for worker in self.workers if worker.piece is None), None) or self._hired()
            free.give(piece)

    def _hired(self) -> _Worker:
        worker = _idle.pop() if _idle else _Worker()
        worker.begin(self.given, self.threads)
        self.workers.append(worker)
        return worker

    def _with_news(self) -> list[_Worker]:
        ready = connection.wait([worker.pipe for worker in self.workers])
        return [worker for worker in self.workers if worker.pipe in ready]

    def _hear(self, worker: _Worker) -> None:
        try:
            kind, value = worker.pipe.recv()
        except (EOFError, OSError):
            self._is_gone(worker)
            return
        if kind == "began":
            worker.began = True
        elif kind == "progress":
            worker.mirror.receive(value)
        elif kind == "warning":
            text, category, filename, line = value
            warnings.warn_explicit(text, category, filename, line, registry=self.registry)
        elif kind == "log":
            logging.getLogger(value.name).handle(value)
        else:
            assert worker.piece is not None
            piece, worker.piece = worker.piece, None
            if isinstance(value, LostError) and self.again and not piece.lost:
                piece.lost += 1
                self.returned.append(piece)
            else:
                self.found.append((piece.key, value))

    def _is_gone(self, worker: _Worker) -> None:
        self.workers.remove(worker)
        worker.mirror.close()
        worker.pipe.close()
        piece, how, code = worker.piece, worker.how_it_ended(), worker.process.exitcode
        if piece is None:
            return
        if worker.rested and not worker.began and code == 0:  # it had no work for long, and left when it was hired
            self.returned.append(piece)
        elif not worker.began and code is not None and code >= 0:
            self.found.append((piece.key, DeltawError(f"its process could not start (code {code}); {GUARD}")))
        elif self.again and not piece.lost:
            piece.lost += 1
            self.returned.append(piece)
        else:
            self.found.append((piece.key, LostError(f"{how}, twice" if piece.lost else how)))

    def end(self, *, stay: bool) -> None:
        """End the processes that are at work, as after Ctrl-C: they close what they write. The others may stay."""
        for worker in self.workers:
            worker.mirror.close()
            if worker.piece is None and stay:
                worker.rest()
                _idle.append(worker)
            elif worker.piece is None:
                worker.pipe.close()
            else:
                worker.process.terminate()
        at_work, end = self._busy(), time.monotonic() + PATIENCE
        try:
            for worker in at_work:
                while worker.process.is_alive() and time.monotonic() < end:
                    # What it says on its way is emptied out, lest it wait for room in the pipe; a message may be cut.
                    with contextlib.suppress(EOFError, OSError):
                        while worker.pipe.poll() and os.read(worker.pipe.fileno(), 1 << 16):
                            pass
                    worker.process.join(0.05)
        finally:
            for worker in at_work:
                worker.process.kill()
                worker.pipe.close()


def _levels() -> dict[str, int]:
    """How much each logger says, where that was set."""
    loggers = logging.getLogger().manager.loggerDict
    return {name: found.level for name, found in loggers.items() if isinstance(found, logging.Logger) and found.level}


def _serve(pipe: Any) -> None:
    """What a process does: one piece of work after the other, until the pipe is closed or there is none for long."""
    # Ctrl-C reaches every process of a terminal; only the parent answers it, and then ends the others by SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    hear = _Speaker(pipe)
    given: dict[str, Any] | Exception = {}
    try:
        with hear.listening():
            while pipe.poll(IDLE):
                try:
                    message = pipe.recv()
                except (EOFError, OSError):
                    return
                if message[0] == "begin":
                    _, threads, levels = message
                    torch.set_num_threads(threads)
                    for logger, level in levels.items():
                        logging.getLogger(logger).setLevel(level)
                    given = {}  # before the next ones come: both may be large
                    given = _received(pipe)
                    hear.say("began", None)
                    continue
                if message[0] == "rest":
                    given = {}
                    continue
                _, name, pickled = message
                signal.signal(signal.SIGTERM, _interrupt)
                found = given if isinstance(given, Exception) else outcome_of(_Unpickled(pickled), given)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                hear.say("done", portable(found, name) if isinstance(found, Exception) else found)
    except KeyboardInterrupt:
        sys.exit(130)


def _received(pipe: Any) -> dict[str, Any] | Exception:
    try:
        given: dict[str, Any] = pipe.recv()
    except (EOFError, OSError):
        raise KeyboardInterrupt from None
    except Exception as error:  # a run is gone, a class is not found: every piece of work fails by it
        return error
    return given


class _Unpickled:
    """A function that is read when it is called, so that where it cannot be, its piece of work fails and no other."""

    def __init__(self, pickled: bytes) -> None:
        self.pickled = pickled

    def __call__(self, **given: Any) -> Any:
        return pickle.loads(self.pickled)(**given)  # written by our own parent


def _interrupt(number: int, frame: Any) -> NoReturn:
    """End the work as Ctrl-C does, once: what is written is closed meanwhile."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


class _Speaker(logging.Handler):
    """Says to the parent what would have been shown: progress, warnings, the library's log."""

    def __init__(self, pipe: Any) -> None:
        super().__init__()
        self.pipe, self.one = pipe, threading.RLock()

    def say(self, kind: str, value: Any) -> None:
        try:
            with self.one:  # the thread that writes checkpoints warns, too
                self.pipe.send((kind, value))
        except OSError:  # the parent is gone, so that nobody wants the result
            raise KeyboardInterrupt from None

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args, record.exc_info = record.getMessage(), None, None
        self.say("log", record)

    def warn(self, message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any) -> None:
        ours = category.__module__.startswith("deltaw.") or category.__module__ == "builtins"
        self.say("warning", (str(message), category if ours else UserWarning, filename, lineno))

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        logging.getLogger("deltaw").addHandler(self)
        logging.getLogger("deltaw").propagate = False
        warnings.showwarning = self.warn  # type: ignore[assignment]
        with forwarded(lambda message: self.say("progress", message)):
            yield


def portable(error: Exception, name: str) -> Exception:
    """Return an error as it is, or a DeltawError with its kind where it cannot be pickled; a note has its traceback."""
    same: Exception = DeltawError(reason(error))
    with contextlib.suppress(Exception):
        again = pickle.loads(pickle.dumps(error))  # written and read by ourselves, a line apart
        ours = type(error).__module__.startswith("deltaw.") or type(error).__module__ == "builtins"
        same = again if ours and type(again) is type(error) and str(again) == str(error) else same
    same.add_note(f"in the process of {name}:\n{''.join(traceback.format_exception(error)).rstrip()}")
    return same
