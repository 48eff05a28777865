"""SBoRA: which region of the weights moves, and what training costs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from deltaw.analysis import Trajectory
from deltaw.analysis.claims import Claim, Outcome, score_outcome
from deltaw.analysis.figures import costs, region
from deltaw.analysis.figures.region import untouched
from deltaw.analysis.names import kind_of, layer_of
from deltaw.analysis.tables import open_runs
from deltaw.analysis.tidy import display_name
from deltaw.trainers.cola.experiment import ColaResult, ColaSettings
from deltaw.trainers.cola.grid import grid_page, grid_table, train_grid
from deltaw.trainers.reproduce.common import Report, below, over_parts, results_frame, write_report

SBORA_METHODS = ("lora", "dora", "sbora-fa", "sbora-fb")
VARIANTS = {"sbora-fa": "column", "sbora-fb": "row"}  # and what moves with it


def reproduce_sbora(
    out: str | Path,
    settings: ColaSettings,
    methods: Sequence[str] = SBORA_METHODS,
    ranks: Sequence[int] = (8, 16),
    seeds: Sequence[int] | None = None,
    *,
    progress: bool = True,
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

    Raises:
        GridError: Runs have failed; the same call tries them again.
        RecordError, OptionError, DataError, TargetError: As ``train_grid``.

    Source:
        SBoRA, §3.2 with Figure 2, §4 with Table 1, §5.2 with Table 4 and Figures 3 and 4.
    """
    out = Path(out)
    results = train_grid(settings, out / "runs", methods=methods, ranks=ranks, seeds=seeds, progress=progress)
    runs = open_runs([out / "runs" / result.out for result in results])
    regions = pd.DataFrame([row for one, run in zip(results, runs, strict=True) for row in _regions(one, run)])
    summary = grid_table(results)
    on_gpu = torch.cuda.is_available()
    figures = {
        "figure2_region": region(_shown(results, runs)),
        "figure3_costs": costs(summary, memory=f"peak {'GPU' if on_gpu else 'resident'} memory (MB)"),
    }
    tables = {
        "results.csv": summary.to_csv(index=False),
        "results.md": grid_page(summary, markdown=True) + "\n",
        "runs.csv": results_frame(results).to_csv(index=False),
        "regions.csv": regions.to_csv(index=False),
    }
    outcomes = list(sbora_claims(regions, results, on_gpu=on_gpu))
    return write_report(out, "SBoRA", results, outcomes, figures, tables, grid_page(summary))


def _regions(result: ColaResult, run: Trajectory) -> Iterator[dict[str, Any]]:
    """One row a matrix: its shape, the rows and columns of ΔW at the last step that are not zero, and their shares."""
    for module in run.modules:
        update = run.update(module, run.steps[-1]).numpy()
        rows, columns = untouched(update)
        yield {
            "run": run.name,
            "method": result.method,
            "rank": result.rank,
            "seed": result.seed,
            "module": module,
            "layer": layer_of(module),
            "kind": kind_of(module),
            "out": update.shape[0],
            "in": update.shape[1],
            "moved_rows": int((update != 0).any(axis=1).sum()),
            "moved_columns": int((update != 0).any(axis=0).sum()),
            "untouched_rows": rows,
            "untouched_columns": columns,
            "untouched_weights": float((update == 0).mean()),
        }


