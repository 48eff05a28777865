"""``deltaw rank``: the rank and the spectrum of the update."""

from pathlib import Path

import click

from deltaw.analysis.tables.work import Work
from deltaw.cli.commands import Command
from deltaw.cli.options import base_option, json_option, modules_option, out_option, runs_argument, work_options
from deltaw.cli.output import progress, write_table
from deltaw.cli.summary import (
    Shown,
    at_step,
    check_sort,
    emit_rows,
    emit_summary,
    shown_options,
    steps_text,
    wanted_steps,
)

SHOWN = ["run", "module", "step", "group", "rank", "full_rank", "stable_rank", "effective_rank", "energy_rank_90"]
COLUMNS = {
    "rank": "how many singular values σ of ΔW are above what rounding alone would give",
    "full_rank": "min(out, in), the most there can be",
    "stable_rank": "‖ΔW‖_F² / σ₁²: how many directions as strong as the first would make it (Rudelson, Vershynin 2007)",
    "effective_rank": "exp of the entropy of σ/Σσ: how many directions share it evenly (Roy, Vetterli 2007)",
    "energy_rank_90": "the fewest singular values σ whose squares hold 90 % of Σσ² = ‖ΔW‖_F²",
    "frobenius": "‖ΔW‖_F, the size of the update: the root of the sum of its squared entries",
    "zero_rows": "the share of rows of ΔW that are zero",
}


@click.command("rank", cls=Command)
@runs_argument
@click.option("--step", "steps", multiple=True, type=int, help="A recorded step; may be repeated. Default: the last.")
@click.option("--all-steps", is_flag=True, help="Every recorded step.")
@click.option(
    "--approximate",
    type=float,
    help="Leave out singular values that hold at most this share of ‖ΔW‖_F², as 0.01, and print how much it is.",
)
@shown_options
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
    shown: Shown,
) -> None:
    """Print the rank of ΔW by module.

    In the terminal the means by kind and layer at the last step; with --all, -o and --json every module.

    It is exact from factors where there are factors, else from singular values.

    For Dual LoRA also of its magnitude and direction group. The file given by -o and --json hold every measure: stable
    rank, effective rank, participation ratio, energy ranks, norms, share of zero rows and columns, and the tolerance.

    \b
    Example:
      deltaw rank runs/lora runs/dual-lora -o ranks.csv
    """
    from deltaw.analysis.runs import open_runs, table

    wanted = wanted_steps(steps, all_steps, shown)
    error = {} if approximate is None else {"error": "the share of ‖ΔW‖_F² that is left out, at most"}
    if not as_json:
        check_sort(shown, [*COLUMNS, *error])
    opened, bars = open_runs(runs, base=base), progress(as_json)
    chosen = modules or None
    frame = table(opened, "spectra", steps=wanted, modules=chosen, approximate=approximate, progress=bars, work=work)
    if path is not None:
        write_table(frame, path)
    if as_json or shown.every:
        emit_rows(frame if as_json else frame[SHOWN + list(error)], shown, as_json, path)
        return
    there = frame if all_steps or len(steps) > 1 else at_step(frame, "step", None)
    what = f"means over matrices of ranks and norms of ΔW{steps_text(opened, there['step'].unique(), ', at ')}"
    emit_summary(there, COLUMNS | error, shown, what, total=len(frame), path=path)
