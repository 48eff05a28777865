"""A grid of runs: methods × ranks × seeds, alone or side by side, and one table of them all."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from tabulate import tabulate

from deltaw.adapters.errors import DeltawError, OptionError, RecordError
from deltaw.adapters.methods.registry import METHODS, options_of
from deltaw.analysis.records.storage.atomic import is_leftover, write_text
from deltaw.trainers.settings import Settings
from deltaw.trainers.side_by_side import reason, run_all

S = TypeVar("S", bound=Settings)
R = TypeVar("R")
COMMON = ("rank", "alpha", "dropout")  # settings.options with these names go to the methods that have them
TABLES = ("results.csv", "results.md")


class GridError(DeltawError):
    """Some runs of a grid failed; the others are kept.

    Arguments:
        results: Of the runs that finished.
        failures: What went wrong, by the name of the run.
        total: How many runs the grid has.
    """

    def __init__(self, results: list[Any], failures: dict[str, str], total: int) -> None:
        lines = [f"{name} failed: {reason}" for name, reason in failures.items()]
        super().__init__("\n".join([f"{len(failures)} of {total} runs failed", *lines]))
        self.results, self.failures, self.total = results, failures, total


def grid_runs(
    settings: S,
    *,
    methods: Sequence[str] | None = None,
    ranks: Sequence[int] | None = None,
    seeds: Sequence[int] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    rates: Mapping[str, float] | None = None,
) -> dict[str, S]:
    """Return the settings of every run of a grid by the run's name, METHOD-rRANK-sSEED.

    With advice it is METHOD-advised-sSEED, of a method without a rank METHOD-sSEED.

    Arguments:
        settings: Everything but method, rank and seed; its ``options`` are for all methods, where ``rank``, ``alpha``
            and ``dropout`` go to those that have them.
        methods, ranks, seeds: ``None`` for the one of the settings. A method without a rank is there once a seed.
        options: Further options, by method.
        rates: Learning rates of their own, by method; the others have that of the settings.

    Raises:
        OptionError: A method does not exist or lacks an option, or no method has one.

    Example:
        >>> from deltaw.trainers.cola import ColaSettings
        >>> list(grid_runs(ColaSettings(method="lora"), methods=["lora", "ft"], ranks=[4, 8]))
        ['lora-r4-s0', 'lora-r8-s0', 'ft-s0']
    """
    methods = list(dict.fromkeys(methods or [settings.method]))
    options, rates = dict(options or {}), dict(rates or {})
    for name in [*methods, *options, *rates]:
        if name not in METHODS:
            raise OptionError(f"there is no method {name!r}; choose from {', '.join(METHODS)}")
    for what, given in (("are options", options), ("is a learning rate", rates)):
        for name in given:
            if name not in methods:
                raise OptionError(f"there {what} for {name!r}, which is not among the methods {', '.join(methods)}")
    common = {name: value for name, value in settings.options.items() if name in COMMON}
    for name in [*common, *(["rank"] if ranks else [])]:
        if not any(name in options_of(method) for method in methods):
            raise OptionError(f"no method here has an option {name!r}: {_listed(methods)}")
    found = {}
    for method in methods:
        known = options_of(method)
        chosen = {k: v for k, v in settings.options.items() if k not in COMMON or k in known}
        chosen |= options.get(method, {})
        rate = rates.get(method, settings.learning_rate)
        wanted: Sequence[int | None] = [None]
        if ranks and "rank" in known and "rank" not in options.get(method, {}):
            wanted = list(dict.fromkeys(ranks))
        for rank in wanted:
            own = chosen if rank is None else chosen | {"rank": rank}
            for seed in dict.fromkeys(seeds or [settings.seed]):
                run = replace(settings, method=method, options=own, learning_rate=rate, seed=seed)
                used = run.make_method().options().get("rank")
                ranked = "" if used is None else f"-r{used}" if run.advice is None else "-advised"
                found[f"{method}{ranked}-s{seed}"] = run
    return found


def run_grids(
    grids: Mapping[Path, Mapping[str, S]],
    *,
    finished: Callable[[S, Path], R | None],
    check: Callable[[Sequence[S]], Mapping[str, Any]],
    train: Callable[..., R],
    table: Callable[[Sequence[R]], pd.DataFrame],
    page: Callable[[pd.DataFrame], str],
    jobs: int = 1,
) -> dict[Path, list[R]]:
    """Train every run of some grids in its own folder, and write one table a grid.

    Everything is checked before anything is trained. Finished runs are only read and an interrupted one goes on.

    Arguments:
        grids: Runs as ``grid_runs`` returns them, by the folder of the grid: it gets one folder a run, results.csv,
            results.md.
        finished: Returns a run's result, or None where there is work to do.
        check: Raises what would stop one of the unfinished runs; returns the keyword arguments of ``train``.
        train: Trains one: a function of a module, or a ``functools.partial`` of one.
        table, page: Make the table, and its text in Markdown.
        jobs: Processes at a time; results are equal to the bit for any number.

    Returns:
        By folder, one result a run, in their order.

    Raises:
        RecordError: A folder holds something else.
        GridError: Runs have failed; the others are done, and the tables hold them.
    """
    for out in grids:
        _check_folder(out)
    runs = {(out, name): run for out, runs in grids.items() for name, run in runs.items()}
    names = {key: _name(key, grids) for key in runs}
    todo = [key for key, run in runs.items() if finished(run, key[0] / key[1]) is None]
    given = check([runs[key] for key in todo])
    work = {names[out, name]: partial(train, run, out / name) for (out, name), run in runs.items()}
    read = run_all({names[key]: work[names[key]] for key in runs if key not in todo}, shared=given)
    found = read | run_all({names[key]: work[names[key]] for key in todo}, jobs, shared=given)
    results: dict[Path, list[R]] = {out: [] for out in grids}
    failures: dict[str, str] = {}
    for (out, _), called in names.items():
        outcome = found[called]
        if isinstance(outcome, Exception):
            failures[called] = reason(outcome)
        else:
            results[out].append(outcome)
    for out, of_grid in results.items():
        if of_grid:
            frame = table(of_grid)
            write_text(out / "results.csv", frame.to_csv(index=False))
            write_text(out / "results.md", page(frame) + "\n")
    if failures:
        raise GridError([result for of_grid in results.values() for result in of_grid], failures, len(runs))
    return results


def _name(key: tuple[Path, str], grids: Mapping[Path, Any]) -> str:
    """The name of a run, with its grid's where there are several."""
    out, name = key
    return name if len(grids) == 1 else f"{out.name}/{name}"


