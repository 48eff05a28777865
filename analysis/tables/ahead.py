"""Matrices measured side by side by the threads of one process, while the next one is read.

A decomposition runs on one thread, so that its last digits do not depend on how many there are; what several threads
can share is whole matrices. A measure allows it by returning `Later`: what is left to do once all has been read.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from deltaw.analysis.tables.stop import Found, Later, Measure, Plan, Rows, Stop

ROOM = 2**31  # bytes: what is measured at once may take as much; a matrix that takes more is measured alone
WORTH = 2**22  # bytes: what takes less is not worth another thread

Guard = Callable[[Stop], AbstractContextManager[None]]


@dataclass(eq=False)
class _Turn:
    """A stop whose rows are there, or to be computed, or being computed by a thread."""

    stop: Stop
    rows: Rows | None = None
    later: Later | None = None
    future: Future[Rows] | None = None

    def result(self, guard: Guard) -> Rows | None:
        """Return the rows, ``None`` where the stop is left out after all."""
        with self.stop, guard(self.stop):
            if self.later is not None:
                self.rows, self.later = self.later.make(), None
            return self.rows if self.future is None else self.future.result()
        return None  # the stop kept an error to itself


class _Threads:
    """Threads that measure a few matrices at once, as far as there is room."""

    def __init__(self, count: int) -> None:
        self.count, self._running = count, dict[Future[Rows], int]()
        self._pool = ThreadPoolExecutor(count, "deltaw-matrix")  # a thread begins when it is needed

    def share(self, later: Later) -> bool:
        """Return whether there is room for two as large as this one."""
        return self.count > 1 and 2 * later.size <= ROOM

    def busy(self) -> bool:
        self._running = {future: size for future, size in self._running.items() if not future.done()}
        return bool(self._running)

    def begin(self, turn: _Turn) -> None:
        """Hand a stop to a thread as soon as there is one, and room."""
        if turn.later is None:
            return
        self.wait_for(turn.later.size)
        threads = max(1, self.count // min(self.count, ROOM // turn.later.size))
        turn.future = self._pool.submit(_made, turn.later, threads)
        self._running[turn.future] = turn.later.size
        turn.later = None  # with its matrix

    def wait_for(self, size: int) -> None:
        """Wait until there is room for so many bytes."""
        while self.busy() and (len(self._running) >= self.count or sum(self._running.values()) + size > ROOM):
            wait(self._running, return_when=FIRST_COMPLETED)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(torch.get_num_threads())  # a new thread starts with what any thread has set last


@torch.no_grad()
def _made(later: Later, threads: int) -> Rows:
    torch.set_num_threads(threads)  # of this thread
    return later.make()


def measured_ahead(
    plan: Plan, stops: Iterator[Stop | Found], measure: Measure, guard: Guard, threads: int
) -> Iterator[tuple[Stop, Rows] | Found]:
    """Yield every stop with what a function returns for it, in order, or what was found in its place.

    What is read is read by one thread at a time. The results do not depend on the number of threads.

    Arguments:
        plan: What the stops are of.
        stops: In order; one that is left out is passed over.
        measure: The function.
        guard: Stands around all that is done for a stop.
        threads: How many measure at most.
    """
    turns: deque[_Turn | Found] = deque()
    alone: _Turn | None = None  # while there is no other one, it may get all threads
    others = _Threads(threads)
    failed: Exception | None = None
    try:
        while True:
            try:
                with plan.reading:
                    stop = next(stops, None)
                    turn = _read(stop, measure, guard) if isinstance(stop, Stop) else stop
                if isinstance(turn, _Turn) and turn.later is not None and turn.later.size < WORTH:
                    turn.result(guard)
            except Exception as error:
                failed = error  # it is raised when its turn comes
                break
            if stop is None:
                break
            if turn is None:  # the stop is left out
                continue
            turns.append(turn)
            if isinstance(turn, _Turn) and turn.later is not None:
                if alone is not None:
                    others.begin(alone)
                    alone = None
                if not others.share(turn.later):
                    others.wait_for(ROOM)
                elif others.busy():
                    others.begin(turn)
                else:
                    alone = turn
            while turns and turns[0] is not alone and _ready(turns[0]):
                yield from _taken(turns, guard)
        while turns:
            yield from _taken(turns, guard)
        if failed is not None:
            raise failed
    finally:
        others.close()


def _read(stop: Stop, measure: Measure, guard: Guard) -> _Turn | None:
    with stop, guard(stop):
        found = measure(stop)
        return _Turn(stop, later=found) if isinstance(found, Later) else _Turn(stop, found)
    return None  # the stop kept an error to itself


def _ready(turn: _Turn | Found) -> bool:
    """Return whether a turn can be taken without waiting: by what is there, or by this thread, as no other has it."""
    return isinstance(turn, Found) or turn.future is None or turn.future.done()


def _taken(turns: deque[_Turn | Found], guard: Guard) -> Iterator[tuple[Stop, Rows] | Found]:
    turn = turns.popleft()
    if isinstance(turn, Found):
        yield turn
        return
    rows = turn.result(guard)
    if rows is not None:
        yield turn.stop, rows
