"""A report that is written anew while its runs are being recorded."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from deltaw.adapters.errors import OptionError, RecordError
from deltaw.analysis.report.write import report
from deltaw.analysis.runs import Paths, open_runs
from deltaw.analysis.trajectory import Trajectory

EVERY = 30.0  # seconds


def watched(
    runs: Paths, path: str | Path, *, every: float = EVERY, wait: Callable[[float], object] = time.sleep, **options: Any
) -> Iterator[Path]:
    """Write a report, and again whenever its runs have new checkpoints or a longer log; yield its path each time.

    An open page reads its file anew as often. At the end (``close`` of the iterator, or Ctrl-C) it is written once more
    for good, and open pages stop.

    Arguments:
        runs: Paths, see ``report``.
        path: The file.
        every: Seconds between two looks at the runs.
        wait: Waits so many seconds.
        options: ``report``'s.

    Raises:
        As ``report``; a run that is being written at that moment is looked at again later.
    """
    if isinstance(every, bool) or not isinstance(every, int | float) or not every > 0:
        raise OptionError(f"every is {every!r}; choose a number of seconds above 0")
    seen: list[Any] | None = None
    try:
        while True:
            now = _state(runs, options.get("base"))
            if now != seen:
                yield report(runs, path, watch=every, **options)
                seen = now
            wait(every)
    finally:
        if seen is not None:
            report(runs, path, **options)


def _state(runs: Paths, base: Any) -> list[Any]:
    """What changes when a run goes on: its steps, and the length of its log."""
    # That the runs are still being recorded is said by the report, and not at every look at them.
    log = logging.getLogger(Trajectory.__module__)
    log.addFilter(_nothing)
    try:
        opened: Sequence[Trajectory] = open_runs(runs, base=base)
        return [(run.name, run.steps, len(run.source.scalars())) for run in opened]
    except RecordError as error:
        return [str(error)]
    finally:
        log.removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    return False
