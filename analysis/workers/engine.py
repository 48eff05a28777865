"""Pieces of work handed to an engine that spans machines: Dask's distributed, an extra (``deltaw[cluster]``).

Dask and not Ray: it is small (44 MB beside 259), starts in half a second (Ray: six) with three processes of 110 MB
together (Ray: ten, 720 MB), is plain Python wherever Python runs, and its workers join by an address, as the jobs of
SLURM do. With both, a killed worker's work is done by another. Tried: Ray 2.60.0, distributed 2026.8.0.
"""

import asyncio
import contextlib
import importlib.metadata
import itertools
import logging
import socket
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from deltaw.adapters.errors import DeltawError, OptionError
from deltaw.analysis.workers.lost import LostError
from deltaw.analysis.workers.processes import Piece, outcome_of, portable

R = TypeVar("R")
K = TypeVar("K")
TIMEOUT = 15.0  # seconds for an engine to answer, and for it to have a first worker
NO_WORKER = 60.0  # seconds without any, after which none is waited for
ASKED = 2.0  # seconds from one question for the workers to the next
_LOGS = ("distributed", "tornado", "asyncio")  # what writes on stderr where an engine is lost
AHEAD = 4  # pieces of work for each thread of the engine that wait there

_one = threading.Lock()  # at a time in a process: torch's number of threads is one for all


def handed_to_dask(
    work: Iterable[tuple[K, Callable[..., R]]], *, shared: Any, address: str | None, jobs: int
) -> Generator[tuple[K, R | Exception], None, None]:
    """Have functions called by the workers of Dask, and yield what each returned or raised, by its key, as they come.

    A function goes to another worker where one is lost. What several were lost at comes back as a LostError. Where the
    caller stops, what waits is cancelled.

    Arguments:
        work: Keys and functions; see ``deltaw.analysis.workers.processes.outcomes``.
        shared: The argument of that name of all functions; a worker gets it once.
        address: Of the scheduler; ``None`` to start one here, with as many workers as there are jobs.
        jobs: How many workers are started here.

    Raises:
        OptionError: Dask is not installed.
        DeltawError: Nothing answers at the address, no worker is there, or the engine was lost.
    """
    distributed = _distributed()
    threads = max(1, torch.get_num_threads() // jobs) if address is None else None
    call = _Call(_version(), threads)
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(_connected(address, jobs))
        # As a task, and not scattered, so that a worker that lost it is given it again.
        with _answering(client, address), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
            common = client.submit(_itself, shared, pure=False)
        with contextlib.suppress(Exception):  # else workers wait for one another for it; it goes without
            client.replicate([common])
        at_work: dict[Any, Piece] = {}
        done = distributed.as_completed([], loop=client.loop)
        stack.callback(lambda: _cancelled(client, [*at_work, common]))
        pieces = (Piece(key, function) for key, function in work)
        again: list[Piece] = []  # that were lost with a worker, perhaps by another one's fault: each alone

        def hand_out() -> None:
            room = AHEAD * max(1, sum(client.nthreads().values())) - len(at_work)
            if again or any(piece.lost for piece in at_work.values()):
                room = 0 if at_work else 1
            for piece in itertools.islice(
                itertools.chain([again.pop()] if again and room else [], pieces), max(0, room)
            ):
                future = client.submit(call, piece.function, common, str(piece.key), pure=False)
                at_work[future] = piece
                done.add(future)

        with _answering(client, address):
            hand_out()
        while at_work:
            with _answering(client, address):
                future = _next(done, client)
            piece, found = at_work.pop(future), _result(future, address)
            if isinstance(found, LostError) and not piece.lost:
                piece.lost += 1
                again.append(piece)
            else:
                yield piece.key, found
            with _answering(client, address):
                hand_out()


def _next(done: Any, client: Any) -> Any:
    """Return the next piece that is done.

    Dask waits for ever where all workers are gone and none comes: a nanny whose process dies while it starts again,
    as on a machine that is out of memory, gives it up.

    Raises:
        DeltawError: There has been no worker for ``NO_WORKER`` seconds.
    """
    seen = asked = time.monotonic()
    while not done.has_ready():
        with done.thread_condition:
            done.thread_condition.wait(timeout=0.1)  # as Dask's own loop does
        now = time.monotonic()
        if now - asked < ASKED:
            continue
        asked = now
        if client.nthreads():
            seen = now
        elif now - seen > NO_WORKER:
            raise DeltawError(
                f"the engine has had no worker for {NO_WORKER:.0f} s, they died and none came in their place; start "
                "some, the same call goes on from what was kept until then"
            )
    return next(done)


def _distributed() -> Any:
    """Import what is installed with the extra; parts of it have no types."""
    try:
        return importlib.import_module("distributed")
    except ModuleNotFoundError:
        raise OptionError("engine 'dask' is not installed: pip install 'deltaw[cluster]'") from None


def _version() -> str:
    try:
        return importlib.metadata.version("deltaw")
    except importlib.metadata.PackageNotFoundError:  # it runs from its files
        return "of no version"


def _itself(shared: Any) -> Any:
    return shared


class _Call:
    """What a worker calls."""

    def __init__(self, version: str, threads: int | None) -> None:
        self.version, self.threads = version, threads

    def __call__(self, function: Callable[..., Any], shared: Any, name: str) -> Any:
        if _version() != self.version:
            return DeltawError(f"a worker has deltaw {_version()}, this is {self.version}; install the same there")
        with _one:
            if self.threads is not None:
                torch.set_num_threads(self.threads)
            found = outcome_of(function, {"shared": shared})
        return portable(found, name) if isinstance(found, Exception) else found


def _result(future: Any, address: str | None) -> Any:
    """Return what a worker returned, or why nothing did."""
    distributed = _distributed()
    error: BaseException | None
    try:
        return future.result()  # which may be lost with its worker, too
    except (Exception, asyncio.CancelledError) as raised:
        error = raised
    if isinstance(error, distributed.KilledWorker):
        return LostError("was lost with its worker, several times")
    if isinstance(error, ModuleNotFoundError):
        raise DeltawError(f"a worker of the engine lacks {error.name}; install deltaw there, as it is here")
    if future.status == "error" and isinstance(error, Exception):
        return portable(error, "the engine")
    raise _lost(address)


def _lost(address: str | None) -> DeltawError:
    return DeltawError(
        f"the engine {f'at {address}' if address else 'that was started here'} was lost; the same call goes on from "
        "what was kept until then"
    )


@contextlib.contextmanager
def _answering(client: Any, address: str | None) -> Iterator[None]:
    """Say of what Dask raises where its scheduler is gone that the engine was lost.

    Raises:
        DeltawError: So it is.
    """
    try:
        yield
    except (Exception, asyncio.CancelledError) as error:
        gone = isinstance(error, OSError | asyncio.CancelledError) or client.status != "running"
        if isinstance(error, DeltawError) or not gone:
            raise
        raise _lost(address) from error


def _cancelled(client: Any, futures: Sequence[Any]) -> None:
    """Let what waits go, as far as there is a scheduler to be told."""
    with contextlib.suppress(Exception, asyncio.CancelledError):
        if client.status == "running":
            client.cancel(futures)


@contextlib.contextmanager
def _connected(address: str | None, jobs: int) -> Iterator[Any]:
    """Connect to a scheduler, or start one, and close what was opened."""
    import dask

    distributed = _distributed()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet())
        if address is None:
            # A worker has one piece of work at a time, so that no other one is suspected when it is lost.
            settings = {"distributed.scheduler.allowed-failures": 1, "distributed.scheduler.worker-saturation": 1.0}
            stack.enter_context(dask.config.set(settings))
            where: Any = stack.enter_context(
                distributed.LocalCluster(
                    n_workers=jobs,
                    threads_per_worker=1,
                    dashboard_address="127.0.0.1:0",
                    memory_limit=0,
                    silence_logs=logging.CRITICAL,
                )
            )
        else:
            _wait_for(address)
            where = address
        client = stack.enter_context(distributed.Client(where, timeout=TIMEOUT, set_as_default=False))
        try:
            client.wait_for_workers(1, timeout=TIMEOUT)
        except TimeoutError:
            raise DeltawError(
                f"the engine at {address} has no worker; start some with 'dask worker {address} --nthreads 1'"
            ) from None
        yield client


