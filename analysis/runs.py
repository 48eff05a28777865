"""Several runs at once: opening them, and one tidy table of all."""

import glob
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, Unpack

import pandas as pd

from deltaw.adapters.checks import public
from deltaw.adapters.errors import DeltawWarning, OptionError
from deltaw.analysis.records.foreign.base import BaseLike
from deltaw.analysis.records.storage.files import is_address
from deltaw.analysis.tables.comparison import comparison_table
from deltaw.analysis.tables.frame import notes_of
from deltaw.analysis.tables.registry import TABLES
from deltaw.analysis.tables.walk import no_stops
from deltaw.analysis.tables.work import HERE, How, Work, chosen_work
from deltaw.analysis.trajectory import Trajectory

Paths = str | Path | Trajectory | Sequence[str | Path | Trajectory]


@public
def open(
    path: str | Path,
    *,
    base: BaseLike = None,
    modules: Sequence[str] | None = None,
    split: bool | None = None,
    pattern: str | None = None,
) -> Trajectory:
    """Open a run, whoever wrote it: ``deltaw.open``. The same as ``Trajectory.open``, which see.

    Example:
        >>> import tempfile, deltaw, torch
        >>> lora, plain = deltaw.METHODS["lora"](rank=2), torch.nn.Sequential(torch.nn.Linear(6, 4))
        >>> model, folder = deltaw.inject(plain, lora, targets=["0"]), tempfile.mkdtemp()
        >>> with deltaw.Recorder(model, folder) as recorder:
        ...     recorder.step(0)
        >>> deltaw.open(folder).steps
        [0]
    """
    return Trajectory.open(path, base=base, modules=modules, split=split, pattern=pattern)


@public
def open_runs(paths: Paths, *, base: BaseLike = None) -> list[Trajectory]:
    """Open runs, and name those that share a folder name by as much of their path as tells them apart.

    Arguments:
        paths: One or several folders, files or addresses, see ``Trajectory.open``; a text with ``*``, ``?`` or ``[`` is
            a pattern, as "runs/*". What is open already stays as it is.
        base: W₀ of those that do not hold it.

    Raises:
        RecordError: One of them is no run.
        OptionError: There is none, or one is given twice.
    """
    given = _listed(paths)
    if not given:
        raise OptionError("no run is given; name one or more run folders")
    runs = [path if isinstance(path, Trajectory) else Trajectory.open(path, base=base) for path in given]
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


