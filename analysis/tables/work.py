"""Where and how the work of a table is done. No choice of it changes a digit of the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from deltaw.adapters.checks import whole_number
from deltaw.adapters.errors import OptionError

ENGINES = ("dask",)


@dataclass(frozen=True)
class Work:
    """Where and how the work of a table is done.

    Arguments:
        device: "cpu", "cuda", "cuda:1", …: where matrices are measured, in float64 everywhere. On a GPU sums are added
            up in another order, so the last digits may be others; "cpu" has the same bits always.
        jobs: How many processes do it: of this machine, or of the engine that is started here.
        engine: ``None``, or the name of an engine that does it, perhaps on several machines: "dask".
        address: Where the engine's scheduler is, as "tcp://node1:8786"; ``None`` for one that is started here.
        cache: Keep what was measured beside the run, and read it from there the next time.

    Raises:
        OptionError: One of them cannot be.
    """

    device: str = "cpu"
    jobs: int = 1
    engine: str | None = None
    address: str | None = None
    cache: bool = False

    def __post_init__(self) -> None:
        whole_number("jobs", self.jobs, 1)
        if self.device != "cpu" and self.address is None:  # the engine's machines may have what this one has not
            from deltaw.analysis.tables.device import checked_device  # it needs torch, which --help does without

            object.__setattr__(self, "device", checked_device(self.device))
        if self.engine is not None and self.engine not in ENGINES:
            raise OptionError(f"engine is {self.engine!r}; choose {' or '.join(map(repr, ENGINES))}, or None for none")
        if self.address is None:
            return
        if not isinstance(self.address, str) or not self.address:
            raise OptionError(f"address is {self.address!r}; give that of the engine's scheduler, as tcp://node1:8786")
        if self.engine is None:
            raise OptionError(f"address is {self.address!r}, and no engine is named; add engine={ENGINES[0]!r}")
        if self.jobs > 1:
            raise OptionError(
                f"jobs is {self.jobs}, and the engine at {self.address} has processes of its own; leave jobs out"
            )

    @property
    def elsewhere(self) -> bool:
        """Whether other processes do it."""
        return self.jobs > 1 or self.engine is not None


HERE = Work()


def chosen_work(
    device: str | None = None,
    jobs: int = 1,
    engine: str | None = None,
    address: str | None = None,
    cache: bool = True,
) -> Work:
    """Return how the work is to be done, from the options of a public function or of the command line.

    Arguments:
        device: ``None`` for the processor.
        jobs, engine, address, cache: See `Work`.

    Raises:
        OptionError: One of them cannot be.

    Example:
        >>> chosen_work(jobs=2)
        Work(device='cpu', jobs=2, engine=None, address=None, cache=True)
    """
    return Work("cpu" if device is None else device, jobs, engine, address, cache)


class How(TypedDict, total=False):
    """Where and how a table is measured, as the keyword arguments of its function: those of `Work`, or one of them."""

    device: str | None
    jobs: int
    engine: str | None
    address: str | None
    cache: bool
    work: Work | None


def work_from(given: Mapping[str, Any]) -> Work:
    """Return what the keyword arguments of a table's function say, `HERE` where they say nothing.

    Arguments:
        given: As `How`.

    Raises:
        OptionError: One of them is unknown, or cannot be; or there is a ``work`` beside others.

    Example:
        >>> work_from({"jobs": 2})
        Work(device='cpu', jobs=2, engine=None, address=None, cache=False)
        >>> work_from({"devise": "cuda"})
        Traceback (most recent call last):
        deltaw.adapters.errors.OptionError: there is no option 'devise'; of how it is measured there are device, jobs, \
engine, address, cache
    """
    options = {name: value for name, value in given.items() if name != "work"}
    names = [name for name in How.__annotations__ if name != "work"]
    unknown = [name for name in options if name not in names]
    if unknown:
        raise OptionError(f"there is no option {unknown[0]!r}; of how it is measured there are {', '.join(names)}")
    work = given.get("work")
    if work is None:
        return chosen_work(**({"cache": False} | options))
    if options:
        raise OptionError(f"work and {next(iter(options))} are given; leave one of them out")
    if not isinstance(work, Work):
        raise OptionError(f"work is {work!r}; give device, jobs, engine, address and cache in its place")
    return work
