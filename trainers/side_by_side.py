"""Several pieces of work in several processes, each with the same result as one after the other."""

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
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import connection, resource_tracker
from typing import Any, NoReturn, TypeVar

import torch

from deltaw.adapters.checks import whole_number
from deltaw.adapters.errors import DeltawError
from deltaw.analysis.progress import Mirror, forwarded

R = TypeVar("R")
PATIENCE = 30.0  # seconds for processes to close what they write, once they are to end

Work = Callable[..., R]


def run_all(
    work: Mapping[str, Work[R]], jobs: int = 1, *, shared: Mapping[str, Any] | None = None
) -> dict[str, R | Exception]:
    """Call every function, in this process or in several, and return what each returned or raised, by its name.

    Whatever one raises, the others are called. Ctrl-C ends all of them; each process closes what it writes.

    Arguments:
        work: Functions by name, called without positional arguments; for several processes they can be pickled, as
            ``functools.partial`` of a function of a module.
        jobs: How many processes at a time; with 1 all is done in this one. A process does one piece of work after the
            other, and begins with as many threads as torch has here. A script that asks for several needs
            ``if __name__ == "__main__":``, as with everything of ``multiprocessing``.
        shared: Keyword arguments of them all; a process gets them once.

    Returns:
        In the order of ``work``. What another process raised comes back as a DeltawError with its message, of the
        same class where that is one of ours; where a process ended by itself (out of memory, killed), one that says so.

    Raises:
        OptionError: ``jobs`` is no whole number from 1 on.
    """
    whole_number("jobs", jobs, 1)
    given = dict(shared or {})
    if min(jobs, len(work)) < 2:
        return {name: _outcome(function, given) for name, function in work.items()}
    found = _Pool(work, min(jobs, len(work)), given).run()
    return {name: found[name] for name in work}


def reason(error: Exception) -> str:
    """Return an error in one line; with its kind, where it is none of ours.

    Example:
        >>> reason(ValueError("out of\\nrange")), reason(DeltawError("no run"))
        ('ValueError: out of range', 'no run')
    """
    text = " ".join(str(error).split())
    return text if isinstance(error, DeltawError) else f"{type(error).__name__}: {text}"


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_jobs(model: str | None) -> int:
    """Return how many runs are trained at a time where nobody says: one a core with a built-in model, else one.

    On a GPU it is one: runs would share its memory.

    Arguments:
        model: As in ``Settings``; ``None`` for the built-in one.
    """
    return usable_cores() if model is None and not torch.cuda.is_available() else 1


def _outcome(function: Work[R], given: dict[str, Any]) -> R | Exception:
    try:
        return function(**given)
    except Exception as error:  # whatever it is, the others need not fail with it
        traceback.clear_frames(error.__traceback__)  # they hold the model
        return error


