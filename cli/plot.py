"""``deltaw plot``: one of the papers' figures."""

from pathlib import Path

import click

from deltaw.analysis.figures import FIGURES, check_path, save
from deltaw.analysis.tables import open_runs, table


@click.command("plot")
@click.argument("figure", type=click.Choice(list(FIGURES)))
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", "path", required=True, type=click.Path(path_type=Path), help="A .png, .svg or .pdf file.")
@click.option("--kind", default=None, help="The matrices shown: query, key, value, … Default: query; for rank all.")
@click.option("--scale", type=click.Choice(["linear", "log"]), default=None, help="Default: linear; rank: log.")
@click.option(
    "--share",
    type=click.Choice(["all", "adapters", "none"]),
    default=None,
    help="Which panels have one scale (symmetry, updates); adapters: full fine-tuning has its own. Default: all.",
)
def command(
    figure: str, runs: tuple[Path, ...], path: Path, kind: str | None, scale: str | None, share: str | None
) -> None:
    """Draw one of the papers' figures from recorded runs, one run a method.

    \b
    symmetry   BoRA, Figure 2: ΔM and ΔD between consecutive checkpoints, by column and by row
    updates    BoRA, Figure 3: ΔM and ΔD from the start on
    rank       Dual LoRA, Figure 3: the rank of ΔW by layer at the last checkpoint

    \b
    Example:
      deltaw plot symmetry runs/ft runs/lora runs/dora runs/bora -o symmetry.pdf
    """
    check_path(path)
    if share is not None and figure == "rank":
        raise click.UsageError("--share is for symmetry and updates; rank has one panel")
    entry = FIGURES[figure]
    frame = table(open_runs(runs), entry.table, steps="last", progress=True)
    options = {"kind": kind, "scale": scale, "share": share}
    save(entry.draw(frame, **{name: value for name, value in options.items() if value is not None}), path)
    click.echo(f"written to {path}")
