"""DoRA: do magnitude and direction change together?"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from deltaw.analysis.claims import claims
from deltaw.analysis.claims.dora import of_self_attention
from deltaw.analysis.figures.drawing.style import paper_style
from deltaw.analysis.figures.kinds.cloud import cloud
from deltaw.analysis.figures.kinds.layers import layers
from deltaw.analysis.measures.change import Axis
from deltaw.analysis.runs import open_runs, table
from deltaw.analysis.tables.spacing import told
from deltaw.trainers.grid import grid_runs
from deltaw.trainers.reproduce.common import Report, measured, results_frame, run_folder, train_every, write_report
from deltaw.trainers.reproduce.settings import DORA_METHODS
from deltaw.trainers.vl.experiment import check_vl, finished_vl, train_vl
from deltaw.trainers.vl.grid import grid_page, grid_table, shared_data
from deltaw.trainers.vl.settings import VLSettings

COMPARED: dict[Axis, str] = {"column": "dora", "row": "dora-row"}  # the paper's equation, and its authors' code


def reproduce_dora(
    out: str | Path,
    settings: VLSettings,
    methods: Sequence[str] = DORA_METHODS,
    *,
    seeds: Sequence[int] | None = None,
    rates: Mapping[str, float] | None = None,
    progress: bool = True,
    jobs: int = 1,
) -> Report:
    """Train VL-BART with every method, draw DoRA's Figures 2, 7, 3 and 8, and check DoRA's claims.

    Every figure is drawn by column, the paper's equations with ``dora``, and by row, its authors' code with
    ``dora-row``, where that method is among the methods. What is finished is not done again; a run that was interrupted
    goes on; more seeds or methods add to it.

    Arguments:
        out: The folder: runs/METHOD (runs/METHOD-sSEED where the seed is not 0), tables, pictures.
        settings: Everything but the method; see ``VLSettings``. Of ``settings.options`` rank, alpha and dropout go to
            the methods that have them.
        methods: Names of ``METHODS``; the claims want the four of the default.
        seeds: ``None`` for that of the settings. Correlations are averaged over seeds, intervals resample them too.
        rates: Learning rates of their own, by method; the others have that of the settings.
        progress: Show progress bars.
        jobs: Runs at a time; see ``train_grid``.

    Raises:
        RecordError: A run folder holds another run.
        OptionError, DataError, TargetError: As ``train_vl``; before anything is trained.

    Source:
        DoRA, §3.2 and §4.1 with Figure 2, §5.1 with Figure 3, §5.2 with Table 2, Appendices A.1 and A.4 with Figures 7
        and 8.
    """
    out = Path(out)
    runs = {
        out / "runs" / run_folder(run.method, run.seed): run
        for run in grid_runs(settings, methods=methods, seeds=seeds, rates=rates).values()
    }
    data = check_vl([run for place, run in runs.items() if finished_vl(run, place) is None], progress=progress)
    train = partial(train_vl, progress=progress)
    results = train_every(runs, finished_vl, train, jobs, shared=shared_data(data, jobs))

    opened = open_runs(list(runs))
    base = table(opened, "base", progress=progress)
    summary = grid_table(results)
    tables = {
        "results.csv": summary.to_csv(index=False),
        "runs.csv": results_frame(results).to_csv(index=False),
        "changes_from_base.csv": base.to_csv(index=False),
    }
    outcomes = claims(measured(opened, ["dora"], progress=progress), ["dora"])
    figures = _figures(told(base, opened), methods)
    return write_report(out, "DoRA", results, outcomes, figures, tables, grid_page(summary), list(runs))


@paper_style()
def _figures(base: pd.DataFrame, methods: Sequence[str]) -> dict[str, Figure]:
    """Figures 2, 7, 3 and 8 by column, and by row where there is DoRA (row)."""
    shown = of_self_attention(base)
    kinds = set(shown["kind"])
    figures: dict[str, Figure] = {}
    for axis, dora in COMPARED.items():
        other = COMPARED["row" if axis == "column" else "column"]
        chosen = [method for method in methods if method != other]
        if dora not in chosen and axis == "row":
            continue
        ending = "" if axis == "column" else "_rows"
        for name, kind in (("figure2_query", "query"), ("figure7_value", "value")):
            if kind in kinds:
                figures[f"{name}{ending}"] = cloud(shown, kind=kind, axis=axis, methods=chosen)
        pair = [method for method in chosen if method in ("lora", dora)]
        if pair:
            if "query" in kinds:
                figures[f"figure3_query{ending}"] = layers(shown, kinds=["query"], axis=axis, methods=pair)
            figures[f"figure8_layers{ending}"] = layers(shown, axis=axis, methods=pair)
    return figures