class _Worker:
    """A process, the pipe to it, and the name of its work."""

    def __init__(self, given: dict[str, Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        arguments = (theirs, torch.get_num_threads(), _levels())
        self.process = context.Process(target=_serve, args=arguments, daemon=True, name="deltaw-job")
        with _without_interrupt():
            self.process.start()
        theirs.close()  # so that this end notices when the process is gone
        self.name: str | None = None
        self.mirror = Mirror()
        self._say(given)

    def give(self, name: str, function: Work[Any]) -> None:
        self.name = name
        self._say((name, function))

    def _say(self, value: Any) -> None:
        with contextlib.suppress(OSError):  # it is gone already, which shows when it is listened to
            self.pipe.send(value)

    def why_it_ended(self) -> DeltawError:
        self.process.join(PATIENCE)
        code = self.process.exitcode
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        else:
            how = f"ended by itself with code {code}"
        return DeltawError(
            f"its process {how}; where memory ran out, fewer --jobs need less of it. "
            "The same command goes on from what was saved"
        )


class _Pool:
    """Hands work to processes until there is none left."""

    def __init__(self, work: Mapping[str, Work[R]], jobs: int, given: dict[str, Any]) -> None:
        self.waiting, self.total, self.given = dict(work), len(work), given
        self.found: dict[str, Any] = {}
        self.workers: list[_Worker] = []
        self.jobs = jobs

    def run(self) -> dict[str, Any]:
        try:
            while len(self.found) < self.total:
                while self.waiting and len(self.workers) < self.jobs:
                    self._next(self._hired())
                for worker in self._with_news():
                    self._hear(worker)
        finally:
            self._end()
        return self.found

    def _hired(self) -> _Worker:
        worker = _Worker(self.given)
        self.workers.append(worker)
        return worker

    def _with_news(self) -> list[_Worker]:
        ready = connection.wait([worker.pipe for worker in self.workers])
        return [worker for worker in self.workers if worker.pipe in ready]

    def _hear(self, worker: _Worker) -> None:
        try:
            kind, value = worker.pipe.recv()
        except (EOFError, OSError):
            self.workers.remove(worker)
            worker.mirror.close()
            if worker.name is not None:
                self.found[worker.name] = worker.why_it_ended()
            return
        if kind == "progress":
            worker.mirror.receive(value)
        elif kind == "warning":
            warnings.warn_explicit(*value)
        elif kind == "log":
            logging.getLogger(value.name).handle(value)
        else:
            assert worker.name is not None
            self.found[worker.name], worker.name = value, None
            self._next(worker)

    def _next(self, worker: _Worker) -> None:
        """Give the next piece of work, or let the process go where there is none."""
        if self.waiting:
            name = next(iter(self.waiting))
            worker.give(name, self.waiting.pop(name))
        else:
            self.workers.remove(worker)
            worker.pipe.close()

    def _end(self) -> None:
        """End the processes that are still at work, as after Ctrl-C: they close what they write."""
        for worker in self.workers:
            worker.mirror.close()
            worker.process.terminate()
        end = time.monotonic() + PATIENCE
        try:
            for worker in self.workers:
                while worker.process.is_alive() and time.monotonic() < end:
                    # What it says on its way is emptied out, lest it wait for room in the pipe; a message may be cut.
                    with contextlib.suppress(EOFError, OSError):
                        while worker.pipe.poll() and os.read(worker.pipe.fileno(), 1 << 16):
                            pass
                    worker.process.join(0.05)
        finally:
            for worker in self.workers:
                worker.process.kill()
                worker.pipe.close()


def _levels() -> dict[str, int]:
    """How much each logger says, where that was set."""
    loggers = logging.getLogger().manager.loggerDict
    return {name: found.level for name, found in loggers.items() if isinstance(found, logging.Logger) and found.level}


def _serve(pipe: Any, threads: int, levels: dict[str, int]) -> None:
    """What a process does: one piece of work after the other, until the pipe is closed."""
    # Ctrl-C reaches every process of a terminal; only the parent answers it, and then ends the others by SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    for logger, level in levels.items():
        logging.getLogger(logger).setLevel(level)
    hear = _Speaker(pipe)
    try:
        with hear.listening():
            given = pipe.recv()
            while True:
                try:
                    name, function = pipe.recv()
                except (EOFError, OSError):
                    return
                signal.signal(signal.SIGTERM, _interrupt)
                found = _outcome(function, given)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                hear.say("done", _portable(found, name) if isinstance(found, Exception) else found)
    except KeyboardInterrupt:
        sys.exit(130)


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


def _portable(error: Exception, name: str) -> DeltawError:
    """Return an error of ours as it is, any other as a DeltawError with its kind; its traceback is a note."""
    same: DeltawError = DeltawError(reason(error))
    if isinstance(error, DeltawError):
        with contextlib.suppress(Exception):
            again = pickle.loads(pickle.dumps(error))  # written and read by ourselves, a line apart
            same = again if str(again) == str(error) else same
    same.add_note(f"in the process of {name}:\n{''.join(traceback.format_exception(error)).rstrip()}")
    return same


@contextlib.contextmanager
def _without_interrupt() -> Iterator[None]:
    """Start a process that Ctrl-C does not reach, not even while it imports; here it waits until the block ends."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # starting it with the first process would let the signal through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


__all__ = ["default_jobs", "reason", "run_all", "usable_cores"]
