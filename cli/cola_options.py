"""The options that every run on CoLA shares."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import click

# Where GaLore's package is installed, transformers imports bitsandbytes, which warns of kernels that nothing here uses.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

_OPTIONS = [
    click.option("--model", help="A name on the hub or a folder, for example roberta-base. Default: the built-in one."),
    click.option(
        "--data", default="builtin", show_default=True, help="builtin, hub, or a folder with CoLA's TSV files."
    ),
    click.option("--epochs", type=int, default=80, show_default=True),
    click.option(
        "--lr",
        "learning_rate",
        type=float,
        help="Default: 4e-4 (adapters) or 2e-5 (ft, galore); built-in has its own.",
    ),
    click.option("--batch-size", type=int, default=32, show_default=True),
    click.option("--warmup-ratio", type=float, default=0.06, show_default=True),
    click.option("--weight-decay", type=float, default=0.0, show_default=True),
    click.option("--max-length", type=int, default=128, show_default=True, help="In tokens."),
    click.option("--alpha", type=float, help="Scaling is alpha / rank. Default: 8."),
    click.option("--dropout", type=float, help="Of the adapters' input. Default: 0."),
    click.option(
        "--targets", multiple=True, help="Glob pattern; may be repeated. Default: all query and value matrices."
    ),
    click.option(
        "--base",
        type=click.Choice(["full", "nf4"]),
        default="full",
        show_default=True,
        help="nf4: the targets in 4 bits (QLoRA, QBoRA, …).",
    ),
    click.option("--record-every", type=int, default=20, show_default=True, help="Steps between checkpoints."),
    click.option("--save-every", type=int, default=10, show_default=True, help="Epochs between states to go on from."),
]
_ONE_RUN = [
    click.option("--rank", type=int, help="Of the adapters. Default: 8."),
    click.option("--seed", type=int, default=0, show_default=True),
]


def several(kind: Any) -> Callable[[click.Context, click.Parameter, tuple[str, ...]], list[Any]]:
    """Return an option's callback: what it was given, repeated or with commas between, as a list, each value once.

    Arguments:
        kind: click's type of one value.
    """

    def callback(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> list[Any]:
        parts = [part.strip() for text in given for part in text.split(",")]
        if not all(parts):
            raise click.BadParameter(f"{','.join(given)!r} has an empty place", context, option)
        return list(dict.fromkeys(kind.convert(part, option, context) for part in parts))

    return callback


def cola_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of one run, and hand them on.

    They come as ``cola``, keyword arguments of ``ColaSettings``, and ``options``, those of the method that were given.
    """
    return _handing_on([*_OPTIONS, *_ONE_RUN], function)


def grid_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the same without rank and seed, of which a grid has several."""
    return _handing_on(_OPTIONS, function)


def _handing_on(chosen: list[Callable[..., Any]], function: Callable[..., Any]) -> Callable[..., Any]:
    names = ["model", "data", "epochs", "learning_rate", "batch_size", "warmup_ratio", "weight_decay", "max_length"]
    names += ["record_every", "save_every", "base"]
    own = ["alpha", "dropout"]
    if chosen is not _OPTIONS:
        names, own = [*names, "seed"], ["rank", *own]

    @functools.wraps(function)
    def wrapped(**given: Any) -> Any:
        cola = {name: given.pop(name) for name in names}
        cola["targets"] = given.pop("targets") or None
        options = {name: given.pop(name) for name in own}
        return function(cola=cola, options={k: v for k, v in options.items() if v is not None}, **given)

    for option in reversed(chosen):
        wrapped = option(wrapped)
    return wrapped
