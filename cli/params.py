"""``deltaw params``: trainable parameters, without loading any weights."""

from typing import TYPE_CHECKING, Any

import click

from deltaw.adapters.counting.configs import CONFIGS
from deltaw.adapters.errors import OptionError
from deltaw.adapters.methods.registry import METHODS, create, options_of
from deltaw.cli.commands import Command, ListOption
from deltaw.cli.options import METHOD, json_option
from deltaw.cli.output import check_libraries, emit_table
from deltaw.cli.train_options import own_option

if TYPE_CHECKING:
    from deltaw.adapters.method import Method

RANK = 8  # one for all, so that the methods are compared


@click.command("params", cls=Command)
@click.option(
    "--model",
    required=True,
    help=f"One of {', '.join(CONFIGS)}; or a Hugging Face config: a name, a folder, a config.json.",
)
@click.option(
    "--method", "methods", cls=ListOption, kind=METHOD, help="One or several of: {names}. Default: all of them."
)
@click.option("--rank", "ranks", cls=ListOption, kind=click.INT, help=f"Default: {RANK}.")
@click.option("--targets", multiple=True, default=("*query", "*value"), show_default=True, help="Glob pattern; repeat.")
@click.option("--trainable", multiple=True, help="Glob pattern over what else is trained; repeat.")
@own_option("NAME=VALUE", "For the methods that have it; repeat.")
@json_option
def command(
    model: str,
    methods: list[str],
    ranks: list[int],
    targets: tuple[str, ...],
    trainable: tuple[str, ...],
    own: dict[str, dict[str, Any]],
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
    options = own.get("", {})
    if "rank" in options:
        raise OptionError("the rank is given by --rank, not by --option")
    for option in options:
        if not any(option in options_of(name) for name in names):
            raise OptionError(f"there is no option {option!r} in {', '.join(names)}")
    check_libraries(["transformers"], "train", "reading a model's configuration")
    import pandas as pd

    from deltaw.adapters.counting.params import count_trainable, model_from_config

    net = model_from_config(model)
    rows = []
    for name in names:
        own_options = {key: value for key, value in options.items() if key in options_of(name)}
        for method in _made(name, ranks or [RANK], own_options):
            counted = count_trainable(net, method, targets, trainable=trainable)
            rows.append({"method": counted.pop("method"), "rank": getattr(method, "rank", None)} | counted)
    emit_table(pd.DataFrame(rows, dtype=object), as_json, None)


def _made(name: str, ranks: list[int], options: dict[str, Any]) -> "list[Method]":
    """Make a method once per rank, or once where it has none."""
    if "rank" not in options_of(name):
        return [create(name, **options)]
    return [create(name, rank=rank, **options) for rank in ranks]