def _wait_for(address: str) -> None:
    """Return when a scheduler answers: Dask's own client waits for ever for one that takes a connection and is silent.

    Raises:
        DeltawError: None does in time, or it is no address.
    """
    from distributed.comm.addressing import parse_address, parse_host_port

    end, reason = time.monotonic() + TIMEOUT, ""
    while not reason or time.monotonic() < end:
        try:
            host, port = parse_host_port(parse_address(address)[1])
            with socket.create_connection((host, port), max(0.1, end - time.monotonic())) as connection:
                connection.settimeout(max(0.1, end - time.monotonic()))
                if address.startswith("tls://") or connection.recv(1):  # a scheduler speaks first, but for TLS
                    return
            reason = "it is none of Dask"
        except ValueError as error:
            reason = str(error)
            break
        except OSError as error:
            reason = error.strerror or str(error) or type(error).__name__
        time.sleep(0.1)
    raise DeltawError(
        f"no engine answers at {address} within {TIMEOUT:g} s ({reason:.200}); start one with 'dask scheduler' and its "
        f"workers with 'dask worker {address} --nthreads 1'"
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Say in errors of ours, and not in Dask's log, what goes wrong."""
    # Dask gives several of its loggers a level of their own, so that one for all is not enough.
    loggers = [log for log in map(logging.getLogger, logging.root.manager.loggerDict) if log.name.startswith(_LOGS)]
    levels = [log.level for log in loggers]
    for log in loggers:
        log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for log, level in zip(loggers, levels, strict=True):
            log.setLevel(level)
