"""``deltaw params``: trainable parameters, without loading any weights."""

import click
import pandas as pd

from deltaw.adapters import METHODS, create
from deltaw.adapters.params import count_trainable, model_from_config
from deltaw.cli.output import emit_table, json_option


@click.command("params")
@click.option("--model", required=True, help="A Hugging Face config: a name, a folder, or a config.json.")
@click.option("--method", "methods", multiple=True, type=click.Choice(list(METHODS)), help="Default: all of them.")
@click.option("--rank", type=int, default=8, show_default=True)
@click.option("--targets", multiple=True, default=("*query", "*value"), show_default=True, help="Glob pattern; repeat.")
@json_option
def command(model: str, methods: tuple[str, ...], rank: int, targets: tuple[str, ...], as_json: bool) -> None:
    """Count a method's trainable parameters and their share of the base model.

    \b
    Example:
      deltaw params --model roberta-base --method bora --rank 8 --targets "*.query" --targets "*.value"
    """
    net = model_from_config(model)
    made = [create(name) if name == "ft" else create(name, rank=rank) for name in methods or METHODS]
    frame = pd.DataFrame([count_trainable(net, method, targets) for method in made])
    emit_table(frame, as_json, None)
