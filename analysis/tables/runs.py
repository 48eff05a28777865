"""Tables over several runs at once."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd

from deltaw.adapters.errors import OptionError
from deltaw.analysis.records.base import BaseLike
from deltaw.analysis.trajectory import Trajectory

Table = Literal["consecutive", "initial", "base", "spectra"]


def open_runs(paths: Sequence[str | Path | Trajectory], *, base: BaseLike = None) -> list[Trajectory]:
    """Open runs, and name those that share a folder name by as much of their path as tells them apart.

    Arguments:
        paths: See ``Trajectory.open``; what is open already stays as it is.
        base: W₀ of those that do not hold it.

    Raises:
        RecordError: One of them is no run.
        OptionError: There is none, or one is given twice.
    """
    if not paths:
        raise OptionError("no run is given; name one or more run folders")
    runs = [path if isinstance(path, Trajectory) else Trajectory.open(path, base=base) for path in paths]
    places = [run.path.resolve() for run in runs]
    if len(set(places)) < len(places):
        twice = next(place for place in places if places.count(place) > 1)
        raise OptionError(f"{twice}: is given twice")
    depth = 1
    while len({place.parts[-depth:] for place in places}) < len(places):
        depth += 1
    for run, place in zip(runs, places, strict=True):
        run.name = "/".join(place.parts[-depth:])
    return runs


def table(
    runs: Sequence[Trajectory],
    which: Table,
    *,
    steps: Sequence[int] | Literal["last"] | None = None,
    groups: bool = True,
    modules: Sequence[str] | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Return one tidy table of several runs, one below the other.

    Arguments:
        runs: Opened runs.
        which: "consecutive", "initial" or "base" for changes, "spectra" for ranks.
        steps: For spectra: these steps, "last" for each run's last, ``None`` for all.
        groups: For spectra: Dual LoRA's two groups as well.
        modules: Glob patterns; ``None`` for all.
        progress: Show progress bars.
    """

    def changes(run: Trajectory) -> pd.DataFrame:
        return run.changes(which, modules=modules, progress=progress)  # type: ignore[arg-type]

    def spectra(run: Trajectory) -> pd.DataFrame:
        wanted = run.steps[-1:] if steps == "last" else steps
        return run.spectra(wanted, modules=modules, groups=groups, progress=progress)

    make: Callable[[Trajectory], pd.DataFrame] = spectra if which == "spectra" else changes
    return pd.concat([make(run) for run in runs], ignore_index=True)
