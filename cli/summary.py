"""Short answers for a terminal: the means by kind and by layer of a table of every matrix, and what moved most."""

import functools
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import click

from deltaw.adapters.errors import OptionError
from deltaw.analysis.names import block_of, block_order
from deltaw.analysis.printable import printable
from deltaw.cli.commands import ListOption
from deltaw.cli.output import emit, in_columns

if TYPE_CHECKING:
    import pandas as pd

ROWS = 10  # of a table in a summary
GROUPS = ("run", "method", "kind", "layer", "block", "module", "group", "pairs")
SHARES = (  # printed as percent
    *("zero_rows", "zero_columns", "noise", "error"),
    *("outside", "by_chance", "bfloat16", "float16", "float32", "path_not_taken"),
)
NARROW = 24  # the least a column of texts is shortened to
MARGIN = 2  # between columns


@dataclass(frozen=True)
class Shown:
    """Which rows of a table a verb prints.

    Arguments:
        by: The columns whose values make a row; empty for the usual ones, of which each gets a table of its own.
        sort: The column by which rows are sorted, largest first.
        top: So many rows of each table; ``None`` for the usual number, all where ``by`` is given.
        step: The step that is shown; ``None`` for each run's last.
        every: Print every row of the table instead.
        explain: Say what the columns are.
    """

    by: tuple[str, ...] = ()
    sort: str | None = None
    top: int | None = None
    step: int | None = None
    every: bool = False
    explain: bool = False


