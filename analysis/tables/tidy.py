"""Picking rows out of the tidy tables, and the methods' order and display names."""

from collections.abc import Iterable, Sequence

import pandas as pd

from deltaw.adapters.errors import OptionError
from deltaw.adapters.methods.registry import METHODS, title


def display_name(method: str) -> str:
    """Return the method's name as the papers write it; an unknown one stays as it is.

    Example:
        >>> display_name("dora-row"), display_name("mine")
        ('DoRA (row)', 'mine')
    """
    return title(method)


def in_order(methods: Iterable[str]) -> list[str]:
    """Return the methods, each once, in the order of ``METHODS``; unknown ones last, by name.

    Example:
        >>> in_order(["bora", "mine", "ft", "bora"])
        ['ft', 'bora', 'mine']
    """
    place = {name: index for index, name in enumerate(METHODS)}
    return sorted(set(methods), key=lambda name: (place.get(name, len(place)), name))


def require_columns(frame: pd.DataFrame, columns: Sequence[str], source: str) -> None:
    """Check that a table has the columns and at least one row.

    Arguments:
        frame: The table.
        columns: The names it must have.
        source: What makes such a table, for the message.

    Raises:
        OptionError: It is no table, a column is missing, or the table has no rows.
    """
    if not isinstance(frame, pd.DataFrame):
        raise OptionError(f"the table is {type(frame).__name__}; pass what {source} returns, a pandas.DataFrame")
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise OptionError(f"the table has no column {', '.join(missing)}; pass what {source} returns")
    if frame.empty:
        raise OptionError(f"the table has no rows; pass what {source} returns for a run that has enough steps recorded")


def require_several_starts(frame: pd.DataFrame, source: str) -> None:
    """Check that no run's changes all start from one step, as those since the start do; a single change may.

    Raises:
        OptionError: They do; the message names the run.
    """
    starts = frame.groupby(["run", "method"]).agg({"step_from": _number, "step_to": _number})
    for run, method in starts[(starts["step_to"] > 1) & (starts["step_from"] == 1)].index:
        raise OptionError(f"all changes of {run} ({method}) start from one step; pass what {source} returns")


def require_one_start(frame: pd.DataFrame, source: str) -> None:
    """Check that every run's changes start from one step.

    Raises:
        OptionError: They start from several, or two runs have one name; the message names the run.
    """
    starts = frame.groupby(["run", "method"]).agg({"step_from": _number})
    for run, method in starts[starts["step_from"] > 1].index:
        raise OptionError(
            f"the changes of {run} ({method}) start from several steps; pass what {source} returns, "
            "and give runs different names"
        )


def of_kind(frame: pd.DataFrame, kind: str | None) -> pd.DataFrame:
    """Return the rows of one kind of matrix; ``None`` for all.

    Raises:
        OptionError: The table has no matrix of this kind; the message lists the kinds there are.
    """
    if kind is None:
        return frame
    if not isinstance(kind, str):
        raise OptionError(f"kind is {kind!r}; pass one as a string, or None for all")
    rows = frame[frame["kind"] == kind]
    if rows.empty:
        raise OptionError(f"there is no matrix of kind {kind!r}; there are {', '.join(_values(frame['kind']))}")
    return rows


def of_methods(frame: pd.DataFrame, methods: Sequence[str] | None) -> list[str]:
    """Return the methods to show: the given ones in the given order, or all of the table in the usual order.

    Raises:
        OptionError: A given method is not in the table; the message lists those that are.
    """
    there = in_order(frame["method"])
    if methods is None:
        return there
    chosen = listed("methods", methods)
    for name in chosen:
        if name not in there:
            raise OptionError(f"the table has no method {name!r}; there are {', '.join(there)}")
    if not chosen:
        raise OptionError(f"methods is empty; there are {', '.join(there)}")
    return chosen


def listed(option: str, value: Iterable[str] | str) -> list[str]:
    """Return strings, each once: one, or several in their order.

    Raises:
        OptionError: They are something else; names the option.

    Example:
        >>> listed("methods", "lora"), listed("methods", ["lora", "ft", "lora"])
        (['lora'], ['lora', 'ft'])
    """
    values = [value] if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [value]
    for one in values:
        if not isinstance(one, str):
            raise OptionError(f"{option} is {value!r}; pass a list of strings, or None")
    return list(dict.fromkeys(values))


def select(frame: pd.DataFrame, kind: str | None, methods: Sequence[str] | None) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows of a kind and of some methods, and the methods in order.

    Raises:
        OptionError: The kind or a method is not in the table, or one of the methods has no matrix of this kind.
    """
    chosen = of_methods(frame, methods)
    frame = frame[frame["method"].isin(chosen)]
    rows = of_kind(frame, kind)
    for name in chosen:
        if not (rows["method"] == name).any():
            kinds = ", ".join(_values(frame.loc[frame["method"] == name, "kind"]))
            raise OptionError(
                f"{name} has no matrix of kind {kind!r}, only {kinds}; choose another kind, or leave the method out"
            )
    return rows, chosen


def _values(column: "pd.Series[str]") -> list[str]:
    return sorted(str(value) for value in column.dropna().unique())


def _number(column: "pd.Series[int]") -> int:
    return column.nunique(dropna=False)  # a missing step is the base
