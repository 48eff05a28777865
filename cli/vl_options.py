"""The options that every run of the VL experiment shares."""

import functools
from collections.abc import Callable
from typing import Any

import click

from deltaw.cli.commands import ListOption, OneOf
from deltaw.cli.options import ALPHA, Decorator, with_default
from deltaw.cli.train_options import handing_on, rate_option, rates_in_words
from deltaw.trainers.settings import BASES, PRECISIONS
from deltaw.trainers.vl.examples import TASKS
from deltaw.trainers.vl.settings import BATCH_SIZES, BLOCKS, KINDS, LEARNING_RATES, RANKS, VLSettings

PICTURES = ("PIL",)


def _by_model(default: dict[str, int]) -> str:
    return f"{default['other']}; {default['builtin']} with the built-in model"


RANK_DEFAULT = _by_model(RANKS)


def _choices(name: str, known: tuple[str, ...], default: str | None, text: str) -> Decorator:
    """An option with several of these values, separated by commas."""
    return click.option(
        name,
        cls=ListOption,
        kind=OneOf(known),
        default=None if default is None else [default],
        show_default=default is not None,
        help=text,
    )


_OPTIONS: list[Decorator] = [
    click.option(
        "--model", help="A BART: a name on the hub or a folder, as facebook/bart-base. Default: the built-in one."
    ),
    click.option(
        "--vision",
        help="Features (.safetensors, .h5, .hdf5), or an encoder: timm/NAME, timm/NAME@WEIGHTS_FILE, "
        "open_clip/NAME/PRETRAINED. Default: the built-in one.",
    ),
    with_default(
        "--data",
        multiple=True,
        default=list(VLSettings.data),
        help="builtin, easy-vqa, or a folder with VQA v2, GQA, NLVR², COCO captions or NLVR 1; may be repeated.",
    ),
    _choices("--tasks", TASKS, None, f"Of {', '.join(TASKS)}. Default: all that the data have."),
    _choices("--where", BLOCKS, ",".join(VLSettings.where), "The blocks that are adapted; cross is cross attention."),
    _choices(
        "--kinds",
        KINDS,
        ",".join(VLSettings.kinds),
        f"The matrices that are adapted, of {', '.join(KINDS)}. DoRA's Table 9 has query,key; its figures show "
        "query and value.",
    ),
    click.option("--targets", multiple=True, help="Glob pattern, instead of --where and --kinds; may be repeated."),
    with_default("--epochs", type=int, default=VLSettings.epochs),
    rate_option(rates_in_words(*LEARNING_RATES["other"])),
    click.option("--batch-size", type=int, help=f"Examples of one task. Default: {_by_model(BATCH_SIZES)}."),
    with_default("--warmup-ratio", type=float, default=VLSettings.warmup_ratio),
    with_default("--weight-decay", type=float, default=VLSettings.weight_decay),
    with_default("--max-length", type=int, default=VLSettings.max_length, help="Of a question, in tokens."),
    with_default(
        "--answer-length",
        type=int,
        default=VLSettings.answer_length,
        help="Of an answer, in tokens.",
    ),
    click.option("--alpha", type=float, help=ALPHA.format(_by_model(RANKS))),
    click.option("--dropout", type=float, help="Of the adapters' input. Default: 0."),
    with_default(
        "--base",
        type=OneOf(BASES),
        default=VLSettings.base,
        help="nf4: the targets in 4 bits (QLoRA, QBoRA, …).",
    ),
    with_default(
        "--precision",
        type=OneOf(PRECISIONS),
        default=VLSettings.precision,
        help="bfloat16: products of activations in bfloat16 (autocast); the weights stay float32.",
    ),
    with_default(
        "--checkpoints",
        type=int,
        default=VLSettings.checkpoints,
        help="Evenly spaced, the last at the end.",
    ),
    click.option("--record-every", type=int, help="Steps between checkpoints, instead of --checkpoints."),
    click.option("--limit", type=int, help="At most so many training examples a task. Default: all."),
    click.option("--dev-limit", type=int, help="The same for scoring. Default: a quarter of --limit."),
    with_default(
        "--eval-every",
        type=int,
        default=VLSettings.eval_every,
        help="Epochs between two evaluations.",
    ),
    with_default("--beams", type=int, default=VLSettings.beams, help="Of the search for an answer."),
    with_default(
        "--save-every",
        type=int,
        default=VLSettings.save_every,
        help="Epochs between states to go on from.",
    ),
]
_NAMES = ["model", "vision", "epochs", "learning_rate", "batch_size", "warmup_ratio", "weight_decay", "max_length"]
_NAMES += [
    "answer_length",
    "base",
    "precision",
    "checkpoints",
    "record_every",
    "limit",
    "dev_limit",
    "eval_every",
    "beams",
]
_LISTS = ["data", "tasks", "where", "kinds"]


def vl_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options, and hand them on.

    They come as ``vl``, keyword arguments of ``VLSettings`` (but ``learning_rate`` as ``rate_option`` gives it), and as
    ``options``, those of the method that were given.
    """

    @functools.wraps(function)
    def listed(vl: dict[str, Any], **given: Any) -> Any:
        return function(vl=vl | {name: tuple(vl[name]) or None for name in _LISTS}, **given)

    return handing_on(_OPTIONS, "vl", [*_NAMES, *_LISTS, "save_every"], ["alpha", "dropout"])(listed)
