"""Writing in the background: jobs done in order by one thread, of which only so many may wait."""

import atexit
import os
import threading
from collections import deque
from collections.abc import Callable

Job = Callable[[], None]


class Writer:
    """Do jobs in the order in which they are handed over.

    The first job that fails is the last one that is done: what comes after it would stand in the record beside a gap.

    Arguments:
        limit: How many jobs may be waiting or under way; 0 does each at once, in the caller's own thread.

    Example:
        >>> writer, done = Writer(limit=2), []
        >>> for number in range(4):
        ...     writer.submit(lambda number=number: done.append(number))
        >>> writer.close()
        >>> done
        [0, 1, 2, 3]
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._jobs: deque[Job] = deque()  # the first one is under way
        self._error: BaseException | None = None
        self._notified = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._process = os.getpid()

    def check(self) -> None:
        """Raise the error of a job that failed; every time, until nobody asks any more."""
        if self._error is not None:
            self._notified = True
            raise self._error

    def wait_for_room(self) -> None:
        """Wait until one more job may be handed over, so that what it holds is not made before it has a place."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._jobs) < max(1, self._limit) or self._error is not None)
        self.check()

    def submit(self, job: Job) -> None:
        """Hand over a job; waits while there is no room.

        Raises:
            BaseException: What an earlier job failed with, or, with ``limit=0``, this one.
        """
        if not self._limit:
            job()
            return
        self.wait_for_room()
        with self._changed:
            self._jobs.append(job)
            self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="deltaw-writer", daemon=True)
            self._thread.start()
            atexit.register(self.drain)  # the interpreter does not wait for a daemon, but what waits shall be written

    def flush(self) -> None:
        """Wait until everything handed over is done.

        Raises:
            BaseException: What a job failed with.
        """
        self.drain()
        self.check()

    def close(self) -> None:
        """Wait as ``flush``, and end the thread.

        Raises:
            BaseException: What a job failed with, unless it was raised before.
        """
        self.drain()
        if self._thread is not None and os.getpid() == self._process:
            atexit.unregister(self.drain)
            with self._changed:
                self._jobs.append(_end)
                self._changed.notify_all()
            self._thread.join()
            self._thread = None
            self._jobs.clear()
        if not self._notified:
            self.check()

    def drain(self) -> None:
        """Wait as ``flush``, whatever came of it."""
        if self._thread is None or os.getpid() != self._process:  # a fork has not the thread
            return
        with self._changed:
            self._changed.wait_for(lambda: not self._jobs)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._jobs))
                job = self._jobs[0]
            if job is _end:
                return
            if self._error is None:
                try:
                    job()
                except BaseException as error:
                    self._error = error
            del job  # what it holds is free before the next one is taken
            with self._changed:
                self._jobs.popleft()
                self._changed.notify_all()


def _end() -> None:
    """The job that ends the thread."""
