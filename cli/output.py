"""Printing and writing tables, the same for every verb."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pandas as pd
from tabulate import tabulate

from deltaw.adapters.errors import OptionError
from deltaw.analysis.records.atomic import atomic_write

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
BASE_HELP = "W₀, where a run does not hold it: a folder, or a name in Hugging Face's cache."
base_option = click.option("--base", help=BASE_HELP)
out_option = click.option(
    "-o", "--out", "path", type=click.Path(path_type=Path), help="Write the whole table here: .csv, .parquet or .json."
)


def emit_json(value: Any) -> None:
    """Print a value as JSON; NaN and infinity, which JSON lacks, as null."""
    click.echo(json.dumps(_plain(value), indent=1))


def emit_table(frame: pd.DataFrame, as_json: bool, path: Path | None, note: str = "") -> None:
    """Print a table, and write it to a file where one is named."""
    if path is not None:
        write_table(frame, path)
    if as_json:
        emit_json(frame.to_dict(orient="records"))
        return
    click.echo(tabulate(frame.to_dict(orient="records"), headers="keys", floatfmt=".4g", missingval=""))
    if note:
        click.echo(note)
    if path is not None:
        click.echo(f"written to {path}")


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write a table by its suffix, aside and then renamed.

    Raises:
        OptionError: The suffix is none of .csv, .parquet, .json, or parquet's library is missing.
    """
    writers: dict[str, Callable[[Path], object]] = {
        ".csv": lambda aside: frame.to_csv(aside, index=False),
        ".json": lambda aside: aside.write_text(json.dumps(_plain(frame.to_dict(orient="records")))),
        ".parquet": lambda aside: frame.to_parquet(aside, index=False),
    }
    if path.suffix not in writers:
        raise OptionError(f"{path}: tables are written as {', '.join(writers)}, not {path.suffix!r}")
    try:
        with atomic_write(path) as aside:
            writers[path.suffix](aside)
    except ImportError:
        raise OptionError(f"{path}: parquet needs pyarrow: pip install pyarrow, or write .csv") from None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value.item() if hasattr(value, "item") else value
