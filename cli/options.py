"""The options and arguments that several verbs share."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from deltaw.adapters.methods.registry import METHODS
from deltaw.analysis.claims.papers import PAPERS
from deltaw.cli.commands import OneOf
from deltaw.cli.output import TABLES, check_table_path, check_writable

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

BASE_HELP = "W₀, where a run does not hold it: a folder, or a name in Hugging Face's cache."
ALPHA = "Of the scaling: alpha / rank; alpha / √rank of rslora, alpha / √(r₁ r₂) of dual-lora. Default: {}."
MODULES_HELP = "Glob pattern over module names; may be repeated."

# Read when a name is checked or shown, not before: entry points of other packages take a moment to look up.
METHOD = OneOf(METHODS)
PAPER = OneOf(PAPERS)


def _check_table(context: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    if path is not None and not context.resilient_parsing:
        check_table_path(path)
    return path


def _check_folder(context: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    if path is not None and not context.resilient_parsing:
        check_writable(path)
    return path


# A path so that a shell completes it; an address is taken as well.
runs_argument = click.argument("runs", nargs=-1, required=True, type=click.Path())
base_option = click.option("--base", type=click.Path(), metavar="TEXT", help=BASE_HELP)
modules_option = click.option("--modules", multiple=True, help=MODULES_HELP)
with_default = functools.partial(click.option, show_default=True)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
out_option = click.option(
    "-o",
    "--out",
    "path",
    type=click.Path(path_type=Path),
    callback=_check_table,
    help=f"Write the whole table here: {', '.join(TABLES[:-1])} or {TABLES[-1]}.",
)


def folder_option(help: str, *, required: bool = True) -> Decorator:
    """Return -o for a folder, which may be there or not."""
    return click.option(
        "-o",
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        required=required,
        callback=_check_folder,
        help=help,
    )
