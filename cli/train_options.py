"""What the training verbs share: lists of methods, ranks and seeds, options by method, one run or a grid of them."""

import functools
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from deltaw.adapters.errors import DeltawError
from deltaw.adapters.methods.registry import METHODS
from deltaw.cli.output import emit_json

# Where GaLore's package is installed, transformers imports bitsandbytes, which warns of kernels that nothing here uses.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


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


def rate_option(default: str) -> Decorator:
    """Return --lr, repeated as [METHOD:]VALUE; it comes as a dictionary, where that of all methods stands under "".

    Arguments:
        default: What the help says of it.
    """

    def callback(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> dict[str, float]:
        kind: Any = click.FLOAT
        found = {}
        for text in given:
            method, _, value = text.rpartition(":")
            found[method] = kind.convert(value, option, context)
        return found

    return click.option(
        "--lr",
        "learning_rate",
        multiple=True,
        callback=callback,
        metavar="[METHOD:]FLOAT",
        help=f"Of all methods, or of one alone; may be repeated. Default: {default}",
    )


def run_options(rank: str) -> Decorator:
    """Return a decorator with what says which runs are trained, and where to.

    Arguments:
        rank: The help's default for --rank.
    """
    options = [
        click.option(
            "--method",
            "methods",
            multiple=True,
            callback=several(click.Choice(list(METHODS))),
            required=True,
            metavar="LIST",
            help=f"One or several of: {', '.join(METHODS)}.",
        ),
        click.option(
            "--rank",
            "ranks",
            multiple=True,
            callback=several(click.INT),
            metavar="LIST",
            help=f"Of the adapters. Default: {rank}.",
        ),
        click.option("--seed", "seeds", multiple=True, callback=several(click.INT), metavar="LIST", help="Default: 0."),
        click.option(
            "-o", "--out", type=click.Path(path_type=Path), required=True, help="The run folder, or the grid's."
        ),
        click.option(
            "--option",
            "own",
            multiple=True,
            metavar="[METHOD:]NAME=VALUE",
            help="Another option of the methods, or of one of them alone; may be repeated.",
        ),
    ]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def handing_on(options: Sequence[Decorator], to: str, names: Sequence[str], own: Sequence[str]) -> Decorator:
    """Return a decorator that adds the options and hands them on in two dictionaries.

    Arguments:
        options: click's.
        to: The keyword of the dictionary with the arguments of the settings.
        names: Those of the options that go there, and ``targets``.
        own: The names of the method's; those that were given go to ``options``.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def handed(**given: Any) -> Any:
            settings = {name: given.pop(name) for name in names}
            settings["targets"] = given.pop("targets") or None
            chosen = {name: given.pop(name) for name in own}
            chosen = {name: value for name, value in chosen.items() if value is not None}
            return function(**{to: settings}, options=chosen, **given)

        wrapped: Callable[..., Any] = handed
        for option in reversed(options):
            wrapped = option(wrapped)
        return wrapped

    return decorate


def train_runs(
    settings: Any,
    out: Path,
    *,
    methods: Sequence[str],
    ranks: Sequence[int],
    seeds: Sequence[int],
    own: Sequence[str],
    rates: dict[str, float],
    as_json: bool,
    train_one: Callable[..., Any],
    train_grid: Callable[..., list[Any]],
    show_one: Callable[[Any], str],
    grid_table: Callable[[list[Any]], Any],
    grid_page: Callable[[Any], str],
) -> None:
    """Train one run or a grid of them, and print the closing table.

    Arguments:
        settings: Of the experiment, with the options for all methods that have an option of their own.
        out, methods, ranks, seeds, own, rates, as_json: As ``run_options``, ``rate_option`` and --json give them.
        train_one, train_grid, grid_table, grid_page: The experiment's.
        show_one: Makes the closing table of one result.
    """
    from deltaw.trainers.grid import GridError, grid_runs

    by_method = _by_method(own)
    if ranks and "rank" in by_method.get("", {}):
        raise click.UsageError("the rank is given by --rank and by --option; leave one of them out")
    settings = replace(
        settings, options=settings.options | by_method.pop("", {}), learning_rate=rates.get("", settings.learning_rate)
    )
    grid: dict[str, Any] = {"methods": methods, "ranks": ranks, "seeds": seeds or [0], "options": by_method}
    grid["rates"] = {method: rate for method, rate in rates.items() if method}
    runs = grid_runs(settings, **grid)
    if len(methods) == 1 and len(ranks) < 2 and len(seeds) < 2:
        result = train_one(next(iter(runs.values())), out, progress=not as_json)
        if as_json:
            emit_json(asdict(result))
            return
        click.echo(show_one(result))
        click.echo(f"recorded in {out}")
        return
    failures: dict[str, str] = {}
    try:
        results = train_grid(settings, out, **grid, progress=not as_json)
    except GridError as error:
        results, failures = error.results, error.failures
    table = grid_table(results)
    if as_json:
        emit_json({"results": [asdict(r) for r in results], "table": table.to_dict(orient="records")})
    elif results:
        click.echo(grid_page(table))
        click.echo(f"recorded in {out}, one folder a run; the table is in {out / 'results.csv'} and results.md")
    for name, reason in failures.items():
        click.echo(f"deltaw: {name} failed: {reason}", err=True)
    if failures:
        raise DeltawError(f"{len(failures)} of {len(runs)} runs failed; the same command tries them again")


def _by_method(given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Split every [METHOD:]NAME=VALUE; those for all methods stand under "".

    A value is read as JSON where it is JSON (20, true, null), else it is text.
    """
    found: dict[str, dict[str, Any]] = {}
    for text in given:
        before, equals, value = text.partition("=")
        method, _, name = before.rpartition(":")
        if not equals or not name:
            raise click.BadParameter(f"{text!r} is not NAME=VALUE or METHOD:NAME=VALUE", param_hint="--option")
        try:
            found.setdefault(method, {})[name] = json.loads(value)
        except ValueError:
            found.setdefault(method, {})[name] = value
    return found
