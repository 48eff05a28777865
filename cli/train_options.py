"""Shared by the training verbs: lists of methods, ranks and seeds, options by method, one run or a grid of them."""

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
from deltaw.analysis.workers.early import import_early, usable_cores
from deltaw.cli.commands import ListOption, did_you_mean, session
from deltaw.cli.options import METHOD, Decorator, folder_option
from deltaw.cli.output import complain, emit, emit_json, going_on, progress, remark

# Where GaLore's package is installed, transformers imports bitsandbytes, which warns of kernels that nothing here uses.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

# The libraries of deltaw[train] that every training needs.
TRAINING = ("transformers", "accelerate")

# What a process imports to train on CoLA, or on pictures, by the modules that import it or are imported late. This file
# is the first, as it silences a library.
_EVERY = (__name__, "deltaw.adapters.compiled.norms")
OF_COLA = (*_EVERY, "deltaw.trainers.cola.grid", "transformers.models.roberta.modeling_roberta", "sklearn.metrics")
OF_VL = (*_EVERY, "deltaw.trainers.vl.grid", "transformers.models.bart.modeling_bart")


def rate_option(default: str) -> Decorator:
    """Return --lr, repeated as [METHOD:]VALUE; it comes as a dictionary, where that of all methods stands under "".

    Arguments:
        default: What the help says of it.
    """

    def callback(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> dict[str, float]:
        kind: Any = click.FLOAT
        found = {}
        for text in given:
            method, colon, value = text.rpartition(":")
            name = _known(method, context, option) if colon else ""
            found[name] = kind.convert(value, option, context)
        return found

    return click.option(
        "--lr",
        "learning_rate",
        multiple=True,
        callback=callback,
        metavar="[METHOD:]FLOAT",
        help=f"Of all methods, or of one alone; may be repeated. Default: {default}",
    )


def _known(method: str, context: click.Context, option: click.Parameter) -> str:
    """Return the name of a method before a colon as it is."""
    if method not in METHODS:
        said = f"there is no method {method!r}: it {did_you_mean(method, METHODS)}"
        raise click.BadParameter(said, context, option)
    return method


def own_option(metavar: str, help: str) -> Decorator:
    """Return --option, repeated as [METHOD:]NAME=VALUE; it comes as a dictionary by method, those of all under "".

    A value is read as JSON where it is JSON (20, true, null), else it is text.

    Arguments:
        metavar: Whether METHOD: may stand before the name.
    """

    def callback(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for text in given:
            before, equals, value = text.partition("=")
            method, colon, name = before.rpartition(":") if ":" in metavar else ("", "", before)
            if not equals or not name:
                raise click.BadParameter(f"{text!r} is not {metavar}", context, option)
            options = found.setdefault(_known(method, context, option) if colon else "", {})
            try:
                options[name] = json.loads(value)
            except ValueError:
                options[name] = value
        return found

    return click.option("--option", "own", multiple=True, callback=callback, metavar=metavar, help=help)


def rates_in_words(full: float, adapters: float) -> str:
    """Return what the help says of the default learning rates.

    Example:
        >>> rates_in_words(2e-5, 4e-4)
        '4e-4 (adapters) or 2e-5 (ft, galore); built-in has its own.'
    """
    of_adapters, of_full = (f"{rate:.0e}".replace("e-0", "e-") for rate in (adapters, full))
    return f"{of_adapters} (adapters) or {of_full} (ft, galore); built-in has its own."


def run_options(rank: str) -> Decorator:
    """Return a decorator with what says which runs are trained, and where to.

    Arguments:
        rank: The help's default for --rank.
    """
    options: list[Decorator] = [
        click.option(
            "--method", "methods", cls=ListOption, kind=METHOD, required=True, help="One or several of: {names}."
        ),
        click.option("--rank", "ranks", cls=ListOption, kind=click.INT, help=f"Of the adapters. Default: {rank}."),
        seed_option,
        folder_option("The run folder, or the grid's."),
        click.option(
            "--advice",
            type=click.Path(path_type=Path, dir_okay=False),
            help="Targets, with the rank and alpha of each, from a file that deltaw advise has written.",
        ),
        own_option("[METHOD:]NAME=VALUE", "Another option of the methods, or of one of them alone; may be repeated."),
        jobs_option(),
    ]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


seed_option = click.option("--seed", "seeds", cls=ListOption, kind=click.INT, help="Default: 0.")


JOBS = "Runs trained side by side, with the same results. Default: {}."
BY_MODEL = "one a core with the built-in model, else one"


def jobs_option(default: str = BY_MODEL) -> Decorator:
    """Return --jobs.

    Arguments:
        default: What the help says of it.
    """
    return click.option("--jobs", type=click.IntRange(1), help=JOBS.format(default))


def import_for_runs(modules: Sequence[str], runs: int, jobs: int | None, model: str | None, out: Path) -> None:
    """Have a process begin to import what those of runs side by side need, before this one does, for itself.

    Arguments:
        modules: ``OF_COLA`` or ``OF_VL``, or both.
        runs: How many there are.
        jobs: That of --jobs; ``None`` for the default.
        model: That of --model; ``None`` for the built-in one.
        out: The folder, with perhaps finished runs in it.
    """
    done = sum(1 for depth in ("*", "*/*") for _ in out.glob(f"{depth}/result.json"))
    if session().alone and runs - done > 1 and (jobs or (usable_cores() if model is None else 1)) > 1:
        import_early(*modules)


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


def _advised(settings: Any, advice: Path, ranks: Sequence[int]) -> Any:
    """Return the settings with the targets, ranks and alphas of a file of advice."""
    from deltaw.analysis.advice.config import read_advice

    for given, option in (
        (ranks, "--rank"),
        (settings.targets, "--targets"),
        (settings.options.get("alpha"), "--alpha"),
    ):
        if given:
            raise click.UsageError(f"--advice and {option} contradict each other; leave one of them out")
    modules = {name: asdict(of) for name, of in read_advice(advice).items()}
    return replace(settings, advice=modules, targets=tuple(modules))


def train_runs(
    settings: Any,
    out: Path,
    *,
    methods: Sequence[str],
    ranks: Sequence[int],
    seeds: Sequence[int],
    advice: Path | None,
    own: dict[str, dict[str, Any]],
    jobs: int | None,
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
        out, methods, ranks, seeds, advice, own, jobs, rates, as_json: As ``run_options``, ``rate_option`` and --json
            give them.
        train_one, train_grid, grid_table, grid_page: The experiment's.
        show_one: Makes the closing table of one result.
    """
    from deltaw.trainers.grid import GridError, grid_runs
    from deltaw.trainers.side_by_side import default_jobs

    by_method = dict(own)
    if ranks and "rank" in by_method.get("", {}):
        raise click.UsageError("the rank is given by --rank and by --option; leave one of them out")
    settings = replace(
        settings, options=settings.options | by_method.pop("", {}), learning_rate=rates.get("", settings.learning_rate)
    )
    if advice is not None:
        settings = _advised(settings, advice, ranks)
    grid: dict[str, Any] = {"methods": methods, "ranks": ranks, "seeds": seeds or [0], "options": by_method}
    grid["rates"] = {method: rate for method, rate in rates.items() if method}
    runs = grid_runs(settings, **grid)
    if len(methods) == 1 and len(ranks) < 2 and len(seeds) < 2:
        with going_on(out):
            result = train_one(next(iter(runs.values())), out, progress=progress(as_json))
        if as_json:
            emit_json(asdict(result))
            return
        emit(show_one(result))
        remark(f"recorded in {out}")
        return
    failures: dict[str, str] = {}
    try:
        with going_on(out):
            results = train_grid(
                settings, out, **grid, progress=progress(as_json), jobs=jobs or default_jobs(settings.model)
            )
    except GridError as error:
        results, failures = error.results, error.failures
    table = grid_table(results)
    if as_json:
        emit_json({"results": [asdict(r) for r in results], "table": table.to_dict(orient="records")})
    elif results:
        emit(grid_page(table))
        remark(f"recorded in {out}, one folder a run; the table is in {out / 'results.csv'} and results.md")
    for name, reason in failures.items():
        complain(f"{name} failed: {reason}", 1)
    if failures:
        raise DeltawError(f"{len(failures)} of {len(runs)} runs failed; the same command tries them again")
