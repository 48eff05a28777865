"""The options and arguments that several verbs share."""

import functools
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from deltaw.adapters.methods.registry import METHODS
from deltaw.analysis.claims.found import PACKS
from deltaw.analysis.claims.papers import PAPERS
from deltaw.analysis.tables.work import ENGINES, Work, chosen_work
from deltaw.analysis.workers.early import import_early
from deltaw.cli.commands import OneOf, did_you_mean, session
from deltaw.cli.output import TABLES, check_table_path, check_writable

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

BASE_HELP = "W₀, where a run does not hold it: a folder, or a name in Hugging Face's cache."
# What a process imports to measure.
MEASURING = (
    "deltaw.analysis.tables.elsewhere",
    "deltaw.analysis.tables.changes",
    "deltaw.analysis.tables.spectra",
    "deltaw.adapters.compiled.lanes",
)
ALPHA = "Of the scaling: alpha / rank; alpha / √rank of rslora, alpha / √(r₁ r₂) of dual-lora. Default: {}."
MODULES_HELP = "Glob pattern over module names; may be repeated."

# Read when a name is checked or shown, not before: entry points of other packages take a moment to look up.
METHOD = OneOf(METHODS)
PAPER = OneOf(PAPERS)


class PackName(click.Path):
    """The name of a pack of claims, or the path of one in a file."""

    name = "pack"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return it as it is; a word that is neither gets a suggestion."""
        if value not in PACKS and not Path(value).is_file():
            self.fail(f"{str(value)!r} is no file, and {did_you_mean(str(value), PACKS)}", param, ctx)
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Complete the names, and paths."""
        named = [CompletionItem(name) for name in PACKS if name.startswith(incomplete)]
        return [*named, *super().shell_complete(ctx, param, incomplete)]


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


class _Heads(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic from click 8.4 on
    name = "NUMBER|NAME=NUMBER,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        pairs = [part.partition("=") for part in value.split(",")] if "=" in value else [(HEADS, "=", value)]
        try:
            return {name.strip(): int(number) for name, _, number in pairs}
        except ValueError:
            self.fail(f"{value!r} is neither a number nor names with numbers, as {HEADS}=12", param, ctx)


HEADS = "num_attention_heads"
HEADS_SETTINGS: dict[str, Any] = {
    "type": _Heads(),
    "help": "Attention heads, where the run does not say: a number, or by the configuration's names "
    "(num_attention_heads=32,num_key_value_heads=8).",
}
heads_option = click.option("--heads", **HEADS_SETTINGS)
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


def work_parameters() -> list[click.Parameter]:
    """Return the options that say where and how what a verb computes is computed; `work_of` takes their values."""
    return [
        click.Option(["--device"], metavar="TEXT", help="Measure on this device: cpu, cuda, cuda:1, …. Default: cpu."),
        click.Option(["--jobs"], type=int, default=1, show_default=True, help="So many processes at a time."),
        click.Option(["--engine"], type=OneOf(ENGINES), help="Hand the work to an engine, on several machines too."),
        click.Option(["--address"], metavar="TEXT", help="Of the engine's scheduler. Default: one is started here."),
        click.Option(["--cache/--no-cache"], default=True, help="Keep what was measured, to read it the next time."),
    ]


def work_of(given: MutableMapping[str, Any]) -> Work:
    """Take the values of these options out of what a verb was given."""
    chosen = {name: given.pop(name) for name in ("device", "jobs", "engine", "address", "cache")}
    if chosen["jobs"] > 1 and chosen["engine"] is None and chosen["device"] in (None, "cpu") and session().alone:
        import_early(*MEASURING)
    return chosen_work(**chosen)


def work_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb these options; its function gets them as one argument, ``work``."""

    @functools.wraps(function)
    def call(*arguments: Any, **given: Any) -> Any:
        return function(*arguments, work=work_of(given), **given)

    params: list[click.Parameter] = getattr(function, "__click_params__", [])
    call.__click_params__ = [*params, *reversed(work_parameters())]  # type: ignore[attr-defined]
    return call
