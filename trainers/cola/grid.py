"""A grid of runs on CoLA: methods × ranks × seeds, one after the other, and one table of them all."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from deltaw.adapters import METHODS, DeltawError, OptionError, RecordError
from deltaw.analysis.files import PARTIAL, write_text
from deltaw.trainers.cola.experiment import (
    ColaResult,
    ColaSettings,
    check_cola,
    finished_cola,
    options_of,
    train_cola,
)

COMMON = ("rank", "alpha", "dropout")  # settings.options with these names go to the methods that have them
TABLES = ("results.csv", "results.md")


class GridError(DeltawError):
    """Some runs of a grid failed; the others are kept.

    Arguments:
        results: Of the runs that finished.
        failures: What went wrong, by the name of the run.
        total: How many runs the grid has.
    """

    def __init__(self, results: list[ColaResult], failures: dict[str, str], total: int) -> None:
        lines = [f"{name} failed: {reason}" for name, reason in failures.items()]
        super().__init__("\n".join([f"{len(failures)} of {total} runs failed", *lines]))
        self.results, self.failures, self.total = results, failures, total


def grid_runs(
    settings: ColaSettings,
    *,
    methods: Sequence[str] | None = None,
    ranks: Sequence[int] | None = None,
    seeds: Sequence[int] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, ColaSettings]:
    """Return the settings of every run of a grid by the run's name, METHOD-rRANK-sSEED; see ``train_grid``.

    Raises:
        OptionError: A method does not exist or lacks an option, or no method has one.

    Example:
        >>> from deltaw.trainers.cola import ColaSettings
        >>> list(grid_runs(ColaSettings(method="lora"), methods=["lora", "ft"], ranks=[4, 8]))
        ['lora-r4-s0', 'lora-r8-s0', 'ft-s0']
    """
    methods = list(dict.fromkeys(methods or [settings.method]))
    options = dict(options or {})
    for name in [*methods, *options]:
        if name not in METHODS:
            raise OptionError(f"there is no method {name!r}; choose from {', '.join(METHODS)}")
    for name in options:
        if name not in methods:
            raise OptionError(f"there are options for {name!r}, which is not among the methods {', '.join(methods)}")
    common = {name: value for name, value in settings.options.items() if name in COMMON}
    for name in [*common, *(["rank"] if ranks else [])]:
        if not any(name in options_of(method) for method in methods):
            raise OptionError(f"no method here has an option {name!r}: {_listed(methods)}")
    found = {}
    for method in methods:
        known = options_of(method)
        chosen = {k: v for k, v in settings.options.items() if k not in COMMON or k in known}
        chosen |= options.get(method, {})
        wanted: Sequence[int | None] = [None]
        if ranks and "rank" in known and "rank" not in options.get(method, {}):
            wanted = list(dict.fromkeys(ranks))
        for rank in wanted:
            own = chosen if rank is None else chosen | {"rank": rank}
            for seed in dict.fromkeys(seeds or [settings.seed]):
                run = replace(settings, method=method, options=own, seed=seed)
                used = run.make_method().options().get("rank")
                found[f"{method}-s{seed}" if used is None else f"{method}-r{used}-s{seed}"] = run
    return found


def train_grid(
    settings: ColaSettings,
    out: str | Path,
    *,
    methods: Sequence[str] | None = None,
    ranks: Sequence[int] | None = None,
    seeds: Sequence[int] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    progress: bool = True,
) -> list[ColaResult]:
    """Train every method with every rank and seed, each in its own folder, and write one table.

    Everything is checked before anything is trained. Finished runs are only read and an interrupted one goes on, so
    the same call goes on where the last one stopped, and a call with more methods, ranks or seeds adds to a grid.

    Arguments:
        settings: Everything but method, rank and seed; its ``options`` are for all methods, where ``rank``, ``alpha``
            and ``dropout`` go to those that have them.
        out: The folder of the grid: METHOD-rRANK-sSEED (without a rank: METHOD-sSEED), results.csv, results.md.
        methods, ranks, seeds: ``None`` for the one of the settings. A method without a rank is trained once a seed.
        options: Further options, by method.
        progress: Show a progress bar a run.

    Returns:
        One result a run: by method, then rank, then seed.

    Raises:
        OptionError, TargetError, DataError: Before anything is trained: as ``train_cola``.
        RecordError: Before anything is trained: the folder holds runs with other settings, or something else.
        GridError: Runs have failed; the others are done, and the tables hold them.
    """
    out = Path(out)
    runs = grid_runs(settings, methods=methods, ranks=ranks, seeds=seeds, options=options)
    _check_folder(out)
    check_cola([run for name, run in runs.items() if finished_cola(run, out / name) is None])
    results: list[ColaResult] = []
    failures: dict[str, str] = {}
    for name, run in runs.items():
        try:
            results.append(train_cola(run, out / name, progress=progress))
        except Exception as error:  # whatever it is, the other runs need not fail with it
            text = " ".join(str(error).split())
            failures[name] = text if isinstance(error, DeltawError) else f"{type(error).__name__}: {text}"
    if results:
        frame = grid_table(results)
        write_text(out / "results.csv", frame.to_csv(index=False))
        write_text(out / "results.md", grid_page(frame, markdown=True) + "\n")
    if failures:
        raise GridError(results, failures, len(runs))
    return results


def grid_table(results: Sequence[ColaResult]) -> pd.DataFrame:
    """Return one row a method and rank, in the order given, over the seeds.

    Returns:
        A table with the columns method, rank (none for a method without one), trainable, share, best_mcc_mean,
        best_mcc_std, final_mcc_mean, final_mcc_std (sample standard deviations, empty for one seed), seeds (how many),
        seconds_per_epoch (the median) and peak_megabytes (the highest).

    Example:
        >>> from deltaw.trainers.cola import ColaResult
        >>> one = ColaResult("lora", "a", 100, 0.1, 0.5, 3, 0.4, 16, 2.0, 90.0, 1e-3, 3, 0, 4)
        >>> two = ColaResult("lora", "b", 100, 0.1, 0.7, 3, 0.4, 16, 4.0, 80.0, 1e-3, 3, 1, 4)
        >>> table = grid_table([one, two])
        >>> [round(table[c].item(), 3) for c in ("best_mcc_mean", "best_mcc_std", "seconds_per_epoch")]
        [0.6, 0.141, 3.0]
    """
    frame = pd.DataFrame([asdict(result) for result in results], columns=list(ColaResult.__dataclass_fields__))
    frame["rank"] = frame["rank"].astype("Int64")
    return (
        frame.groupby(["method", "rank"], sort=False, dropna=False)
        .agg(
            trainable=("trainable", "first"),
            share=("share", "first"),
            best_mcc_mean=("best_mcc", "mean"),
            best_mcc_std=("best_mcc", "std"),
            final_mcc_mean=("final_mcc", "mean"),
            final_mcc_std=("final_mcc", "std"),
            seeds=("seed", "nunique"),
            seconds_per_epoch=("seconds_per_epoch", "median"),
            peak_megabytes=("peak_megabytes", "max"),
        )
        .reset_index()
    )


def grid_page(frame: pd.DataFrame, *, markdown: bool = False) -> str:
    """Return the table of ``grid_table`` rounded, for a terminal or as Markdown."""
    rows = [
        {
            "method": row["method"],
            "rank": "" if pd.isna(row["rank"]) else row["rank"],
            "trainable": f"{row['trainable']:,}",
            "share %": f"{100 * row['share']:.2f}",
            "best MCC": _spread(row["best_mcc_mean"], row["best_mcc_std"]),
            "final MCC": _spread(row["final_mcc_mean"], row["final_mcc_std"]),
            "seeds": row["seeds"],
            "s an epoch": f"{row['seconds_per_epoch']:.2f}",
            "peak MB": f"{row['peak_megabytes']:.0f}",
        }
        for row in frame.to_dict(orient="records")
    ]
    style = "github" if markdown else "simple"
    right = ("left", *["right"] * 8)
    return tabulate(rows, headers="keys", tablefmt=style, colalign=right if rows else None, disable_numparse=True)


def _spread(mean: float, deviation: float) -> str:
    return f"{mean:.3f}" if pd.isna(deviation) else f"{mean:.3f} ± {deviation:.3f}"


def _check_folder(out: Path) -> None:
    """Raise where the folder holds anything but runs of a grid and its tables."""
    if not out.is_dir():
        return
    names = "|".join(map(re.escape, METHODS))
    for path in sorted(out.iterdir()):
        run = path.is_dir() and re.fullmatch(rf"({names})(-r\d+)?-s-?\d+", path.name)
        if not run and path.name.removesuffix(PARTIAL) not in TABLES:
            raise RecordError(f"{out}: holds {path.name!r} and is no grid of runs; choose another folder, or a new one")


def _listed(methods: Sequence[str]) -> str:
    return "; ".join(f"{method} has {', '.join(options_of(method)) or 'none'}" for method in methods)
