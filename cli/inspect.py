"""``deltaw inspect``: what is recorded here, and is it whole."""

from pathlib import Path

import click
from tabulate import tabulate

from deltaw.analysis.inspection import inspect_run
from deltaw.cli.output import emit_json, json_option


@click.command("inspect")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--verify", is_flag=True, help="Read every file and compare its checksum.")
@json_option
def command(path: Path, verify: bool, as_json: bool) -> None:
    """Show what is recorded in a run folder; exit code 1 where it is damaged.

    \b
    Example:
      deltaw inspect runs/bora --verify
    """
    found = inspect_run(path, verify=verify)
    if as_json:
        emit_json(found)
        return
    steps = found["steps"]
    options = "; ".join(f"{k}={v}" for entry in found["options"].values() for k, v in entry.items())
    span = f"{len(steps)}, from {steps[0]} to {steps[-1]}" if steps else "none yet"
    size = found["bytes"]
    checked = "sizes" if found["verified"] is None else f"checksums of {found['verified']} files"
    click.echo(
        tabulate(
            [
                ("run", found["path"]),
                ("method", found["method"] + (f" ({options})" if options else "")),
                ("created", found["created"]),
                ("checkpoints", span),
                ("size", f"{size['base'] / 1e6:.2f} MB base, {size['checkpoints'] / 1e6:.2f} MB checkpoints"),
                ("whole", f"yes ({checked})"),
            ],
            tablefmt="plain",
        )
    )
    click.echo()
    click.echo(tabulate([{**m, "shape": "×".join(map(str, m["shape"]))} for m in found["modules"]], headers="keys"))
