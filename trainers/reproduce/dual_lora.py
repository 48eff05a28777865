"""Dual LoRA: the rank of its groups by layer, and the score against the ratio of their ranks."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from deltaw.adapters.errors import OptionError
from deltaw.analysis.claims import claims
from deltaw.analysis.figures import paper_style, sweep
from deltaw.analysis.figures import rank as draw_rank
from deltaw.analysis.runs import open_runs, table
from deltaw.analysis.tables.spacing import told
from deltaw.trainers.cola.grid import grid_page, grid_runs, grid_table, train_grids
from deltaw.trainers.cola.settings import ColaSettings
from deltaw.trainers.reproduce.common import Report, measured, results_frame, write_report
from deltaw.trainers.reproduce.settings import DUAL_LORA_RANK, DUAL_LORA_RATIOS

BASELINES = ("lora", "dora")
METHOD = "dual-lora"


def reproduce_dual_lora(
    out: str | Path,
    settings: ColaSettings,
    rank: int = DUAL_LORA_RANK,
    ratios: int = DUAL_LORA_RATIOS,
    seeds: Sequence[int] | None = None,
    *,
    progress: bool = True,
    jobs: int = 1,
) -> Report:
    """Train Dual LoRA with several ratios r₁ : r₂ on CoLA, draw its Figures 2 and 3, and check what the paper says.

    In all runs r₁ + r₂ = 2·rank, so LoRA and DoRA of rank 2·rank, which are trained too, have as many parameters. The
    ranks by layer are those of r₁ = r₂ = rank. What is finished is not done again; a run that was interrupted goes on.

    Arguments:
        out: The folder: runs/baselines and runs/ratio-R1-R2 (grids, see ``train_grid``), tables, pictures.
        settings: Everything but method, rank and seed; see ``ColaSettings``.
        rank: r. The paper has 16.
        ratios: How many, evenly from 6 % to 94 % of 2·rank for r₁; see ``first_ranks``. The paper has 15.
        seeds: The grids'.
        progress: Show progress bars.
        jobs: Runs at a time; see ``train_grid``.

    Raises:
        GridError: Runs have failed; the same call tries them again.
        RecordError, OptionError, DataError, TargetError: As ``train_grid``.

    Source:
        Dual LoRA, §4.3 with Figure 2, §5 with Figure 3.
    """
    out = Path(out)
    ranks = first_ranks(rank, ratios)
    baselines = out / "runs" / "baselines"
    grids = {baselines: grid_runs(settings, methods=BASELINES, ranks=[2 * rank], seeds=seeds)}
    second: dict[Path, int | None] = {baselines: None}
    for first in ranks:
        folder = out / "runs" / f"ratio-{first}-{2 * rank - first}"
        second[folder] = 2 * rank - first
        own = {METHOD: {"direction_rank": second[folder]}}
        grids[folder] = grid_runs(settings, methods=[METHOD], ranks=[first], seeds=seeds, options=own)
    found = train_grids(grids, progress=progress, jobs=jobs)
    results = [result for of_grid in found.values() for result in of_grid]
    places = [folder / result.out for folder, of_grid in found.items() for result in of_grid]
    seconds = [second[folder] for folder, of_grid in found.items() for _ in of_grid]
    frame = results_frame(results)
    frame["direction_rank"] = pd.array(seconds, dtype="Int64")

    equal = (frame["method"] == "lora") | ((frame["method"] == METHOD) & (frame["rank"] == rank))
    drawn = open_runs([place for place, shown in zip(places, equal, strict=True) if shown])
    spectra = table(drawn, "spectra", steps="last", progress=progress)
    summary = grid_table(results)
    summary["rank"] = [
        f"{r} : {2 * rank - r}" if method == METHOD else str(r)
        for method, r in zip(summary["method"], summary["rank"], strict=True)
    ]
    outcomes = claims(measured(open_runs(places), ["dual-lora"], progress=progress), ["dual-lora"])
    with paper_style():
        figures = {"figure2_sweep": sweep(frame), "figure3_rank": draw_rank(told(spectra, drawn))}
    tables = {
        "results.csv": summary.to_csv(index=False),
        "results.md": grid_page(summary, markdown=True) + "\n",
        "runs.csv": frame.to_csv(index=False),
        "ranks.csv": spectra.to_csv(index=False),
    }
    return write_report(out, "Dual LoRA", results, outcomes, figures, tables, grid_page(summary), places)


def first_ranks(rank: int, ratios: int) -> list[int]:
    """Return r₁ of a sweep with r₁ + r₂ = 2·rank: evenly from 1/16 to 15/16 of it, and the middle.

    Raises:
        OptionError: One of the two is below 1.

    Example:
        >>> first_ranks(8, 5)
        [1, 4, 8, 12, 15]
        >>> first_ranks(16, 15) == list(range(2, 31, 2))  # the paper's
        True
    """
    for name, value in (("rank", rank), ("ratios", ratios)):
        if value < 1:
            raise OptionError(f"{name} must be at least 1, not {value!r}")
    spaced = np.linspace(rank / 8, 15 * rank / 8, ratios) if ratios > 1 else [rank]
    return sorted({rank, *(min(max(round(float(r)), 1), 2 * rank - 1) for r in spaced)})