def shown_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb --by, --sort, --top, --step, --last, --all and --explain; its function gets them as ``shown``."""

    @functools.wraps(function)
    def call(*arguments: Any, **given: Any) -> Any:
        by, last, step = given.pop("by"), given.pop("last"), given.pop("step", None)
        every, explain = given.pop("every"), given.pop("explain")
        if last and step is not None:
            raise click.UsageError("--last and --step contradict each other; leave one of them out")
        if unknown := [name for name in by if name not in GROUPS]:
            raise click.UsageError(f"--by {unknown[0]!r} is not one of {', '.join(GROUPS)}")
        shown = Shown(tuple(by), given.pop("sort"), given.pop("top"), step, every, explain)
        return function(*arguments, shown=shown, **given)

    for option in reversed(
        [
            click.option(
                "--by",
                cls=ListOption,
                kind=click.STRING,
                help=f"One row for each of: {', '.join(GROUPS)}. Default: run and kind, then run and layer.",
            ),
            click.option("--sort", metavar="COLUMN", help="Sort by a column of what is printed, largest first."),
            click.option("--top", type=click.IntRange(min=1), help=f"So many rows. Default: {ROWS}."),
            click.option("--last", is_flag=True, help="The last step of each run: the default."),
            click.option("--all", "every", is_flag=True, help="Every row instead of a summary."),
            click.option("--explain", is_flag=True, help="Say what the columns are."),
        ]
    ):
        call = option(call)
    return call


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
    usual = [("run", "kind"), ("run", "layer")]
    several = [name for name in ("pairs", "group", "step") if name in wide and wide[name].nunique() > 1]
    if "step" in several and wide.groupby("run")["step"].nunique().max() == 1:
        several.remove("step")  # the last of each run
    groups = [(*by, *(name for name in several if name not in by)) for by in ([shown.by] if shown.by else usual)]
    emit(what)
    if "block" in shown.by:
        import pandas as pd

        blocks = sorted(wide["module"].unique(), key=block_order)
        order = pd.CategoricalDtype(list(dict.fromkeys(map(block_of, blocks))))
        wide = wide.assign(block=wide["module"].map(block_of).astype(order))
    for by in groups:
        known = [name for name in by if name in wide]
        if missing := [name for name in by if name not in wide]:
            raise OptionError(f"--by {missing[0]}: this table has no such column; there are {', '.join(wide.columns)}")
        rows, left = _means(wide, known, list(columns), shown)
        if len(rows) == 0 or (not shown.by and known[1] == "layer" and rows[0].get("layer") is None):
            continue
        emit("")
        emit(fitted(rows))
        if left:
            emit(f"… and {left} more: --top {len(rows) + left}, or --all for every matrix and step")
    emit("")
    if shown.explain:
        emit("\n".join(f"{name}: {meaning}" for name, meaning in columns.items()))
    written = f"{path} has" if path is not None else "-o FILE writes"
    emit(f"{written} all {total} rows; --explain says what the columns are")


def _means(
    wide: "pd.DataFrame", by: Sequence[str], columns: Sequence[str], shown: Shown
) -> tuple[list[dict[str, Any]], int]:
    """Return a row a group, with how many matrices it holds, and how many rows are left out."""
    grouped = wide.groupby(list(by), dropna=False, sort="block" in by, observed=True)
    table = grouped[list(columns)].mean()
    table.insert(0, "matrices", grouped["module"].nunique())
    table = table.reset_index()
    if "layer" in by and shown.sort is None:  # the modules of a file may be in the order of their names
        runs = {name: place for place, name in enumerate(table["run"].unique())} if "run" in by else {}
        keys = [
            (runs.get(row.get("run"), 0), math.inf if _cell("", row["layer"]) is None else row["layer"])
            for row in table.to_dict("records")
        ]
        table = table.iloc[sorted(range(len(table)), key=keys.__getitem__)]
    if shown.sort is not None:
        if shown.sort not in table:
            raise OptionError(f"--sort {shown.sort!r}: choose one of {', '.join(map(str, table.columns))}")
        table = table.sort_values(shown.sort, ascending=table[shown.sort].dtype == object, kind="stable")
    count = shown.top or (len(table) if shown.by else ROWS)
    names = [str(name) for name in table.columns]
    shortened = table.head(count).itertuples(index=False, name=None)
    rows = [{name: _cell(name, value) for name, value in zip(names, row, strict=True)} for row in shortened]
    return rows, len(table) - len(rows)


def _cell(name: str, value: Any) -> Any:
    """A missing layer or kind as nothing at all, a share as percent."""
    missing = type(value).__name__ == "NAType" or (isinstance(value, float) and math.isnan(value))
    if missing:
        return None
    if name in SHARES:
        return f"{100 * value:.3g} %"
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e6 else value


def fitted(rows: Iterable[Mapping[str, Any]], width: int | None = None) -> str:
    """Return a table no wider than the terminal: long texts lose what they all begin with, and then their middle.

    Example:
        >>> print(fitted([{"module": f"encoder.layer.{i}.attention.query", "rank": 8} for i in range(2)], width=35))
        module                rank
        ------------------  ------
        …0.attention.query       8
        …1.attention.query       8
    """
    # Printable first: an escaped name is longer than the name, and not to be cut within.
    listed = [{key: printable(cell) if isinstance(cell, str) else cell for key, cell in row.items()} for row in rows]
    width = width or shutil.get_terminal_size((110, 24)).columns
    text = in_columns(listed, floatfmt=".3g", missingval="")
    if listed and "module" in listed[0] and max(map(len, text.splitlines())) > width:
        names = [str(row["module"]) for row in listed]
        shared = _beginning(names)
        if shared:
            listed = [row | {"module": "…" + row["module"][len(shared) + 1 :]} for row in listed]
        text = in_columns(listed, floatfmt=".3g", missingval="")
    while listed and max(map(len, text.splitlines())) > width:
        over = max(map(len, text.splitlines())) - width
        longest = _longest_texts(listed)
        if longest is None:
            break
        name, size = longest
        target = max(NARROW, size - over)
        for row in listed:
            row[name] = _shortened(str(row[name]), target) if row[name] is not None else None
        text = in_columns(listed, floatfmt=".3g", missingval="")
    return text


def _beginning(names: Sequence[str]) -> str:
    """Return the parts of dotted names that all begin with.

    Example:
        >>> _beginning(["a.b.0.query", "a.b.10.query"])
        'a.b'
    """
    alike = takewhile(lambda parts: len(set(parts)) == 1, zip(*(name.split(".")[:-1] for name in names), strict=False))
    return ".".join(parts[0] for parts in alike)


def _longest_texts(rows: Sequence[Mapping[str, Any]]) -> tuple[str, int] | None:
    sizes = {
        name: max(len(str(row[name])) for row in rows)
        for name in rows[0]
        if any(isinstance(row[name], str) for row in rows)
    }
    name = max(sizes, key=sizes.__getitem__, default=None)
    return None if name is None or sizes[name] <= NARROW else (name, sizes[name])


def _shortened(text: str, length: int) -> str:
    """Return a text without its middle.

    Example:
        >>> _shortened("layers.0.attention.query", 11)
        'layer…query'
    """
    if len(text) <= length:
        return text
    half = (length - 1) // 2
    return f"{text[: length - 1 - half]}…{text[len(text) - half :]}"