def over_seeds(frame: pd.DataFrame, scores: Sequence[str]) -> pd.DataFrame:
    """Return one row a method and rank, in the order given, over the seeds.

    Arguments:
        frame: One row a run: method, rank, seed, trainable, share, seconds_per_epoch, peak_megabytes, and the scores.
        scores: The names of the columns with the scores.

    Returns:
        A table with the columns method, rank (none for a method without one), trainable, share, SCORE_mean and
        SCORE_std for every score (sample standard deviation, empty for one seed), seeds (how many), seconds_per_epoch
        (the median) and peak_megabytes (the highest).
    """
    kinds: dict[str, Any] = {name: pd.NamedAgg(name, "first") for name in ("trainable", "share")}
    for name in scores:
        kinds |= {f"{name}_mean": pd.NamedAgg(name, "mean"), f"{name}_std": pd.NamedAgg(name, "std")}
    kinds["seeds"] = pd.NamedAgg("seed", "nunique")
    kinds["seconds_per_epoch"] = pd.NamedAgg("seconds_per_epoch", "median")
    kinds["peak_megabytes"] = pd.NamedAgg("peak_megabytes", "max")
    grouped = frame.astype({"rank": "Int64"}).groupby(["method", "rank"], sort=False, dropna=False)
    found: pd.DataFrame = grouped.agg(**kinds).reset_index()
    return found


def rounded_page(frame: pd.DataFrame, scores: Mapping[str, str], *, markdown: bool = False) -> str:
    """Return the table of ``over_seeds`` rounded, for a terminal or as Markdown.

    Arguments:
        scores: What stands over a score's column, by the score's name.
    """
    rows = [
        {
            "method": row["method"],
            "rank": "" if pd.isna(row["rank"]) else row["rank"],
            "trainable": _cell(row["trainable"], "{:,.0f}"),
            "share %": _cell(row["share"], "{:.2%}").removesuffix("%"),
            **{title: _spread(row[f"{name}_mean"], row[f"{name}_std"]) for name, title in scores.items()},
            "seeds": _cell(row["seeds"], "{:.0f}"),
            "s per epoch": _cell(row["seconds_per_epoch"], "{:.2f}"),
            "peak MB": _cell(row["peak_megabytes"], "{:.0f}"),
        }
        for row in frame.to_dict(orient="records")
    ]
    style = "github" if markdown else "simple"
    right = ("left", *["right"] * (6 + len(scores)))
    return tabulate(rows, headers="keys", tablefmt=style, colalign=right if rows else None, disable_numparse=True)


def _cell(value: Any, form: str) -> str:
    return "" if pd.isna(value) else form.format(value)


def _spread(mean: Any, deviation: Any) -> str:
    if pd.isna(mean):
        return ""
    return f"{mean:.3f}" if pd.isna(deviation) else f"{mean:.3f} ± {deviation:.3f}"


def _check_folder(out: Path) -> None:
    """Raise where the folder holds anything but runs of a grid and its tables."""
    if not out.is_dir():
        return
    names = "|".join(map(re.escape, METHODS))
    for path in sorted(out.iterdir()):
        run = path.is_dir() and re.fullmatch(rf"({names})(-r\d+)?-s-?\d+", path.name)
        if not run and path.name not in TABLES and not any(is_leftover(path.name, table) for table in TABLES):
            raise RecordError(f"{out}: holds {path.name!r} and is no grid of runs; choose another folder, or a new one")


def _listed(methods: Sequence[str]) -> str:
    return "; ".join(f"{method} has {', '.join(options_of(method)) or 'none'}" for method in methods)
