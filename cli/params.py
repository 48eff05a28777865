"""``deltaw params``: trainable parameters, without loading any weights."""

import inspect
import json
from typing import Any

import click
import pandas as pd

from deltaw.adapters.counting.configs import CONFIGS
from deltaw.adapters.counting.params import count_trainable, model_from_config
from deltaw.adapters.errors import OptionError
from deltaw.adapters.method import Method
from deltaw.adapters.methods.registry import METHODS, create
from deltaw.cli.output import emit_table, json_option
from deltaw.cli.train_options import several


@click.command("params")
@click.option(
    "--model",
    required=True,
    help=f"One of {', '.join(CONFIGS)}; or a Hugging Face config: a name, a folder, a config.json.",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    callback=several(click.Choice(list(METHODS))),
    metavar="LIST",
    help=f"One or several of: {', '.join(METHODS)}. Default: all of them.",
)
@click.option("--rank", "ranks", multiple=True, callback=several(click.INT), metavar="LIST", help="Default: 8.")
@click.option("--targets", multiple=True, default=("*query", "*value"), show_default=True, help="Glob pattern; repeat.")
@click.option("--trainable", multiple=True, help="Glob pattern over what else is trained; repeat.")
@click.option("--option", "own", multiple=True, metavar="NAME=VALUE", help="For the methods that have it; repeat.")
@json_option
def command(
    model: str,
    methods: list[str],
    ranks: list[int],
    targets: tuple[str, ...],
    trainable: tuple[str, ...],
    own: tuple[str, ...],
    as_json: bool,
) -> None:
    """Count a method's trainable parameters, and their share of the base model and of all parameters with the added.

    \b
    Example:
      deltaw params --model roberta-base --method bora --rank 8 --targets "*.query" --targets "*.value"
      deltaw params --model llama-7b --method lora,dora --rank 16,32 --targets "*.[qkvud]*_proj"

    The second is DoRA's Table 1 on LLaMA 7B.
    """
    names = methods or list(METHODS)
    options = dict(map(_named, own))
    if "rank" in options:
        raise OptionError("the rank is given by --rank, not by --option")
    for option in options:
        if not any(_has(name, option) for name in names):
            raise OptionError(f"there is no option {option!r} in {', '.join(names)}")
    net = model_from_config(model)
    rows = []
    for name in names:
        own_options = {key: value for key, value in options.items() if _has(name, key)}
        for method in _made(name, ranks or [8], own_options):
            counted = count_trainable(net, method, targets, trainable=trainable)
            rows.append({"method": counted.pop("method"), "rank": getattr(method, "rank", None)} | counted)
    emit_table(pd.DataFrame(rows, dtype=object), as_json, None)


def _made(name: str, ranks: list[int], options: dict[str, Any]) -> list[Method]:
    """Make a method once per rank, or once where it has none."""
    if not _has(name, "rank"):
        return [create(name, **options)]
    return [create(name, rank=rank, **options) for rank in ranks]


def _has(name: str, option: str) -> bool:
    return option in inspect.signature(METHODS[name]).parameters


def _named(text: str) -> tuple[str, Any]:
    """Split NAME=VALUE; the value is read as JSON where it is JSON, else it is text."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise OptionError(f"--option {text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
