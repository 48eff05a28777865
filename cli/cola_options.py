"""The options that every run on CoLA shares."""

from collections.abc import Callable
from typing import Any

import click

from deltaw.cli.commands import OneOf
from deltaw.cli.options import ALPHA, Decorator, with_default
from deltaw.cli.train_options import handing_on, rate_option, rates_in_words
from deltaw.trainers.cola.settings import LEARNING_RATES, ColaSettings
from deltaw.trainers.settings import BASES, PRECISIONS

_RATES = rates_in_words(*LEARNING_RATES["other"])
_MODEL_AND_DATA: list[Decorator] = [
    click.option("--model", help="A name on the hub or a folder, for example roberta-base. Default: the built-in one."),
    with_default("--data", default=ColaSettings.data, help="builtin, hub, or a folder with CoLA's TSV files."),
    with_default("--epochs", type=int, default=ColaSettings.epochs),
]
_RATE: list[Decorator] = [click.option("--lr", "learning_rate", type=float, help=f"Default: {_RATES}")]
_RATE_BY_METHOD: list[Decorator] = [rate_option(_RATES)]
_OTHERS: list[Decorator] = [
    with_default("--batch-size", type=int, default=ColaSettings.batch_size),
    with_default("--warmup-ratio", type=float, default=ColaSettings.warmup_ratio),
    with_default("--weight-decay", type=float, default=ColaSettings.weight_decay),
    with_default("--max-length", type=int, default=ColaSettings.max_length, help="In tokens."),
    click.option("--alpha", type=float, help=ALPHA.format("8")),
    click.option("--dropout", type=float, help="Of the adapters' input. Default: 0."),
    click.option(
        "--targets", multiple=True, help="Glob pattern; may be repeated. Default: all query and value matrices."
    ),
    with_default(
        "--base",
        type=OneOf(BASES),
        default=ColaSettings.base,
        help="nf4: the targets in 4 bits (QLoRA, QBoRA, …).",
    ),
    with_default(
        "--precision",
        type=OneOf(PRECISIONS),
        default=ColaSettings.precision,
        help="bfloat16: products of activations in bfloat16 (autocast); the weights stay float32.",
    ),
    click.option(
        "--group-by-length", is_flag=True, help="Make batches of sentences of about the same length, which is faster."
    ),
    with_default(
        "--record-every",
        type=int,
        default=ColaSettings.record_every,
        help="Steps between checkpoints.",
    ),
    with_default(
        "--save-every",
        type=int,
        default=ColaSettings.save_every,
        help="Epochs between states to go on from.",
    ),
]
_NAMES = ["model", "data", "epochs", "learning_rate", "batch_size", "warmup_ratio", "weight_decay", "max_length"]
_NAMES += ["record_every", "save_every", "base", "precision", "group_by_length"]
_OWN = ["alpha", "dropout"]


def grid_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options, and hand them on; rank and seed, of which a grid has several, are not among them.

    They come as ``cola``, keyword arguments of ``ColaSettings``, and ``options``, those of the method that were given.
    """
    return handing_on([*_MODEL_AND_DATA, *_RATE, *_OTHERS], "cola", _NAMES, _OWN)(function)


def train_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the same with learning rates by method: see ``rate_option``."""
    return handing_on([*_MODEL_AND_DATA, *_RATE_BY_METHOD, *_OTHERS], "cola", _NAMES, _OWN)(function)
