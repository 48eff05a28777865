"""The options that every run on CoLA shares."""

from collections.abc import Callable
from typing import Any

import click

from deltaw.cli.train_options import Decorator, handing_on, rate_option, several

_RATES = "4e-4 (adapters) or 2e-5 (ft, galore); built-in has its own."
_MODEL_AND_DATA: list[Decorator] = [
    click.option("--model", help="A name on the hub or a folder, for example roberta-base. Default: the built-in one."),
    click.option(
        "--data", default="builtin", show_default=True, help="builtin, hub, or a folder with CoLA's TSV files."
    ),
    click.option("--epochs", type=int, default=80, show_default=True),
]
_RATE: list[Decorator] = [click.option("--lr", "learning_rate", type=float, help=f"Default: {_RATES}")]
_RATE_BY_METHOD: list[Decorator] = [rate_option(_RATES)]
_OTHERS: list[Decorator] = [
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
_NAMES = ["model", "data", "epochs", "learning_rate", "batch_size", "warmup_ratio", "weight_decay", "max_length"]
_NAMES += ["record_every", "save_every", "base"]
_OWN = ["alpha", "dropout"]


def grid_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options, and hand them on; rank and seed, of which a grid has several, are not among them.

    They come as ``cola``, keyword arguments of ``ColaSettings``, and ``options``, those of the method that were given.
    """
    return handing_on([*_MODEL_AND_DATA, *_RATE, *_OTHERS], "cola", _NAMES, _OWN)(function)


def train_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the same with learning rates by method: see ``rate_option``."""
    return handing_on([*_MODEL_AND_DATA, *_RATE_BY_METHOD, *_OTHERS], "cola", _NAMES, _OWN)(function)


__all__ = ["grid_options", "several", "train_options"]
