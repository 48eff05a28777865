"""Short answers for a terminal: the means by kind and by layer of a table of every matrix, and what moved most."""

import functools
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import click

from deltaw.adapters.errors import OptionError
from deltaw.analysis.names import block_of, block_order
from deltaw.cli.commands import ListOption, OneOf, did_you_mean
from deltaw.cli.layout import fitted, wrapped
from deltaw.cli.output import emit, emit_json, in_columns, remark

if TYPE_CHECKING:
    import pandas as pd

    from deltaw.analysis.trajectory import Trajectory

ROWS = 10  # of a table in a summary
GROUPS = ("run", "method", "kind", "layer", "block", "module", "group", "pairs")
SHARES = (  # printed as percent
    *("zero_rows", "zero_columns", "noise", "error"),
    *("outside", "by_chance", "bfloat16", "float16", "float32", "path_not_taken"),
)
FEW = 4  # steps that a line names one by one
COUNT = "matrices"
EXPLAINED = {  # of the columns that say what a row is of
    "kind": "what the matrix does in its layer, by its name: query, key, value, output, up, down, …",
    "layer": "the first number in the module's name",
    "block": "the part of the model, up to the first number in the module's name",
    "group": "update: all of ΔW; magnitude, direction: the two parts that Dual LoRA makes it of",
    "pairs": "from where: consecutive, the checkpoint before; initial, the first checkpoint; base, W₀",
    COUNT: "how many the means of the row are over",
}


@dataclass(frozen=True)
class Shown:
    """Which rows of a table a verb prints.

    Arguments:
        by: The columns whose values make a row; empty for the usual ones, of which each gets a table of its own.
        sort: The column by which rows are sorted, largest first.
        top: So many rows of each table; ``None`` for the usual number, all where ``by`` is given.
        step: The step that is shown; ``None`` for each run's last.
        last: The last step is asked for by name.
        every: Print every row of the table instead.
        explain: Say what the columns are.
    """

    by: tuple[str, ...] = ()
    sort: str | None = None
    top: int | None = None
    step: int | None = None
    last: bool = False
    every: bool = False
    explain: bool = False