@public
def table(
    runs: Paths,
    which: str,
    *,
    modules: Sequence[str] | None = None,
    progress: bool = False,
    device: str | None = None,
    jobs: int = 1,
    engine: str | None = None,
    address: str | None = None,
    cache: bool = True,
    work: Work | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Return one tidy table of several runs, one below the other.

    Arguments:
        runs: Opened runs, or what ``open_runs`` takes.
        which: A name of ``deltaw.analysis.tables.registry.TABLES``: "consecutive", "initial" or "base" for changes,
            "spectra" for ranks, ….
        modules: Glob patterns; ``None`` for all.
        progress: Show progress bars.
        device, jobs, engine, address, cache: Where and how it is done, see `deltaw.analysis.tables.work.Work`;
            ``None`` for the processor. No choice changes a digit.
        work: The same in one, in their place.
        options: The table's own: ``steps`` ("last" for each run's last, ``None`` for all) and ``groups`` (by default
            set) for spectra, ….

    Raises:
        OptionError: There is no such table or option, or the table would have no rows; the message says why.
        RecordError: One of them is no run.
    """
    if not isinstance(which, str) or which not in TABLES:
        raise OptionError(f"which is {which!r}; choose one of {', '.join(TABLES)}")
    make = TABLES[which].make
    known = inspect.signature(make).parameters
    if which == "spectra":
        options = {"groups": True} | options
    work = chosen_work(device, jobs, engine, address, cache) if work is None else work
    if "work" in known or replace(work, cache=False) != HERE:  # a table from outside may know one way only
        options["work"] = work
    unknown = [name for name in options if name not in known or name == "runs"]
    if unknown:
        offered = [name for name in known if name != "runs"]
        raise OptionError(f"the table {which!r} has no option {unknown[0]!r}; it has {', '.join(offered)}")
    opened = [run for run in _listed(runs) if isinstance(run, Trajectory)]  # names that were given stay
    if not opened or len(opened) < len(_listed(runs)):
        opened = open_runs(runs)
    frame = make(opened, modules=modules, progress=progress, **options)
    why = notes_of(frame, "no_rows")
    if frame.empty:
        raise OptionError("; ".join(why) or no_stops(opened[0]))
    for note in why:
        warnings.warn(note, DeltawWarning, stacklevel=2)
    return frame


@public
def compare(
    first: str | Path | Trajectory,
    second: str | Path | Trajectory,
    *,
    base: BaseLike = None,
    step_first: int | None = None,
    step_second: int | None = None,
    modules: Sequence[str] | None = None,
    rank: int = 8,
    progress: bool = False,
    **work: Unpack[How],
) -> pd.DataFrame:
    """Return how two runs, models or adapters differ: one row a matrix that both have.

    Arguments:
        first, second: Opened runs, or what ``open`` takes; the same one for two of its steps.
        base: W₀, where the runs do not hold it.
        step_first, step_second, modules, rank, progress, device, …: As in `comparison_table`.

    Returns:
        See `deltaw.analysis.tables.comparison.comparison_table`. ``attrs["settings"]`` lists [name, first, second] of
        what is said of the runs and differs, ``attrs["only_first"]`` and ``attrs["only_second"]`` the modules that
        the other has not.

    Raises:
        As `comparison_table`; RecordError: One of them is no run.
    """
    opened = [run if isinstance(run, Trajectory) else Trajectory.open(run, base=base) for run in (first, second)]
    one, two = opened
    options: dict[str, Any] = {"step_first": step_first, "step_second": step_second, "modules": modules, "rank": rank}
    frame = comparison_table(one, two, **options, progress=progress, **work)
    frame.attrs["settings"] = differing(settings(one), settings(two))
    for name, run, other in (("only_first", one, two), ("only_second", two, one)):
        frame.attrs[name] = [module for module in run.modules if module not in set(other.modules)]
    return frame


def settings(run: Trajectory) -> dict[str, Any]:
    """Return what is said of a run, as plain values by name: its format, method and options, and what was recorded."""
    options: dict[str, Any] = {}
    for module in run.modules[:1]:
        method = run.method_of(module)
        options = {} if method is None else dict(vars(method))
    steps = "none" if not run.steps else "1" if len(run.steps) == 1 else f"{len(run.steps)}, up to step {run.steps[-1]}"
    said = {"format": run.source.format, "method": run.method, "checkpoints": steps} | options
    return _flat(said | dict(run.info))


def differing(first: dict[str, Any], second: dict[str, Any]) -> list[list[str]]:
    """Return [name, first, second] of what differs, as texts; empty where one says nothing, or ``None``.

    Where one says nothing and the other that it is off ("none", ``False``), nothing differs.

    Example:
        >>> differing({"rank": 8, "alpha": 16}, {"rank": 4, "alpha": 16, "seed": 0})
        [['rank', '8', '4'], ['seed', '', '0']]
    """
    names = [*first, *(name for name in second if name not in first)]
    both = [(name, *("" if of.get(name) is None else str(of[name]) for of in (first, second))) for name in names]
    found = {
        (name.rpartition(".")[2], one, two): name
        for name, one, two in reversed(both)
        if one != two and {one, two} - {""} not in ({"False"}, {"none"})
    }
    return [[name, one, two] for (_, one, two), name in reversed(found.items())]  # what is said twice stands once


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return the values by their whole names; a list of names, which PEFT writes in any order, in theirs."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{before}{name}.")
        elif isinstance(value, list | tuple | set) and all(isinstance(entry, str) for entry in value):
            found[f"{before}{name}"] = ", ".join(sorted(value))
        else:
            found[f"{before}{name}"] = value
    return found


def from_paths(which: str) -> Callable[..., pd.DataFrame]:
    """Return the function of paths, and of the table's options, that makes a table of the registry, for a figure.

    Raises:
        OptionError: There is no such table.
    """
    if which not in TABLES:
        raise OptionError(f"which is {which!r}; choose one of {', '.join(TABLES)}")

    @wraps(TABLES[which].make)
    def make(paths: Paths, **options: Any) -> pd.DataFrame:
        return table(paths, which, progress=True, **options)

    return make


def _listed(paths: object) -> list[str | Path | Trajectory]:
    if isinstance(paths, str) and not is_address(paths) and glob.has_magic(paths) and not Path(paths).exists():
        found = sorted(glob.glob(paths))
        if not found:
            raise OptionError(f"no path fits {paths!r}; name one or more run folders")
        return list(found)
    if isinstance(paths, str | Path | Trajectory):
        return [paths]
    if not isinstance(paths, Sequence):
        raise OptionError(
            f"runs are {paths!r}; pass a folder, a pattern as 'runs/*', or a list of folders or opened runs"
        )
    return list(paths)
