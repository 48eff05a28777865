"""``deltaw changes``: the ΔM, ΔD table."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deltaw.analysis.tables.work import Work
from deltaw.cli.commands import Command, ListOption, OneOf
from deltaw.cli.options import base_option, json_option, modules_option, out_option, runs_argument, work_options
from deltaw.cli.output import emit_table, progress

if TYPE_CHECKING:
    from deltaw.analysis.trajectory import Trajectory

MODELS = ("safetensors", "transformers")  # formats of whole models
PAIRS = ("consecutive", "initial", "base")


@click.command("changes", cls=Command)
@runs_argument
@click.option(
    "--pairs",
    cls=ListOption,
    kind=OneOf(PAIRS),
    help="One or several of: {names}. Default: consecutive; base for a run of one checkpoint.",
)
@modules_option
@base_option
@click.option("--correlation", "correlate", is_flag=True, help="Print how ΔM and ΔD go together instead.")
@out_option
@work_options
@json_option
def command(
    runs: tuple[str, ...],
    pairs: list[str],
    modules: tuple[str, ...],
    base: str | None,
    correlate: bool,
    path: Path | None,
    as_json: bool,
    work: Work,
) -> None:
    """Print ΔM and ΔD of every module, pair of steps and axis.

    \b
    --pairs consecutive   from the checkpoint before (BoRA, Figure 2)
            initial       from the first checkpoint (BoRA, Figure 3)
            base          from the base weights W₀ (DoRA, Figure 2)
    Several, as consecutive,base, are measured in one pass; the table then has a column pairs.

    \b
    Example:
      deltaw changes runs/lora runs/bora --pairs base -o changes.csv
      deltaw changes runs/* --pairs base --correlation
      deltaw changes before/model.safetensors after/model.safetensors

    A run is a folder that deltaw recorded, an output folder of Hugging Face or PEFT, or its address. Two model files,
    or two folders of one model each, are compared with each other, as are a model and an adapter of it.
    """
    from deltaw.analysis.measures.correlation import correlation
    from deltaw.analysis.runs import table

    kinds = pairs[0] if len(pairs) == 1 else tuple(pairs) or None
    opened, shown = _opened(runs, base), progress(as_json)
    frame = table(opened, "changes", pairs=kinds, modules=modules or None, progress=shown, work=work)
    if correlate:
        frame = correlation(frame, by=["run", "method", "kind", *(["pairs"] if "pairs" in frame else []), "axis"])
    emit_table(frame, as_json, path)


def _opened(paths: tuple[str, ...], base: str | None) -> "list[Trajectory]":
    """Open the runs; two models, each of one step, are one run from the first to the second."""
    from deltaw.analysis.runs import open_runs
    from deltaw.analysis.trajectory import Trajectory

    runs = open_runs(paths, base=base)
    formats = [run.source.format for run in runs if len(run.steps) == 1]
    two = base is None and len(runs) == len(formats) == 2
    pair = two and formats[0] in MODELS and formats[1] in (*MODELS, "peft")
    return [Trajectory.from_pair(*paths)] if pair else runs
