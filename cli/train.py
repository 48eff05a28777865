"""``deltaw train``: one recorded run of an experiment."""

import json
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
@click.option(
    "--option", "own", multiple=True, metavar="NAME=VALUE", help="An option of the method alone; may be repeated."
)
@cola_options
@json_option
def cola(
    method: str, out: Path, own: tuple[str, ...], cola: dict[str, Any], options: dict[str, Any], as_json: bool
) -> None:
    """Fine-tune on CoLA; the defaults are LoRA's for RoBERTa-base, which BoRA A.2 uses.

    A run that was interrupted goes on with the same command; a finished one is only shown.

    \b
    Example:
      deltaw train cola --method bora --out runs/bora --epochs 5
      deltaw train cola --method bora --model roberta-base --data hub --out runs/bora
      deltaw train cola --method dual-lora --option warmup_steps=200 --out runs/dual-lora
    """
    from deltaw.trainers.cola import ColaSettings, train_cola
    from deltaw.trainers.reproduce import results_table

    chosen = ({} if method == "ft" else options) | dict(map(_named, own))
    settings = ColaSettings(method=method, options=chosen, **cola)
    result = train_cola(settings, out, progress=not as_json)
    if as_json:
        emit_json(asdict(result))
        return
    click.echo(results_table([result]))
    click.echo(f"recorded in {out}")


def _named(text: str) -> tuple[str, Any]:
    """Split NAME=VALUE; the value is read as JSON where it is JSON (20, true, null), else it is text."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--option")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
