"""How processes are started: anew, or forked from one that has imported what they need.

To import torch takes a second and more, transformers several. The command line knows that processes are wanted before
it has imported either itself: `import_early` has a process do it meanwhile, on another core, and every worker is a fork
of that one, which also shares its memory. It imports and does nothing else, so that no thread is lost by a fork.
"""

import atexit
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from glob import glob
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

# Files of GPUs. Some libraries ask for one as they are imported, after which no fork of the process can use it.
DEVICES = ("/dev/nvidia[0-9]*", "/dev/dxg", "/dev/kfd", "/dev/accel*")

_began = threading.Event()  # and is not over: the process that imports ahead is there


def import_early(*modules: str) -> None:
    """Begin to import modules for the processes that will be started; returns at once.

    Where that cannot be (only Linux forks safely, and not with a GPU), they import for themselves, as without it. It is
    for programs: multiprocessing has one such process, and somebody else's code could want it for its own modules.

    Arguments:
        modules: One that is not installed is passed over.
    """
    if _began.is_set() or sys.platform != "linux" or any(map(glob, DEVICES)):
        return
    from multiprocessing import forkserver

    _began.set()
    forkserver.set_forkserver_preload(list(modules))
    with _safe_path(), without_interrupt():
        forkserver.ensure_running()
    atexit.register(_end)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def started(target: Callable[..., None], args: tuple[Any, ...], name: str) -> BaseProcess:
    """Start a process that ends with this one, and that Ctrl-C does not reach, not even while it imports."""
    if _began.is_set() and not _has_accelerator():
        process: BaseProcess = multiprocessing.get_context("forkserver").Process(
            target=target, args=args, daemon=True, name=name
        )
        try:
            process.start()  # waits until all is imported, and Ctrl-C need not: without_interrupt it would have to
            return process
        except (EOFError, OSError):  # that process is gone
            _began.clear()
    process = multiprocessing.get_context("spawn").Process(target=target, args=args, daemon=True, name=name)
    with without_interrupt():
        process.start()
    return process


@contextlib.contextmanager
def without_interrupt() -> Iterator[None]:
    """Start a process that Ctrl-C does not reach, nor those that it starts; here it waits until the block ends."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # starting it with the first process would let the signal through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _safe_path() -> Iterator[None]:
    """Start a process of Python that imports nothing from the working folder, whatever lies there."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


def _end() -> None:
    """End the process that imports ahead, as the program ends; by itself it would, but once all is imported."""
    from multiprocessing import forkserver

    pid = getattr(getattr(forkserver, "_forkserver", None), "_forkserver_pid", None)
    if isinstance(pid, int):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGTERM)


def _has_accelerator() -> bool:
    import torch

    return bool(getattr(torch, "accelerator", torch.cuda).is_available())
