"""All four papers, one after the other, and one page of their verdicts."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from deltaw.analysis.claims import claims_markdown, count_line
from deltaw.analysis.records.storage.atomic import write_text
from deltaw.trainers.cola.settings import ColaSettings
from deltaw.trainers.reproduce.bora import reproduce_bora
from deltaw.trainers.reproduce.common import Report
from deltaw.trainers.reproduce.dora import reproduce_dora
from deltaw.trainers.reproduce.dual_lora import reproduce_dual_lora
from deltaw.trainers.reproduce.sbora import reproduce_sbora
from deltaw.trainers.reproduce.settings import DUAL_LORA_RANK, GRID_EPOCHS
from deltaw.trainers.vl.settings import VLSettings

SUMMARY = "summary.md"


def reproduce_all(
    out: str | Path,
    cola: ColaSettings,
    vl: VLSettings,
    *,
    rank: int = DUAL_LORA_RANK,
    grid_epochs: int | None = None,
    seeds: Sequence[int] | None = None,
    progress: bool = True,
    jobs: int = 1,
    sbora_jobs: int = 1,
) -> list[Report]:
    """Reproduce BoRA, DoRA, SBoRA and Dual LoRA into a folder each, and write summary.md with all verdicts.

    What is finished is not done again; a run that was interrupted goes on; more seeds add to it.

    Arguments:
        out: The folder: bora, dora, sbora, dual-lora, summary.md.
        cola: For BoRA, SBoRA and Dual LoRA: everything but method, rank and seed.
        vl: For DoRA: everything but method and seed.
        rank: BoRA's; SBoRA has it and twice it, Dual LoRA r₁ + r₂ = 2·rank.
        grid_epochs: Of SBoRA's and Dual LoRA's runs, of which there are many; ``None`` for 40.
        seeds: Of every run; ``None`` for those of the settings.
        progress: Show progress bars.
        jobs: Runs at a time; see ``train_grid``.
        sbora_jobs: The same for SBoRA, whose page compares times.

    Raises:
        GridError, RecordError, OptionError, DataError, TargetError: As the four; what is done stays.
    """
    out = Path(out)
    seeds = list(seeds or [cola.seed])
    of_bora = replace(cola, options=cola.options | {"rank": rank})
    shorter = replace(cola, epochs=grid_epochs or GRID_EPOCHS)
    steps: dict[str, Callable[[Path], Report]] = {
        "bora": lambda folder: reproduce_bora(folder, of_bora, seeds=seeds, progress=progress, jobs=jobs),
        "dora": lambda folder: reproduce_dora(folder, vl, seeds=seeds, progress=progress, jobs=jobs),
        "sbora": lambda folder: reproduce_sbora(
            folder, shorter, ranks=(rank, 2 * rank), seeds=seeds, progress=progress, jobs=sbora_jobs
        ),
        "dual-lora": lambda folder: reproduce_dual_lora(
            folder, shorter, rank, seeds=seeds, progress=progress, jobs=jobs
        ),
    }
    reports = {}
    for name, step in steps.items():
        reports[name] = step(out / name)
        write_text(out / SUMMARY, summary_page(reports))  # what is done is on the page, whatever comes after
    return list(reports.values())


def summary_page(reports: dict[str, Report]) -> str:
    """Return a Markdown page with the runs and the verdicts of several papers.

    Arguments:
        reports: By the folder's name.
    """
    parts = ["# The papers' claims beside what was seen\n"]
    counts = [f"- [{report.paper}](#{name}): {count_line(report.outcomes)}" for name, report in reports.items()]
    parts.append("\n".join(counts) + "\n")
    for name, report in reports.items():
        pictures = [f"- [{path.stem}]({name}/{path.name})" for path in report.pictures if path.suffix == ".png"]
        parts += [
            f'<a id="{name}"></a>\n\n## {report.paper}\n',
            f"```text\n{report.summary}\n```\n",
            claims_markdown(report.outcomes),
            "\n".join(pictures) + "\n",
        ]
    return "\n".join(parts)
