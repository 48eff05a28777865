"""``deltaw report``: one HTML file of some runs, with every view linked."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from deltaw.analysis.tables.work import Work
from deltaw.cli.commands import Command
from deltaw.cli.options import base_option, modules_option, runs_argument, work_options
from deltaw.cli.output import check_writable, progress, remark


class _Details(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic from click 8.4 on
    name = "NUMBER|all"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "all" else click.IntRange(min=1).convert(value, param, ctx)


def _check(context: click.Context, option: click.Parameter, path: Path) -> Path:
    if not context.resilient_parsing:
        if path.suffix.lower() not in (".html", ".htm"):
            raise click.BadParameter(f"{path}: a report is an .html file", context, option)
        check_writable(path.parent)
    return path


@click.command("report", cls=Command)
@runs_argument
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("report.html"),
    show_default=True,
    callback=_check,
    help="The .html file.",
)
@base_option
@modules_option
@click.option(
    "--details",
    type=_Details(),
    help="How many checkpoints get a spectrum and distributions. Default: as many as take less than a minute a run.",
)
@click.option(
    "--geometry/--no-geometry",
    default=None,
    help="Hold all of these against W₀, or none. Default: as many as take less than half a minute a run.",
)
@click.option("--check/--no-check", default=True, help="Look for what is wrong, and check the papers' claims.")
@click.option("--watch", is_flag=True, help="Write it anew as checkpoints come, until Ctrl-C; an open page follows.")
@click.option("--every", type=click.FloatRange(min=0, min_open=True), default=30, show_default=True, help="Seconds.")
@work_options
def command(
    runs: tuple[str, ...],
    out: Path,
    base: str | None,
    modules: tuple[str, ...],
    details: Any,
    geometry: bool | None,
    check: bool,
    watch: bool,
    every: float,
    work: Work,
) -> None:
    """Write a report of runs: one HTML file with linked views that opens offline.

    It shows what the runs are and what is wrong with them, ΔM and ΔD over training, how the two go together, which
    matrix moved when, rank and spectrum, how the update stands to W₀, the runs against each other, loss and score, and
    the papers' claims. A run may be one that deltaw recorded, also while it is being recorded, or any other that
    `deltaw inspect` can read.

    \b
    Example:
      deltaw report runs/lora runs/bora -o report.html
      deltaw report output/checkpoint-500 --base roberta-base
      deltaw report runs/bora --watch
    """
    from deltaw.analysis.report.watch import watched
    from deltaw.analysis.report.write import report

    options: dict[str, Any] = {"base": base, "modules": modules or None, "details": details, "check": check}
    options["geometry"] = geometry
    options |= asdict(work)
    if watch:
        for path in watched(list(runs), out, every=every, progress=False, **options):
            remark(f"written to {path}; waiting for checkpoints, Ctrl-C ends it")
        return
    remark(f"written to {report(list(runs), out, progress=progress(), **options)}; open it in a browser")
