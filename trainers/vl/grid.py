"""A grid of runs of the VL experiment: methods × ranks × seeds, and one table of them all."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from deltaw.trainers.grid import GridError, grid_runs, over_seeds, rounded_page, run_grids
from deltaw.trainers.vl.examples import TASKS
from deltaw.trainers.vl.experiment import VLData, VLResult, check_vl, finished_vl, train_vl
from deltaw.trainers.vl.settings import VLSettings

PRIOR, AVERAGE = "prior", "average"  # the last row of the table, what guessing scores; and the mean of the tasks


def train_grid(
    settings: VLSettings,
    out: str | Path,
    *,
    methods: Sequence[str] | None = None,
    ranks: Sequence[int] | None = None,
    seeds: Sequence[int] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    rates: Mapping[str, float] | None = None,
    progress: bool = True,
    jobs: int = 1,
) -> list[VLResult]:
    """Train every method with every rank and seed, each in its own folder, and write one table.

    Everything is checked before anything is trained, and the pictures are read once. Finished runs are only read and
    an interrupted one goes on.

    Arguments:
        settings: Everything but method, rank and seed.
        out: The folder of the grid: METHOD-rRANK-sSEED (without a rank: METHOD-sSEED), results.csv, results.md.
        methods, ranks, seeds, options, rates: As ``grid_runs``.
        progress: Show a progress bar a run.
        jobs: Runs at a time, each in a process of its own; they are equal to the bit for any number. See
            ``deltaw.trainers.side_by_side.run_all``.

    Returns:
        One result a run: by method, then rank, then seed.

    Raises:
        OptionError, TargetError, DataError: Before anything is trained: as ``train_vl``.
        RecordError: Before anything is trained: the folder holds runs with other settings, or something else.
        GridError: Runs have failed; the others are done, and the tables hold them.
    """
    runs = grid_runs(settings, methods=methods, ranks=ranks, seeds=seeds, options=options, rates=rates)
    return run_grids(
        {Path(out): runs},
        finished=finished_vl,
        check=partial(_check, progress=progress, jobs=jobs),
        train=partial(train_vl, progress=progress),
        table=grid_table,
        page=partial(grid_page, markdown=True),
        jobs=jobs,
    )[Path(out)]


def _check(runs: Sequence[VLSettings], *, progress: bool, jobs: int) -> dict[str, VLData | None]:
    return shared_data(check_vl(runs, progress=progress), jobs)


def shared_data(data: VLData | None, jobs: int) -> dict[str, VLData | None]:
    """Return the keyword arguments that runs share; for other processes no file that is open, which each opens anew."""
    if jobs > 1 and data is not None:
        data = replace(data, corpus=replace(data.corpus, pictures={})) if data.features.in_memory else None
    return {"data": data}


def grid_table(results: Sequence[VLResult]) -> pd.DataFrame:
    """Return one row a method and rank, in the order given, over the seeds, and a last one of what guessing scores.

    Returns:
        The columns of ``over_seeds``, where the scores are the tasks' and "average", their mean. The last row's method
        is "prior"; it has scores alone.

    Example:
        >>> one = VLResult("lora", "a", 100, 0.1, {"vqa": 0.5, "nlvr": 0.7}, 0.6, {"vqa": 0.3, "nlvr": 0.5},
        ...                {"vqa": 8, "nlvr": 8}, 2.0, 90.0, 1e-3, 20, 0, 8)
        >>> grid_table([one])[["method", "vqa_mean", "nlvr_mean", "average_mean"]].values.tolist()
        [['lora', 0.5, 0.7, 0.6], ['prior', 0.3, 0.5, 0.4]]
    """
    if not results:
        return pd.DataFrame()
    tasks = _tasks(results[0].scores)
    rows = [asdict(result) | result.scores | {AVERAGE: result.mean} for result in results]
    table = over_seeds(pd.DataFrame(rows), [*tasks, AVERAGE]).astype({"trainable": "Int64", "seeds": "Int64"})
    prior = results[0].prior
    last = {f"{task}_mean": prior[task] for task in tasks} | {f"{AVERAGE}_mean": sum(prior.values()) / len(prior)}
    table.loc[len(table)] = pd.Series({"method": PRIOR} | last, dtype=object).reindex(table.columns)
    return table.infer_objects()


def grid_page(frame: pd.DataFrame, *, markdown: bool = False) -> str:
    """Return the table of ``grid_table`` rounded, for a terminal or as Markdown; CIDEr is the caption's."""
    names = {task: {"caption": "CIDEr"}.get(task, task) for task in TASKS if f"{task}_mean" in frame}
    return rounded_page(frame, names | {AVERAGE: AVERAGE}, markdown=markdown)


def results_table(result: VLResult) -> str:
    """Return the closing table of one run: a row a task, with its score and what guessing scores."""
    tasks = _tasks(result.scores)
    scores = [*((task, result.scores[task], result.prior[task], result.n_dev[task]) for task in tasks)]
    prior = sum(result.prior.values()) / len(result.prior)
    rows = [[name, f"{found:.3f}", f"{guess:.3f}", str(count)] for name, found, guess, count in scores]
    rows.append([AVERAGE, f"{result.mean:.3f}", f"{prior:.3f}", ""])
    about = (
        f"{result.method}: {result.trainable:,} trainable ({100 * result.share:.2f} %), "
        f"{result.seconds_per_epoch:.2f} s per epoch, peak {result.peak_megabytes:.0f} MB"
    )
    headers = ["task", "score", "prior", "examples"]
    right = ("left", "right", "right", "right")
    return f"{about}\n{tabulate(rows, headers=headers, colalign=right, disable_numparse=True)}"


def _tasks(scores: Mapping[str, float]) -> list[str]:
    return [task for task in TASKS if task in scores]


__all__ = ["GridError", "grid_page", "grid_table", "results_table", "train_grid"]
