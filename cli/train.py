"""``deltaw train``: recorded runs of an experiment, one or a grid of them."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from deltaw.adapters import METHODS, DeltawError
from deltaw.cli.cola_options import grid_options, several
from deltaw.cli.output import emit_json, json_option


@click.group("train")
def command() -> None:
    """Fine-tune a model with a method, and record how its weights move."""


@command.command("cola")
@click.option(
    "--method",
    "methods",
    multiple=True,
    callback=several(click.Choice(list(METHODS))),
    required=True,
    metavar="LIST",
    help=f"One or several of: {', '.join(METHODS)}.",
)
@click.option(
    "--rank", "ranks", multiple=True, callback=several(click.INT), metavar="LIST", help="Of the adapters. Default: 8."
)
@click.option("--seed", "seeds", multiple=True, callback=several(click.INT), metavar="LIST", help="Default: 0.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The run folder, or the grid's.")
@click.option(
    "--option",
    "own",
    multiple=True,
    metavar="[METHOD:]NAME=VALUE",
    help="Another option of the methods, or of one of them alone; may be repeated.",
)
@grid_options
@json_option
def cola(
    methods: list[str],
    ranks: list[int],
    seeds: list[int],
    out: Path,
    own: tuple[str, ...],
    cola: dict[str, Any],
    options: dict[str, Any],
    as_json: bool,
) -> None:
    """Fine-tune on CoLA; the defaults are LoRA's for RoBERTa-base, which BoRA A.2 uses.

    A run that was interrupted goes on with the same command; a finished one is only shown.

    Several methods, ranks or seeds (a,b,c, or the option repeated) are a grid: every combination is trained into its
    own folder in --out, OUT/bora-r8-s0, and the closing table has mean and standard deviation over the seeds. It goes
    on in the same way, and more methods, ranks or seeds add to it.

    \b
    Example:
      deltaw train cola --method bora --out runs/bora --epochs 5
      deltaw train cola --method bora --model roberta-base --data hub --out runs/bora
      deltaw train cola --method dual-lora --option warmup_steps=200 --out runs/dual-lora
      deltaw train cola --method bora,lora+ --rank 4,8 --seed 0,1,2 --option lora+:lr_ratio=4 --out grid
    """
    from deltaw.trainers.cola import ColaSettings, GridError, grid_table, train_cola, train_grid
    from deltaw.trainers.cola.grid import grid_page, grid_runs
    from deltaw.trainers.reproduce import results_table

    by_method = _by_method(own)
    if ranks and "rank" in by_method.get("", {}):
        raise click.UsageError("the rank is given by --rank and by --option; leave one of them out")
    settings = ColaSettings(method=methods[0], options=options | by_method.pop("", {}), **cola)
    grid: dict[str, Any] = {"methods": methods, "ranks": ranks, "seeds": seeds or [0], "options": by_method}
    runs = grid_runs(settings, **grid)
    if len(methods) == 1 and len(ranks) < 2 and len(seeds) < 2:
        result = train_cola(next(iter(runs.values())), out, progress=not as_json)
        if as_json:
            emit_json(asdict(result))
            return
        click.echo(results_table([result]))
        click.echo(f"recorded in {out}")
        return
    failures: dict[str, str] = {}
    try:
        results = train_grid(settings, out, **grid, progress=not as_json)
    except GridError as error:
        results, failures = error.results, error.failures
    table = grid_table(results)
    if as_json:
        emit_json({"results": [asdict(r) for r in results], "table": table.to_dict(orient="records")})
    elif results:
        click.echo(grid_page(table))
        click.echo(f"recorded in {out}, one folder a run; the table is in {out / 'results.csv'} and results.md")
    for name, reason in failures.items():
        click.echo(f"deltaw: {name} failed: {reason}", err=True)
    if failures:
        raise DeltawError(f"{len(failures)} of {len(runs)} runs failed; the same command tries them again")


def _by_method(given: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Split every [METHOD:]NAME=VALUE; those for all methods stand under "".

    A value is read as JSON where it is JSON (20, true, null), else it is text.
    """
    found: dict[str, dict[str, Any]] = {}
    for text in given:
        before, equals, value = text.partition("=")
        method, _, name = before.rpartition(":")
        if not equals or not name:
            raise click.BadParameter(f"{text!r} is not NAME=VALUE or METHOD:NAME=VALUE", param_hint="--option")
        try:
            found.setdefault(method, {})[name] = json.loads(value)
        except ValueError:
            found.setdefault(method, {})[name] = value
    return found
