"""The options that every run of the VL experiment shares."""

import functools
from collections.abc import Callable
from typing import Any

import click

from deltaw.cli.train_options import Decorator, handing_on, rate_option, several

TASKS = ("vqa", "gqa", "nlvr", "caption")
BLOCKS = ("encoder", "decoder", "cross")
KINDS = ("query", "key", "value", "output", "up", "down")


def _choices(name: str, known: tuple[str, ...], default: str | None, text: str) -> Decorator:
    """An option with several of these values, separated by commas."""
    return click.option(
        name,
        multiple=True,
        callback=several(click.Choice(known)),
        default=None if default is None else [default],
        show_default=default is not None,
        metavar="LIST",
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
    click.option(
        "--data",
        multiple=True,
        default=["builtin"],
        show_default=True,
        help="builtin, easy-vqa, or a folder with VQA v2, GQA, NLVR², COCO captions or NLVR 1; may be repeated.",
    ),
    _choices("--tasks", TASKS, None, f"Of {', '.join(TASKS)}. Default: all that the data have."),
    _choices("--where", BLOCKS, ",".join(BLOCKS), "The blocks that are adapted; cross is cross attention."),
    _choices(
        "--kinds",
        KINDS,
        "query,value",
        f"The matrices that are adapted, of {', '.join(KINDS)}. DoRA's Table 9 has query,key; its figures show "
        "query and value.",
    ),
    click.option("--targets", multiple=True, help="Glob pattern, instead of --where and --kinds; may be repeated."),
    click.option("--epochs", type=int, default=20, show_default=True),
    rate_option("1e-3 (adapters) or 1e-4 (ft, galore); built-in has its own."),
    click.option("--batch-size", type=int, help="Examples of one task. Default: 300; 32 with the built-in model."),
    click.option("--warmup-ratio", type=float, default=0.1, show_default=True),
    click.option("--weight-decay", type=float, default=0.0, show_default=True),
    click.option("--max-length", type=int, default=128, show_default=True, help="Of a question, in tokens."),
    click.option("--answer-length", type=int, default=40, show_default=True, help="Of an answer, in tokens."),
    click.option("--alpha", type=float, help="Scaling is alpha / rank. Default: 128; 8 with the built-in model."),
    click.option("--dropout", type=float, help="Of the adapters' input. Default: 0."),
    click.option(
        "--base",
        type=click.Choice(["full", "nf4"]),
        default="full",
        show_default=True,
        help="nf4: the targets in 4 bits (QLoRA, QBoRA, …).",
    ),
    click.option("--checkpoints", type=int, default=4, show_default=True, help="Evenly spaced, the last at the end."),
    click.option("--record-every", type=int, help="Steps between checkpoints, instead of --checkpoints."),
    click.option("--limit", type=int, help="At most so many training examples a task. Default: all."),
    click.option("--dev-limit", type=int, help="The same for scoring. Default: a quarter of --limit."),
    click.option("--eval-every", type=int, default=5, show_default=True, help="Epochs between two evaluations."),
    click.option("--beams", type=int, default=1, show_default=True, help="Of the search for an answer."),
    click.option("--save-every", type=int, default=5, show_default=True, help="Epochs between states to go on from."),
]
_NAMES = ["model", "vision", "epochs", "learning_rate", "batch_size", "warmup_ratio", "weight_decay", "max_length"]
_NAMES += ["answer_length", "base", "checkpoints", "record_every", "limit", "dev_limit", "eval_every", "beams"]
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
