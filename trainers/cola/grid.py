"""A grid of runs on CoLA: methods × ranks × seeds, alone or side by side, and one table of them all."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from deltaw.trainers.cola.experiment import ColaResult, check_cola, finished_cola, train_cola
from deltaw.trainers.cola.settings import ColaSettings
from deltaw.trainers.grid import GridError, grid_runs, over_seeds, rounded_page, run_grids


def train_grid(
    settings: ColaSettings,
    out: str | Path,
    *,
    methods: Sequence[str] | None = None,
    ranks: Sequence[int] | None = None,
    seeds: Sequence[int] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    rates: Mapping[str, float] | None = None,
    progress: bool = True,
    jobs: int = 1,
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
        rates: Learning rates of their own, by method; the others have that of the settings.
        progress: Show a progress bar a run.
        jobs: Runs at a time, each in a process of its own; they are equal to the bit for any number. See
            ``deltaw.trainers.side_by_side.run_all``.

    Returns:
        One result a run: by method, then rank, then seed.

    Raises:
        OptionError, TargetError, DataError: Before anything is trained: as ``train_cola``.
        RecordError: Before anything is trained: the folder holds runs with other settings, or something else.
        GridError: Runs have failed; the others are done, and the tables hold them.
    """
    runs = grid_runs(settings, methods=methods, ranks=ranks, seeds=seeds, options=options, rates=rates)
    return train_grids({Path(out): runs}, progress=progress, jobs=jobs)[Path(out)]


def train_grids(
    grids: Mapping[Path, Mapping[str, ColaSettings]], *, progress: bool = True, jobs: int = 1
) -> dict[Path, list[ColaResult]]:
    """Train the runs of several grids, by the folder of the grid; the rest as ``train_grid``."""
    return run_grids(
        grids,
        finished=finished_cola,
        check=_check,
        train=partial(train_cola, progress=progress),
        table=grid_table,
        page=partial(grid_page, markdown=True),
        jobs=jobs,
    )


def _check(runs: Sequence[ColaSettings]) -> dict[str, Any]:
    check_cola(runs)
    return {}


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
    return over_seeds(frame, ["best_mcc", "final_mcc"])


def grid_page(frame: pd.DataFrame, *, markdown: bool = False) -> str:
    """Return the table of ``grid_table`` rounded, for a terminal or as Markdown."""
    return rounded_page(frame, {"best_mcc": "best MCC", "final_mcc": "final MCC"}, markdown=markdown)


__all__ = ["GridError", "grid_page", "grid_runs", "grid_table", "train_grid", "train_grids"]
