"""A limit of time, for what must not stand still."""

import contextlib
import signal

import pytest


@contextlib.contextmanager
def _within(seconds):
    def late(number, frame):
        raise TimeoutError(f"took more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def within():
    """What raises a TimeoutError in a block that takes longer."""
    return _within
