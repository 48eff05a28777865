"""``deltaw changes``: the ΔM, ΔD table."""

from pathlib import Path

import click

from deltaw.analysis.correlation import correlation
from deltaw.analysis.tables import Table, open_runs, table
from deltaw.cli.output import emit_table, json_option, out_option


@click.command("changes")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--pairs", type=click.Choice(["consecutive", "initial", "base"]), default="consecutive", show_default=True
)
@click.option("--modules", multiple=True, help="Glob pattern over module names; may be repeated.")
@click.option("--correlation", "correlate", is_flag=True, help="Print how ΔM and ΔD go together instead.")
@out_option
@json_option
def command(
    runs: tuple[Path, ...], pairs: Table, modules: tuple[str, ...], correlate: bool, path: Path | None, as_json: bool
) -> None:
    """Print ΔM and ΔD of every module, pair of steps and axis.

    \b
    --pairs consecutive   from the checkpoint before (BoRA, Figure 2)
            initial       from the first checkpoint (BoRA, Figure 3)
            base          from the base weights W₀ (DoRA, Figure 2)

    \b
    Example:
      deltaw changes runs/lora runs/bora --pairs base -o changes.csv
      deltaw changes runs/* --pairs base --correlation
    """
    frame = table(open_runs(runs), pairs, modules=modules or None, progress=not as_json)
    if correlate:
        frame = correlation(frame, by=["run", "method", "kind", "axis"])
    emit_table(frame, as_json, path)
