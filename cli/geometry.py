"""``deltaw geometry``: the update against W₀."""

from pathlib import Path
from typing import Any

import click

from deltaw.analysis.tables.work import Work
from deltaw.cli.commands import Command, ListOption, OneOf
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

MEASURES = ("rotation", "drift", "off_principal", "visible")
RULES = ("bfloat16", "float16", "float32", "path-not-taken")
LABELS = ["run", "module", "step", "k"]
# What a summary shows, by the column of the table: its name there, which is short, and what it means.
SHOWN = {
    "rotation_left": ("left", "the largest angle between W₀'s and W′'s leading k left singular subspaces, in degrees"),
    "rotation_right": ("right", "the same of the right ones (Zhu et al. 2025, section 4.1)"),
    "rotation_random": ("random", "how far a random update of the same norm turns them; empty where that is unsure"),
    "drift": ("drift", "‖σ(W′) − σ(W₀)‖ / ‖σ(W₀)‖"),
    "off_principal": ("outside", "off-principal: the share of ‖ΔW‖² outside W₀'s leading k singular subspaces"),
    "off_principal_expected": ("by_chance", "what a random update has outside, 1 − k²/(out·in)"),
    "visible_bfloat16": ("bfloat16", "the share of weights that differ once W₀ and W′ are stored in bfloat16"),
    "visible_float16": ("float16", "the same in float16"),
    "visible_float32": ("float32", "the same in float32"),
    "visible_path_not_taken": (
        "path_not_taken",
        "the share that changes by more than 0.1 % (their equation 1)",
    ),
}


class _Directions(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic from click 8.4 on
    """A whole number, or a share below 1."""

    name = "NUMBER|SHARE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | float:
        """Return the number."""
        text = str(value)
        try:
            number: int | float = int(text) if text.isdigit() else float(text)
        except ValueError:
            number = 0
        if not (number >= 1 if isinstance(number, int) else 0 < number < 1):
            self.fail(f"{value!r} is neither a whole number from 1 on nor a share of the energy, as 0.9", param, ctx)
        return number


@click.command("geometry", cls=Command)
@runs_argument
@click.option("--step", "steps", multiple=True, type=int, help="A recorded step; may be repeated. Default: the last.")
@click.option("--all-steps", is_flag=True, help="Every recorded step.")
@click.option(
    "--k",
    "count",
    type=_Directions(),
    default=16,
    show_default=True,
    help="How many leading directions of W₀, or the share of its energy that they hold, as 0.9.",
)
@click.option("--measures", cls=ListOption, kind=OneOf(MEASURES), help="One or several of: {names}. Default: all.")
@click.option(
    "--visible",
    cls=ListOption,
    kind=OneOf(RULES),
    help="In which dtype a change is visible: {names} (its tolerance). Default: bfloat16.",
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
    count: int | float,
    measures: list[str],
    visible: list[str],
    modules: tuple[str, ...],
    base: str | None,
    path: Path | None,
    as_json: bool,
    work: Work,
    shown: Shown,
) -> None:
    """Print how ΔW stands to W₀: rotation, drift, off-principal share, visible changes.

    In the terminal the means by kind and layer at the last step; with --all, -o and --json every module.

    \b
    rotation       how far W₀'s leading singular subspaces turn, beside a random update of the same norm
    drift          how far its singular values move
    off_principal  the share of ΔW outside these subspaces, beside what chance gives
    visible        the share of weights that change at all once they are stored

    W₀ is needed: where a run does not hold it, give it with --base.

    \b
    Example:
      deltaw geometry runs/ft runs/lora -o geometry.csv
      deltaw geometry runs/lora --k 0.9 --measures off_principal --by module --top 5
      deltaw geometry runs/ft --measures visible --visible bfloat16,float32 --all-steps
    """
    from deltaw.analysis.runs import open_runs, table

    wanted = wanted_steps(steps, all_steps, shown)
    if not as_json:
        check_sort(shown, [short for short, _ in SHOWN.values()])
    opened, bars = open_runs(runs, base=base), progress(as_json)
    options: dict[str, Any] = {"k": count, "measures": measures or None, "visible": visible or ("bfloat16",)}
    frame = table(opened, "geometry", steps=wanted, modules=modules or None, progress=bars, work=work, **options)
    if path is not None:
        write_table(frame, path)
    there = [name for name in SHOWN if name in frame]
    if as_json or shown.every:
        emit_rows(frame if as_json else frame[LABELS + there], shown, as_json, path)
        return
    rows = frame if all_steps or len(steps) > 1 else at_step(frame, "step", None)
    what = f"means over matrices of ΔW's geometry against W₀{steps_text(opened, rows['step'].unique(), ', at ')}"
    short = rows.rename(columns={name: SHOWN[name][0] for name in there})
    emit_summary(short, dict(SHOWN[name] for name in there), shown, what, total=len(frame), path=path)
