"""Rows of the tidy tables made ready for a figure, and what was left out on the way."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from deltaw.adapters.errors import OptionError
from deltaw.analysis.figures.drawing.style import Scale, check_range


def finite(rows: pd.DataFrame, columns: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows where all columns are finite, those as float64, and a note on the others.

    Raises:
        OptionError: There is no such row.
    """
    values = rows[list(columns)].astype("float64")
    kept = np.isfinite(values.to_numpy()).all(axis=1)
    if not kept.any():
        raise OptionError(f"no row has a finite {' and '.join(columns)}; there is nothing to draw")
    notes = [f"{(~kept).sum():,} of {kept.size:,} points are undefined and left out"] if not kept.all() else []
    return rows.assign(**{name: values[name] for name in columns})[kept], notes


NEAR = 5  # times: what is smaller than this below another is a flat line on its scale


def fitting_scale(values: "pd.Series[float]", methods: "pd.Series[str]") -> Scale:
    """Return the scale on which every method is seen: "log" where one is far above another, by its largest value.

    Arguments:
        values: What is drawn; none below 0 on a logarithmic scale.
        methods: Of each.

    Example:
        >>> methods = pd.Series(["lora", "ft"])
        >>> fitting_scale(pd.Series([4.0, 1.0]), methods), fitting_scale(pd.Series([40.0, 1.0]), methods)
        ('linear', 'log')
    """
    highest = values.groupby(methods.to_numpy()).max()
    highest = highest[highest > 0]
    if values.min() < 0 or highest.empty or highest.max() <= NEAR * highest.min() * (1 + 1e-9):
        return "linear"
    return "log"


def last_steps(rows: pd.DataFrame, column: str = "step") -> pd.DataFrame:
    """Return the rows of every run's last step."""
    return rows[rows[column] == rows.groupby(["run", "method"])[column].transform("max")]


def runs_note(rows: pd.DataFrame) -> list[str]:
    """Say over how many runs a method is averaged, where it is more than one."""
    runs = rows.groupby("method")["run"].nunique()
    most = int(runs.max())
    if most == 1:
        return []
    return [f"mean of {most} runs" if (runs == most).all() else f"mean of up to {most} runs per method"]


def one_value(rows: pd.DataFrame, column: str, wanted: float | None) -> pd.DataFrame:
    """Return the rows of one value of a setting; it must be named where the table has several.

    Raises:
        OptionError: The value is not in the table, or there are several and none is named; lists them.
    """
    there = sorted(rows[column].dropna().unique())
    listed = ", ".join(f"{value:g}" for value in there)
    if wanted is None:
        if len(there) > 1:
            raise OptionError(f"the table has several values of {column}: {listed}; choose one")
        return rows
    check_range(column, wanted, 0, float("inf"), f"one of {listed}")
    found = rows[np.isclose(rows[column].astype("float64"), wanted)]
    if found.empty:
        raise OptionError(f"{column} is {wanted:g}; the table has {listed}")
    return found