def _shown(results: Sequence[ColaResult], runs: Sequence[Trajectory]) -> dict[str, np.ndarray[Any, Any]]:
    """The update of one matrix by method, of the method's lowest rank and first seed."""
    modules = [name for name in runs[0].modules if kind_of(name) == "query"] or runs[0].modules
    module = modules[len(modules) // 2]
    chosen: dict[str, tuple[ColaResult, Trajectory]] = {}
    for result, run in zip(results, runs, strict=True):
        if result.method not in chosen or (result.rank or 0) < (chosen[result.method][0].rank or 0):
            chosen[result.method] = (result, run)
    titles = {m: display_name(m) + ("" if one.rank is None else f", r = {one.rank}") for m, (one, _) in chosen.items()}
    return {titles[m]: run.update(module, run.steps[-1]).numpy() for m, (_, run) in chosen.items()}


def sbora_claims(regions: pd.DataFrame, results: Sequence[ColaResult], *, on_gpu: bool) -> Iterator[Outcome]:
    """Yield what SBoRA says beside what was seen.

    A ratio of times or memories is taken between runs of the same rank, of the medians over the seeds; it counts where
    it is 3 % to either side of the limit, at every rank.

    Arguments:
        regions: One row a matrix, with method, rank, out, in, moved_rows, moved_columns, untouched_weights.
        results: One a run.
        on_gpu: Memory was measured on a GPU. Else it is the whole process's, which says little about a small model.
    """
    frame = results_frame(results)
    for method, axis in VARIANTS.items():
        yield from _region_claims(regions[regions["method"] == method], method, axis)
    for method in VARIANTS:
        name = display_name(method)
        yield over_parts(
            Claim("SBoRA", "§4, Table 1", f"{name} trains half as many parameters as LoRA of the same rank", 0.5),
            f"trainable parameters, {name} / LoRA",
            "ratio from 0.45 to 0.55",
            _ratios(frame, "trainable", method, "lora"),
            lambda ratio: 0.45 <= ratio <= 0.55,
        )
    for method in VARIANTS:
        yield from _cost_claims(frame, method, on_gpu)
    labelled = frame.assign(method=[_label(one.method, one.rank) for one in results])
    ranks = sorted(frame["rank"].dropna().unique())
    for rank in ranks:
        better, worse = _label("sbora-fa", rank), _label("sbora-fb", rank)
        yield score_outcome(
            Claim("SBoRA", "§5.2, Table 4", f"{better}, scores higher than SBoRA-FB"), labelled, better, worse
        )
    for rank in ranks:
        if 2 * rank in ranks:
            better, worse = _label("sbora-fa", 2 * rank), _label("lora", rank)
            sentence = f"{better}, scores higher than LoRA of rank {rank}, which has as many parameters"
            claim = Claim("SBoRA", "§5.2, Table 4", sentence)
            yield score_outcome(claim, labelled, better, worse)


def _region_claims(rows: pd.DataFrame, method: str, axis: str) -> Iterator[Outcome]:
    name = display_name(method)
    equation, side = ("9", "in") if axis == "column" else ("11", "out")
    by_rank = list(rows.groupby("rank"))
    yield over_parts(
        Claim("SBoRA", f"§3.2, Figure 2 and equation {equation}", f"{name} moves exactly r {axis}s of a matrix"),
        f"share of the matrices with r {axis}s of ΔW that are not zero",
        "all of them",
        {f"rank {rank}": float((found[f"moved_{axis}s"] == rank).mean()) for rank, found in by_rank},
        lambda share: share == 1,
    )
    expected = {f"rank {rank}": float((1 - found["rank"] / found[side]).mean()) for rank, found in by_rank}
    shares = {f"rank {rank}": float(found["untouched_weights"].mean()) for rank, found in by_rank}
    outcome = over_parts(
        Claim("SBoRA", "§3.2", f"{name} leaves most weights as they were, 1 − r/{side} of them"),
        "share of the entries of ΔW that are zero",
        f"1 − r/{side} within 0.001 at every rank",
        {part: share - expected[part] for part, share in shares.items()},
        lambda apart: abs(apart) < 1e-3,
    )
    if shares:
        note = "; ".join(f"{part}: {share:.4g}, 1 − r/{side}: {expected[part]:.4g}" for part, share in shares.items())
        outcome = replace(outcome, statistic=sum(shares.values()) / len(shares), note=note)
    yield outcome


def _cost_claims(frame: pd.DataFrame, method: str, on_gpu: bool) -> Iterator[Outcome]:
    name = display_name(method)
    time, memory = ("seconds_per_epoch", "seconds per epoch"), ("peak_megabytes", "peak memory")
    halves = f"{name} trains in less than half of DoRA's time"
    checks: list[tuple[str, tuple[str, str], str, float]] = [
        (f"{name} trains faster than LoRA", time, "lora", 1.0),
        (halves, time, "dora", 0.5),
        (f"{name} takes less memory than LoRA", memory, "lora", 1.0),
        (f"{name} takes less memory than DoRA", memory, "dora", 1.0),
    ]
    for sentence, (column, word), other, limit in checks:
        holds: Callable[[float], bool | None] = below(limit)
        rule = f"ratio < {0.97 * limit:.3g} at every rank (above {1.03 * limit:.3g} at every rank disagrees)"
        if column == "peak_megabytes" and not on_gpu:
            holds, rule = _untold, "none without a GPU: this is the whole process's memory, libraries and all"
        yield over_parts(
            Claim("SBoRA", "§5.2, Figures 3 and 4", sentence),
            f"{word}, {name} / {display_name(other)}",
            rule,
            _ratios(frame, column, method, other),
            holds,
        )


def _untold(_: float) -> None:
    return None


def _ratios(frame: pd.DataFrame, column: str, over: str, under: str) -> dict[str, float]:
    """The ratio of two methods' medians by the ranks that both have."""
    medians = frame.groupby(["method", "rank"])[column].median()
    return {
        f"rank {rank}": float(medians[over, rank] / medians[under, rank])
        for rank in sorted(frame["rank"].dropna().unique())
        if (over, rank) in medians.index and (under, rank) in medians.index
    }


def _label(method: str, rank: int | None) -> str:
    return display_name(method) if rank is None else f"{display_name(method)}, rank {rank}"
