"""One thread for what would round differently on several, and work in parts that several threads share."""

import functools
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
U = TypeVar("U")

_PART = 2**19  # entries

_outside: ContextVar[int] = ContextVar("_outside", default=1)  # torch's threads outside of one_thread


@contextmanager
def one_thread() -> Iterator[None]:
    """Run LAPACK's decompositions, products and long sums so that their last digits do not depend on the threads.

    Products of matrices too: MKL shares a long sum among its threads where the matrices are thin, or of an odd size.
    """
    threads = torch.get_num_threads()
    token = _outside.set(max(threads, _outside.get()))
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        _outside.reset(token)


def side_by_side(work: Callable[[T], U], parts: Sequence[T], matrix: Tensor) -> list[U]:
    """Return ``work`` of every part, in order; as many at a time as torch has threads, each done by one thread.

    The parts do not depend on the number of threads, so neither does a result that is put together from them in order.
    The caller's thread does its share. The others stay for the next call, with the memory that MKL keeps for each;
    until then they sleep, where torch's own would keep a core busy.

    Arguments:
        work: What is done.
        parts: Of what.
        matrix: What the parts are of; an accelerator has threads of its own, and gets its work from one.

    Example:
        >>> matrix = torch.ones(4, 2)
        >>> side_by_side(lambda rows: float(rows.sum()), matrix.split(2), matrix)
        [4.0, 4.0]
    """
    with one_thread():
        threads = min(_outside.get(), len(parts)) if matrix.device.type == "cpu" else 1
        if threads <= 1:
            return [work(part) for part in parts]
        found: dict[int, U] = {}
        left = deque(enumerate(parts))

        @torch.no_grad()
        def share() -> None:
            torch.set_num_threads(1)  # its own number, and, until ``one_thread`` ends, that of new threads
            while True:
                try:
                    place, part = left.popleft()
                except IndexError:  # none is left
                    return
                found[place] = work(part)

        pool = _pool(os.getpid(), threads - 1)
        others = [pool.submit(share) for _ in range(threads - 1)]
        try:
            share()
        finally:
            left.clear()  # after an error
            begun = [other for other in others if not other.cancel()]  # the threads may be busy with another's parts
            wait(begun)
        for other in begun:
            other.result()
        return [found[place] for place in range(len(parts))]


@functools.cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Return threads of this process; a fork of it has none of them, and so needs its own."""
    del process
    return ThreadPoolExecutor(threads, "deltaw")


def parts_of(matrix: Tensor) -> tuple[Tensor, ...]:
    """Return the rows of a matrix in parts that caches hold; on an accelerator all of them."""
    if matrix.device.type != "cpu":
        return (matrix,)
    return torch.split(matrix, max(64, _PART // matrix.shape[1]))
