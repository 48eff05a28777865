"""The table of training runs' results: scores, times, memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from deltaw.adapters.errors import RecordError
from deltaw.adapters.methods.registry import METHODS
from deltaw.analysis.records.run_folder.results import RESULT, has_result, read_result


def results(paths: Sequence[str | Path]) -> pd.DataFrame:
    """Return one row a training run, from tables of results and from run folders with their result.json.

    Arguments:
        paths: .csv files as `deltaw reproduce` writes them, run folders, or folders of run folders.

    Returns:
        What was found, with the columns method, rank and direction_rank in any case; empty where there is none.

    Raises:
        RecordError: A path is nothing of the kind; names it.
    """
    frames = []
    for path in map(Path, paths):
        if path.is_file() and path.suffix == ".csv":
            frames.append(_read_csv(path))
        elif has_result(path):
            frames.append(pd.DataFrame([_result(path)]))
        else:
            inside = sorted(path.glob(f"*/{RESULT}"))
            if not inside:
                raise RecordError(f"{path}: is no .csv file of results, and no run folder with {RESULT}")
            frames.append(pd.DataFrame([_result(one.parent) for one in inside]))
    frame = pd.concat(frames, ignore_index=True)
    for column in ("rank", "direction_rank"):
        frame[column] = (
            pd.to_numeric(frame[column]).astype("Int64") if column in frame else pd.array([pd.NA] * len(frame), "Int64")
        )
    # One rank for both groups is r₁ = r₂.
    dual = (frame["method"] == "dual-lora") & frame["direction_rank"].isna()
    return frame.assign(direction_rank=frame["direction_rank"].mask(dual, frame["rank"]))


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        frame = pd.read_csv(path)
    except (ValueError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: is no table ({error})") from None
    if "method" not in frame or not set(frame["method"]) & set(METHODS):
        raise RecordError(f"{path}: has no column method with methods' names; pass results.csv or runs.csv")
    return frame


def _result(folder: Path) -> dict[str, Any]:
    found = read_result(folder)
    if found is None or "options" not in found.settings:
        raise RecordError(f"{folder / RESULT}: is no result of a training run (it has no settings.options)")
    ranks = {name: found.options.get(name) for name in ("rank", "direction_rank")}
    return ranks | {key: value for key, value in found.values.items() if value is not None}
