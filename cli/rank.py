"""``deltaw rank``: the rank and the spectrum of the update."""

from pathlib import Path
from typing import Literal

import click

from deltaw.analysis.tables.work import Work
from deltaw.cli.commands import Command
from deltaw.cli.options import base_option, json_option, modules_option, out_option, runs_argument, work_options
from deltaw.cli.output import emit_table, progress, remark, write_table

SHOWN = ["run", "module", "step", "group", "rank", "full_rank", "stable_rank", "effective_rank", "energy_rank_90"]


@click.command("rank", cls=Command)
@runs_argument
@click.option("--step", "steps", multiple=True, type=int, help="A recorded step; may be repeated. Default: the last.")
@click.option("--all-steps", is_flag=True, help="Every recorded step.")
@click.option(
    "--approximate",
    type=float,
    help="Leave out singular values that hold at most this share of ‖ΔW‖_F², as 0.01, and print how much it is.",
)
@modules_option
@base_option
@out_option
@work_options
@json_option
def command(
    runs: tuple[str, ...],
    steps: tuple[int, ...],
    all_steps: bool,
    approximate: float | None,
    modules: tuple[str, ...],
    base: str | None,
    path: Path | None,
    as_json: bool,
    work: Work,
) -> None:
    """Print the rank of ΔW by module: exact from factors where there are factors, else from singular values.

    For Dual LoRA also of its magnitude and direction group. The file given by -o and --json hold every measure: stable
    rank, effective rank, participation ratio, energy ranks, norms, share of zero rows and columns, and the tolerance.

    \b
    Example:
      deltaw rank runs/lora runs/dual-lora -o ranks.csv
    """
    from deltaw.analysis.runs import open_runs, table

    wanted: tuple[int, ...] | Literal["last"] | None = None if all_steps else (steps or "last")
    opened, shown = open_runs(runs, base=base), progress(as_json)
    options = {"steps": wanted, "modules": modules or None, "approximate": approximate}
    frame = table(opened, "spectra", **options, progress=shown, work=work)
    if path is not None:
        write_table(frame, path)
    emit_table(frame if as_json else frame[SHOWN + ([] if approximate is None else ["error"])], as_json, None)
    if path is not None and not as_json:
        remark(f"written to {path}")