def shown_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb --by, --sort, --top, --step, --last, --all and --explain; its function gets them as ``shown``."""

    @functools.wraps(function)
    def call(*arguments: Any, **given: Any) -> Any:
        by, last, step = given.pop("by"), given.pop("last"), given.pop("step", None)
        every, explain = given.pop("every"), given.pop("explain")
        if last and (step is not None or given.get("steps")):
            raise click.UsageError("--last and --step contradict each other; leave one of them out")
        shown = Shown(tuple(by), given.pop("sort"), given.pop("top"), step, last, every, explain)
        return function(*arguments, shown=shown, **given)

    for option in reversed(
        [
            click.option(
                "--by",
                cls=ListOption,
                kind=OneOf(GROUPS),
                help="One row for each of: {names}. Default: run and kind, then run and layer.",
            ),
            click.option("--sort", metavar="COLUMN", help="Sort by a column of what is printed, largest first."),
            click.option("--top", type=click.IntRange(min=1), help=f"So many rows. Default: {ROWS}; all with --by."),
            click.option("--last", is_flag=True, help="The last step of each run: the default."),
            click.option("--all", "every", is_flag=True, help="Every row instead of a summary."),
            click.option("--explain", is_flag=True, help="Say what the columns are."),
        ]
    ):
        call = option(call)
    return call


def wanted_steps(steps: Sequence[int], all_steps: bool, shown: Shown) -> tuple[int, ...] | Literal["last"] | None:
    """Return which steps --step, --all-steps and --last ask for.

    Raises:
        click.UsageError: They contradict each other.
    """
    if all_steps and (steps or shown.last):
        raise click.UsageError(
            f"--all-steps and {'--step' if steps else '--last'} contradict each other; leave one out"
        )
    return None if all_steps else (tuple(steps) or "last")


def at_step(frame: "pd.DataFrame", column: str, step: int | None) -> "pd.DataFrame":
    """Return the rows of a step, or of each run's last.

    Raises:
        OptionError: There is no such step.
    """
    if step is None:
        return frame[frame[column] == frame.groupby("run", sort=False)[column].transform("max")]
    found = frame[frame[column] == step]
    if found.empty:
        there = sorted(int(value) for value in frame[column].unique())
        near = ", ".join(str(value) for value in sorted(there, key=lambda value: abs(value - step))[:4])
        raise OptionError(f"step {step} is not in the table; near it there are {near}")
    return found


def steps_text(runs: "Sequence[Trajectory]", steps: Iterable[int], before: str = "at ") -> str:
    """Return at which steps rows are: nothing where each run is one folder of weights, which has no steps."""
    if all(run.steps == [0] and run.source.format != "deltaw" for run in runs):
        return ""
    found = sorted({int(step) for step in steps})
    if len(found) > FEW:
        return f"{before}{len(found)} steps, {found[0]} to {found[-1]}"
    return f"{before}step{'s' if len(found) > 1 else ''} {', '.join(map(str, found))}"


def check_sort(shown: Shown, columns: Iterable[str]) -> None:
    """Raise where --sort names no column of a summary, before anything is computed.

    Raises:
        click.UsageError: It does.
    """
    if shown.sort is None or shown.every:
        return
    _known_column(shown.sort, [*GROUPS, "step", COUNT, *columns])


def _known_column(name: str, known: Iterable[str]) -> None:
    if name not in (names := list(map(str, known))):
        raise click.UsageError(f"--sort {name!r} {did_you_mean(name, names)}")


def emit_rows(frame: "pd.DataFrame", shown: Shown, as_json: bool, path: Any = None) -> None:
    """Print rows of a table one by one, as --all and --json do: grouped by --by, sorted, the first so many.

    Names are whole where the table goes into a pipe, and shortened to the width of a terminal.
    """
    if by := [name for name in shown.by if name in frame]:
        places = {name: {value: place for place, value in enumerate(frame[name].unique())} for name in by}
        frame = frame.sort_values(by, key=lambda column: column.map(places[str(column.name)]), kind="stable")
    if shown.sort is not None:
        _known_column(shown.sort, frame.columns)
        frame = _sorted(frame, shown.sort)
    rows = [{str(name): cell for name, cell in row.items()} for row in frame.to_dict(orient="records")]
    left = len(rows) - len(rows := rows[: shown.top])
    if as_json:
        emit_json(rows)
        return
    rows = [{name: _cell("", cell) for name, cell in row.items()} for row in rows]
    narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
    emit(fitted(rows) if narrow else in_columns(rows, floatfmt=".4g", missingval=""))
    if left:
        emit(f"… and {left} more")
    if path is not None:
        remark(f"written to {path}")


def _sorted(frame: "pd.DataFrame", column: str) -> "pd.DataFrame":
    text = frame[column].dtype.kind not in "biufc"
    return frame.sort_values(column, ascending=text, kind="stable")


def emit_summary(
    wide: "pd.DataFrame",
    columns: Mapping[str, str],
    shown: Shown,
    what: str,
    *,
    total: int,
    path: Any = None,
) -> None:
    """Print the means of some columns by kind and by layer.

    Arguments:
        wide: One row a matrix: the labels, and the columns.
        columns: What each column means, by its name; only these are printed.
        shown: What the user asked for.
        what: What the rows are of, as "ΔM and ΔD since step 0, to step 80".
        total: The rows of the whole table.
        path: The file that it was written to.
    """
    names = wide["run"].unique()
    single = len(names) == 1 and "run" not in shown.by
    usual = [("kind",), ("layer",)] if single else [("run", "kind"), ("run", "layer")]
    several = [name for name in ("pairs", "group", "step") if name in wide and wide[name].nunique() > 1]
    if "step" in several and wide.groupby("run")["step"].nunique().max() == 1:
        several.remove("step")  # the last of each run
    groups = [(*by, *(name for name in several if name not in by)) for by in ([shown.by] if shown.by else usual)]
    if missing := [name for name in shown.by if name not in wide and name != "block"]:
        raise OptionError(f"--by {missing[0]}: this table has no such column; there are {', '.join(wide.columns)}")
    if single or "run" not in groups[0]:
        what = f"{names[0] if single else f'{len(names)} runs together'}: {what}"
    emit(wrapped(what))
    if "block" in shown.by:
        import pandas as pd

        blocks = sorted(wide["module"].unique(), key=block_order)
        order = pd.CategoricalDtype(list(dict.fromkeys(map(block_of, blocks))))
        wide = wide.assign(block=wide["module"].map(block_of).astype(order))
    labels: dict[str, None] = {}
    for by in groups:
        rows, left = _means(wide, by, list(columns), shown)
        if len(rows) == 0 or (not shown.by and rows[0].get("layer", 0) is None):
            continue
        labels |= dict.fromkeys(rows[0])
        emit("")
        emit(fitted(rows))
        if left:
            emit(f"… and {left} more: --top {len(rows) + left}, or --all for every matrix and step")
    emit("")
    if shown.explain:
        told = {name: EXPLAINED[name] for name in labels if name in EXPLAINED} | dict(columns)
        emit("\n".join(wrapped(f"{name}: {meaning}", "    ") for name, meaning in told.items()))
    written = f"{path} has" if path is not None else "-o FILE writes"
    emit(f"{written} all {total} rows" + ("" if shown.explain else "; --explain says what the columns are"))


def _means(
    wide: "pd.DataFrame", by: Sequence[str], columns: Sequence[str], shown: Shown
) -> tuple[list[dict[str, Any]], int]:
    """Return a row a group, with how many matrices it holds, and how many rows are left out."""
    grouped = wide.groupby(list(by), dropna=False, sort="block" in by, observed=True)
    table = grouped[list(columns)].mean()
    table.insert(0, COUNT, grouped["module"].nunique())
    table = table.reset_index()
    if "layer" in by and shown.sort is None:  # the modules of a file may be in the order of their names
        runs = {name: place for place, name in enumerate(table["run"].unique())} if "run" in by else {}
        keys = [
            (runs.get(row.get("run"), 0), math.inf if _cell("", row["layer"]) is None else row["layer"])
            for row in table.to_dict("records")
        ]
        table = table.iloc[sorted(range(len(table)), key=keys.__getitem__)]
    if shown.sort is not None:
        # One of the usual tables lacks the other's label: it stays as it is.
        if shown.sort in table:
            table = _sorted(table, shown.sort)
        elif shown.by:
            _known_column(shown.sort, table.columns)
    count = shown.top or (len(table) if shown.by else ROWS)
    names = [str(name) for name in table.columns]
    kept = table.head(count).itertuples(index=False, name=None)
    rows = [{name: _cell(name, value) for name, value in zip(names, row, strict=True)} for row in kept]
    return rows, len(table) - len(rows)


def _cell(name: str, value: Any) -> Any:
    """A missing layer or kind as nothing at all, a share as percent."""
    missing = type(value).__name__ == "NAType" or (isinstance(value, float) and math.isnan(value))
    if missing:
        return None
    if name in SHARES:
        return f"{100 * value:.3g} %"
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e6 else value
