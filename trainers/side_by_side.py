"""Several runs in several processes, each with the same result as one after the other."""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch

from deltaw.adapters.checks import whole_number
from deltaw.adapters.errors import DeltawError
from deltaw.analysis.workers.early import usable_cores
from deltaw.analysis.workers.lost import LostError
from deltaw.analysis.workers.processes import Task, outcome_of, outcomes, reason

R = TypeVar("R")


def run_all(
    work: Mapping[str, Task[R]], jobs: int = 1, *, shared: Mapping[str, Any] | None = None
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
        return {name: outcome_of(function, given) for name, function in work.items()}
    found = dict(outcomes(work.items(), min(jobs, len(work)), shared=given))
    return {name: _ours(found[name]) for name in work}


def _ours(outcome: R | Exception) -> R | Exception:
    """Return any error as one of ours, with what is to be done where a process ended by itself."""
    if isinstance(outcome, LostError):
        return DeltawError(
            f"{outcome}; where memory ran out, fewer --jobs need less of it. "
            "The same command goes on from what was saved"
        )
    if not isinstance(outcome, Exception) or isinstance(outcome, DeltawError):
        return outcome
    same = DeltawError(reason(outcome))
    for note in getattr(outcome, "__notes__", []):
        same.add_note(note)
    return same


def default_jobs(model: str | None) -> int:
    """Return how many runs are trained at a time where nobody says: one a core with a built-in model, else one.

    On a GPU it is one: runs would share its memory.

    Arguments:
        model: As in ``Settings``; ``None`` for the built-in one.
    """
    return usable_cores() if model is None and not torch.cuda.is_available() else 1


__all__ = ["default_jobs", "reason", "run_all", "usable_cores"]
