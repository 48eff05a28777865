"""``deltaw reproduce``: a paper's weight picture from training to verdict."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deltaw.adapters.errors import DeltawError
from deltaw.cli.cola_options import grid_options
from deltaw.cli.commands import Group, ListOption
from deltaw.cli.options import ALPHA, METHOD, folder_option, json_option
from deltaw.cli.output import check_libraries, emit, emit_json, going_on, progress, remark
from deltaw.cli.train_options import OF_COLA, OF_VL, TRAINING, import_for_runs, jobs_option, seed_option
from deltaw.cli.vl_options import PICTURES, RANK_DEFAULT, vl_options
from deltaw.trainers.reproduce.settings import (
    BORA_METHODS,
    DORA_METHODS,
    DUAL_LORA_RANK,
    DUAL_LORA_RATIOS,
    GRID_EPOCHS,
    SBORA_METHODS,
    SBORA_RANKS,
)

MOST_RUNS = 16  # in the report of a reproduction: more lines than that nobody tells apart

if TYPE_CHECKING:
    from deltaw.trainers.reproduce import Report

_out = folder_option("Where everything goes.")
_rank = click.option("--rank", type=int, help="Of the adapters. Default: 8.")
_full_rate = click.option(
    "--ft-lr", "full_learning_rate", type=float, help="Learning rate of ft, galore; --lr is the adapters'."
)


def _methods(*default: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(
        "--methods",
        cls=ListOption,
        kind=METHOD,
        default=[",".join(default)],
        show_default=True,
        help="Separated by commas.",
    )


@click.group("reproduce", cls=Group)
def command() -> None:
    """Train, record, analyse, plot, and hold the result against the paper.

    \b
    Example:
      deltaw reproduce bora --out demo      # offline, in minutes
      deltaw reproduce all --out papers
    """


@command.command("bora")
@_out
@_methods(*BORA_METHODS)
@_rank
@seed_option
@_full_rate
@grid_options
@jobs_option()
@json_option
def bora(
    out: Path,
    methods: list[str],
    rank: int | None,
    seeds: list[int],
    full_learning_rate: float | None,
    cola: dict[str, Any],
    options: dict[str, Any],
    jobs: int | None,
    as_json: bool,
) -> None:
    """BoRA's Figures 2 and 3 on CoLA, the ranks, and BoRA's claims beside what was seen.

    Offline with the built-in model and data this takes minutes. What is finished is not done again; more methods or
    seeds add to it.

    \b
    Example:
      deltaw reproduce bora --out demo
      deltaw reproduce bora --seed 0,1,2 --out demo
      deltaw reproduce bora --model roberta-base --data hub --out bora-roberta
    """
    check_libraries(TRAINING, "train", "training")
    import_for_runs(OF_COLA, len(methods) * max(1, len(seeds)), jobs, cola["model"], out)
    from deltaw.trainers.cola import ColaSettings
    from deltaw.trainers.reproduce import reproduce_bora
    from deltaw.trainers.side_by_side import default_jobs

    settings = ColaSettings(method="bora", options=_with_rank(options, rank), **cola)
    given: dict[str, Any] = {"seeds": seeds, "full_learning_rate": full_learning_rate, "progress": progress(as_json)}
    given["jobs"] = jobs or default_jobs(settings.model)
    with going_on(out):
        report = reproduce_bora(out, settings, methods, **given)
    _emit(report, as_json)


@command.command("dora")
@_out
@_methods(*DORA_METHODS)
@click.option("--rank", type=int, help=f"Of the adapters. Default: {RANK_DEFAULT}.")
@seed_option
@vl_options
@jobs_option()
@json_option
def dora(
    out: Path,
    methods: list[str],
    rank: int | None,
    seeds: list[int],
    vl: dict[str, Any],
    options: dict[str, Any],
    jobs: int | None,
    as_json: bool,
) -> None:
    """DoRA's Figures 2, 7, 3 and 8 on four tasks over pictures, and DoRA's claims beside what was seen.

    ΔM and ΔD are measured by column, the paper's equations with dora, and by row, its authors' code with dora-row.
    Offline with the built-in model and data this takes minutes. What is finished is not done again; more methods or
    seeds add to it. Figure 8's key matrices want --kinds query,key,value.

    \b
    Example:
      deltaw reproduce dora --out dora
      deltaw reproduce dora --seed 0,1,2 --kinds query,key,value --out dora
      deltaw reproduce dora --model facebook/bart-base --vision clip.h5 --data vqa --data nlvr2 --out dora-bart
    """
    check_libraries([*TRAINING, *PICTURES], "vl", "training on pictures")
    import_for_runs(OF_VL, len(methods) * max(1, len(seeds)), jobs, vl["model"], out)
    from deltaw.trainers.reproduce import reproduce_dora
    from deltaw.trainers.side_by_side import default_jobs
    from deltaw.trainers.vl import VLSettings

    rates = vl.pop("learning_rate")
    settings = VLSettings(method="dora", options=_with_rank(options, rank), learning_rate=rates.pop("", None), **vl)
    given: dict[str, Any] = {"seeds": seeds, "rates": rates, "progress": progress(as_json)}
    given["jobs"] = jobs or default_jobs(settings.model)
    with going_on(out):
        report = reproduce_dora(out, settings, methods, **given)
    _emit(report, as_json)


@command.command("sbora", context_settings={"default_map": {"epochs": GRID_EPOCHS}})
@_out
@_methods(*SBORA_METHODS)
@click.option(
    "--rank",
    "ranks",
    cls=ListOption,
    kind=click.INT,
    default=[",".join(map(str, SBORA_RANKS))],
    show_default=True,
    help="Of the adapters.",
)
@seed_option
@grid_options
@jobs_option("1, as times are compared")
@json_option
def sbora(
    out: Path,
    methods: list[str],
    ranks: list[int],
    seeds: list[int],
    cola: dict[str, Any],
    options: dict[str, Any],
    jobs: int | None,
    as_json: bool,
) -> None:
    """SBoRA's Figures 2 to 4 on CoLA: which region of ΔW moves, and time and memory by method and rank.

    Offline with the built-in model and data this takes minutes. What is finished is not done again; more methods, ranks
    or seeds add to it. Time is this machine's: let it do nothing else meanwhile. Memory says something on a GPU only.

    \b
    Example:
      deltaw reproduce sbora --out sbora
      deltaw reproduce sbora --model roberta-base --data hub --rank 32,64 --out sbora-roberta
    """
    check_libraries(TRAINING, "train", "training")
    import_for_runs(OF_COLA, len(methods) * len(ranks) * max(1, len(seeds)), jobs or 1, cola["model"], out)
    from deltaw.trainers.cola import ColaSettings
    from deltaw.trainers.reproduce import reproduce_sbora

    settings = ColaSettings(method="sbora-fa", options=options, **cola)
    with going_on(out):
        report = reproduce_sbora(
            out, settings, methods, ranks, seeds or [0], progress=progress(as_json), jobs=jobs or 1
        )
    _emit(report, as_json)


@command.command("dual-lora", context_settings={"default_map": {"epochs": GRID_EPOCHS}})
@_out
@click.option(
    "--rank", type=int, default=DUAL_LORA_RANK, show_default=True, help="r: r₁ + r₂ = 2r; LoRA and DoRA have rank 2r."
)
@click.option(
    "--ratios",
    type=int,
    default=DUAL_LORA_RATIOS,
    show_default=True,
    help="How many r₁ : r₂, evenly from 6 % to 94 % for r₁, and the middle. The paper has 15.",
)
@seed_option
@grid_options
@jobs_option()
@json_option
def dual_lora(
    out: Path,
    rank: int,
    ratios: int,
    seeds: list[int],
    cola: dict[str, Any],
    options: dict[str, Any],
    jobs: int | None,
    as_json: bool,
) -> None:
    """Dual LoRA's Figures 2 and 3 on CoLA: the score by r₁ : r₂, and the rank of its groups by layer.

    Offline with the built-in model and data this takes minutes. What is finished is not done again; more ratios or
    seeds add to it.

    \b
    Example:
      deltaw reproduce dual-lora --out dual
      deltaw reproduce dual-lora --ratios 15 --seed 0,1,2 --out dual
      deltaw reproduce dual-lora --model roberta-base --data hub --rank 16 --out dual-roberta
    """
    check_libraries(TRAINING, "train", "training")
    import_for_runs(OF_COLA, ratios * max(1, len(seeds)), jobs, cola["model"], out)
    from deltaw.trainers.cola import ColaSettings
    from deltaw.trainers.reproduce import reproduce_dual_lora
    from deltaw.trainers.side_by_side import default_jobs

    settings = ColaSettings(method="dual-lora", options=options, **cola)
    given: dict[str, Any] = {"progress": progress(as_json), "jobs": jobs or default_jobs(settings.model)}
    with going_on(out):
        report = reproduce_dual_lora(out, settings, rank, ratios, seeds or [0], **given)
    _emit(report, as_json)


@command.command("all")
@_out
@click.option(
    "--rank", type=int, default=DUAL_LORA_RANK, show_default=True, help="r; SBoRA has r and 2r, Dual LoRA r₁ + r₂ = 2r."
)
@seed_option
@click.option("--epochs", type=int, help="Of every run. Default: each paper's own.")
@click.option("--batch-size", type=int, help="Of every run. Default: each paper's own.")
@click.option("--alpha", type=float, help=ALPHA.format("8"))
@click.option("--dropout", type=float, help="Of the adapters' input. Default: 0.")
@jobs_option("one a core, for SBoRA, which compares times, 1")
@json_option
def every(
    out: Path,
    rank: int,
    seeds: list[int],
    epochs: int | None,
    batch_size: int | None,
    alpha: float | None,
    dropout: float | None,
    jobs: int | None,
    as_json: bool,
) -> None:
    """The four papers one after the other, with the built-in models and data, and one page of their verdicts.

    They go into OUT/bora, OUT/dora, OUT/sbora and OUT/dual-lora, the page is OUT/summary.md. For other models and data
    call each by its name. What is finished is not done again; more seeds add to it.

    \b
    Example:
      deltaw reproduce all --out papers
      deltaw reproduce all --seed 0,1,2 --out papers
    """
    check_libraries([*TRAINING, *PICTURES], "vl", "training on pictures")
    import_for_runs([*OF_COLA, *OF_VL], 4, jobs, None, out)
    from deltaw.analysis.claims import claims_json, count_line
    from deltaw.trainers.cola import ColaSettings
    from deltaw.trainers.reproduce import reproduce_all
    from deltaw.trainers.side_by_side import default_jobs
    from deltaw.trainers.vl import VLSettings

    own = {name: value for name, value in (("alpha", alpha), ("dropout", dropout)) if value is not None}
    given: dict[str, Any] = {
        name: value for name, value in (("epochs", epochs), ("batch_size", batch_size)) if value is not None
    }
    with going_on(out):
        reports = reproduce_all(
            out,
            ColaSettings(method="bora", options=own, **given),
            VLSettings(method="dora", options=own | {"rank": rank}, **given),
            rank=rank,
            grid_epochs=epochs,
            seeds=seeds,
            progress=progress(as_json),
            jobs=jobs or default_jobs(None),
            sbora_jobs=jobs or 1,
        )
    if as_json:
        emit_json({report.paper: claims_json(report.outcomes) for report in reports})
        return
    for report in reports:
        emit(f"{report.paper}: {count_line(report.outcomes)}")
        _interactive(report)
    remark(f"all verdicts are in {out / 'summary.md'}")


def _with_rank(options: dict[str, Any], rank: int | None) -> dict[str, Any]:
    return options if rank is None else options | {"rank": rank}


def _emit(report: "Report", as_json: bool) -> None:
    from deltaw.analysis.claims import claims_json

    if as_json:
        emit_json({"results": [asdict(r) for r in report.results], "claims": claims_json(report.outcomes)})
        return
    emit(report.page())
    _interactive(report)


def _interactive(found: "Report") -> None:
    """Write the report of the runs beside the pictures, and end with its path; all else is there without it."""
    from deltaw.analysis.report.write import report

    if not found.runs:
        return
    try:
        path = report(found.runs[:MOST_RUNS], found.folder / "report.html", progress=progress())
    except DeltawError as error:
        remark(f"the report could not be written: {error}")
        return
    left = len(found.runs) - MOST_RUNS
    emit(f"The report{f', without the last {left} runs' if left > 0 else ''}; open it in a browser:\n  {path}")
