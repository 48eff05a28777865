"""The options that every run on CoLA shares."""

import functools
from collections.abc import Callable
from typing import Any

import click

_OPTIONS = [
    click.option("--model", help="A name on the hub or a folder, for example roberta-base. Default: the built-in one."),
    click.option(
        "--data", default="builtin", show_default=True, help="builtin, hub, or a folder with CoLA's TSV files."
    ),
    click.option("--epochs", type=int, default=80, show_default=True),
    click.option(
        "--lr", "learning_rate", type=float, help="Default: 4e-4 (adapters) or 2e-5 (ft); built-in has its own."
    ),
    click.option("--batch-size", type=int, default=32, show_default=True),
    click.option("--warmup-ratio", type=float, default=0.06, show_default=True),
    click.option("--weight-decay", type=float, default=0.0, show_default=True),
    click.option("--max-length", type=int, default=128, show_default=True, help="In tokens."),
    click.option("--rank", type=int, default=8, show_default=True, help="Of the adapters."),
    click.option("--alpha", type=float, default=8.0, show_default=True, help="Scaling is alpha / rank."),
    click.option("--dropout", type=float, default=0.0, show_default=True, help="Of the adapters' input."),
    click.option(
        "--targets", multiple=True, help="Glob pattern; may be repeated. Default: all query and value matrices."
    ),
    click.option("--record-every", type=int, default=20, show_default=True, help="Steps between checkpoints."),
    click.option("--save-every", type=int, default=10, show_default=True, help="Epochs between states to go on from."),
    click.option("--seed", type=int, default=0, show_default=True),
]


def cola_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options, and hand them on as one mapping ``cola`` of keyword arguments of ``ColaSettings``."""

    @functools.wraps(function)
    def wrapped(**given: Any) -> Any:
        names = ["model", "data", "epochs", "learning_rate", "batch_size", "warmup_ratio", "weight_decay", "max_length"]
        names += ["record_every", "save_every", "seed"]
        cola = {name: given.pop(name) for name in names}
        cola["targets"] = given.pop("targets") or None
        options = {name: given.pop(name) for name in ("rank", "alpha", "dropout")}
        return function(cola=cola, options=options, **given)

    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped
