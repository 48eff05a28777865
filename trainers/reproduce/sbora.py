"""SBoRA: which region of the weights moves, and what training costs."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from deltaw.analysis.claims import claims, regions
from deltaw.analysis.figure_tables import Updates
from deltaw.analysis.figures import costs, paper_style, region
from deltaw.analysis.names import kind_of
from deltaw.analysis.runs import open_runs
from deltaw.analysis.tables.spacing import spacing
from deltaw.analysis.tables.tidy import display_name
from deltaw.analysis.trajectory import Trajectory
from deltaw.trainers.cola.experiment import ColaResult
from deltaw.trainers.cola.grid import grid_page, grid_table, train_grid
from deltaw.trainers.cola.settings import ColaSettings
from deltaw.trainers.reproduce.common import Report, measured, results_frame, write_report
from deltaw.trainers.reproduce.settings import SBORA_METHODS, SBORA_RANKS


def reproduce_sbora(
    out: str | Path,
    settings: ColaSettings,
    methods: Sequence[str] = SBORA_METHODS,
    ranks: Sequence[int] = SBORA_RANKS,
    seeds: Sequence[int] | None = None,
    *,
    progress: bool = True,
    jobs: int = 1,
) -> Report:
    """Train every method with every rank on CoLA, draw SBoRA's Figures 2, 3 and 4, and check what SBoRA says.

    The regions are those of the lowest rank, in the query matrix of the middle layer. What is finished is not done
    again; a run that was interrupted goes on.

    Arguments:
        out: The folder: runs/ (a grid, see ``train_grid``), tables, pictures.
        settings: Everything but method, rank and seed; see ``ColaSettings``.
        methods: Names of ``METHODS``; the claims want the four of the default.
        ranks, seeds: The grid's. The paper has ranks 32 and 64.
        progress: Show progress bars.
        jobs: Runs at a time; see ``train_grid``. More than one makes the times of this reproduction those of runs that
            share the machine.

    Raises:
        GridError: Runs have failed; the same call tries them again.
        RecordError, OptionError, DataError, TargetError: As ``train_grid``.

    Source:
        SBoRA, §3.2 with Figure 2, §4 with Table 1, §5.2 with Table 4 and Figures 3 and 4.
    """
    out = Path(out)
    results = train_grid(
        settings, out / "runs", methods=methods, ranks=ranks, seeds=seeds, progress=progress, jobs=jobs
    )
    runs = open_runs([out / "runs" / result.out for result in results])
    moved = pd.concat(
        [regions(run).assign(rank=one.rank, seed=one.seed) for one, run in zip(results, runs, strict=True)],
        ignore_index=True,
    )
    summary = grid_table(results)
    memory = f"peak {'GPU' if torch.cuda.is_available() else 'resident'} memory (MB)"
    with paper_style():
        figures = {"figure2_region": region(_shown(results, runs)), "figure3_costs": costs(summary, memory=memory)}
    tables = {
        "results.csv": summary.to_csv(index=False),
        "results.md": grid_page(summary, markdown=True) + "\n",
        "runs.csv": results_frame(results).to_csv(index=False),
        "regions.csv": moved.to_csv(index=False),
    }
    outcomes = claims(measured(runs, ["sbora"], progress=progress), ["sbora"])
    return write_report(
        out, "SBoRA", results, outcomes, figures, tables, grid_page(summary), [run.path for run in runs]
    )


def _shown(results: Sequence[ColaResult], runs: Sequence[Trajectory]) -> Updates:
    """The update of one matrix by method, of the method's lowest rank and first seed."""
    modules = [name for name in runs[0].modules if kind_of(name) == "query"] or runs[0].modules
    module = modules[len(modules) // 2]
    chosen: dict[str, tuple[ColaResult, Trajectory]] = {}
    for result, run in zip(results, runs, strict=True):
        if result.method not in chosen or (result.rank or 0) < (chosen[result.method][0].rank or 0):
            chosen[result.method] = (result, run)
    titles = {m: display_name(m) + ("" if one.rank is None else f", r = {one.rank}") for m, (one, _) in chosen.items()}
    found = Updates()
    found.spacing = spacing([run.steps for _, run in chosen.values()])
    for method, (_, run) in chosen.items():
        found[titles[method]] = run.update(module, run.steps[-1]).numpy()
        found.modules.append(module)
        found.steps.append(run.steps[-1])
    return found
