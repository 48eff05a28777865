"""Where and how the work of a table is done. No choice of it changes a digit of the table."""

from __future__ import annotations

from dataclasses import dataclass

from deltaw.adapters.checks import whole_number


@dataclass(frozen=True)
class Work:
    """Where and how the work of a table is done.

    Arguments:
        device: "cpu", "cuda", "cuda:1", …: where matrices are measured.
        jobs: How many processes of this machine do it.
        engine: ``None``, or the name of an engine that does it on several machines.
        address: Where the engine is; ``None`` for one that is started here.
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


HERE = Work()
