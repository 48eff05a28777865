"""BoRA: do rows and columns of the weights move alike?"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from deltaw.analysis.claims import claims
from deltaw.analysis.figures import paper_style, rank, symmetry, updates
from deltaw.analysis.runs import open_runs, table
from deltaw.analysis.tables.spacing import told
from deltaw.trainers.cola.experiment import finished_cola, train_cola
from deltaw.trainers.cola.grid import grid_runs
from deltaw.trainers.cola.settings import ColaSettings
from deltaw.trainers.reproduce.common import (
    Report,
    measured,
    results_frame,
    results_table,
    run_folder,
    train_every,
    write_report,
)
from deltaw.trainers.reproduce.settings import BORA_METHODS


def reproduce_bora(
    out: str | Path,
    settings: ColaSettings,
    methods: Sequence[str] = BORA_METHODS,
    *,
    seeds: Sequence[int] | None = None,
    full_learning_rate: float | None = None,
    progress: bool = True,
    jobs: int = 1,
) -> Report:
    """Train every method on CoLA, draw BoRA's Figures 2 and 3 and the ranks, and check BoRA's claims.

    What is finished is not done again; a run that was interrupted goes on; more seeds add to it.

    Arguments:
        out: The folder: runs/METHOD (runs/METHOD-sSEED where the seed is not 0), tables, pictures.
        settings: Everything but the method; see ``ColaSettings``. ``settings.learning_rate`` is the adapters', and of
            ``settings.options`` rank, alpha and dropout go to the methods that have them.
        methods: Names of ``METHODS``; the claims want BoRA's five.
        seeds: ``None`` for that of the settings. Curves are averaged over seeds, intervals resample them too.
        full_learning_rate: The learning rate of the methods that train all weights, ``ft`` and ``galore``; ``None`` for
            the default.
        progress: Show progress bars.
        jobs: Runs at a time; see ``train_grid``.

    Raises:
        RecordError: A run folder holds another run.
        OptionError, DataError, TargetError: As ``train_cola``.

    Source:
        BoRA, §3.3, Figures 2 and 3, Tables 10 and 11.
    """
    out = Path(out)
    wanted: dict[Path, ColaSettings] = {}
    for run in grid_runs(settings, methods=methods, seeds=seeds).values():
        rate = settings.learning_rate if run.make_method().injects else full_learning_rate
        wanted[out / "runs" / run_folder(run.method, run.seed)] = replace(run, learning_rate=rate)
    results = train_every(wanted, finished_cola, partial(train_cola, progress=progress), jobs)

    runs = open_runs(list(wanted))
    both = table(runs, "changes", pairs=("consecutive", "initial"), progress=progress)  # every matrix is read once
    consecutive, initial = (
        both[both["pairs"] == kind].drop(columns="pairs").reset_index(drop=True) for kind in ("consecutive", "initial")
    )
    spectra = table(runs, "spectra", steps="last", progress=progress)
    kinds = list(consecutive["kind"].unique())
    kind = "query" if "query" in kinds else kinds[0]  # the paper's figures show the query matrices
    with paper_style():
        figures = {
            "figure2_symmetry": symmetry(told(consecutive, runs), kind=kind),
            "figure3_updates": updates(told(initial, runs), kind=kind),
            "rank_by_layer": rank(told(spectra, runs)),
        }
    tables = {
        "results.csv": results_frame(results).to_csv(index=False),
        "changes_consecutive.csv": consecutive.to_csv(index=False),
        "changes_from_start.csv": initial.to_csv(index=False),
        "ranks.csv": spectra.to_csv(index=False),
    }
    evidence = replace(
        measured(runs, [], progress=progress),
        consecutive=consecutive[consecutive["kind"] == kind],
        initial=initial[initial["kind"] == kind],
        kind=kind,
    )
    return write_report(
        out, "BoRA", results, claims(evidence, ["bora"]), figures, tables, results_table(results), list(wanted)
    )
