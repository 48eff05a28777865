"""``deltaw train``: one recorded run of an experiment."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from deltaw.adapters import METHODS
from deltaw.cli.cola_options import cola_options
from deltaw.cli.output import emit_json, json_option


@click.group("train")
def command() -> None:
    """Fine-tune a model with a method, and record how its weights move."""


@command.command("cola")
@click.option("--method", type=click.Choice(list(METHODS)), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The run folder.")
@cola_options
@json_option
def cola(method: str, out: Path, cola: dict[str, Any], options: dict[str, Any], as_json: bool) -> None:
    """Fine-tune on CoLA; the defaults are LoRA's for RoBERTa-base, which BoRA A.2 uses.

    A run that was interrupted goes on with the same command; a finished one is only shown.

    \b
    Example:
      deltaw train cola --method bora --out runs/bora --epochs 5
      deltaw train cola --method bora --model roberta-base --data hub --out runs/bora
    """
    from deltaw.trainers.cola import ColaSettings, train_cola
    from deltaw.trainers.reproduce import results_table

    settings = ColaSettings(method=method, options={} if method == "ft" else options, **cola)
    result = train_cola(settings, out, progress=not as_json)
    if as_json:
        emit_json(asdict(result))
        return
    click.echo(results_table([result]))
    click.echo(f"recorded in {out}")
