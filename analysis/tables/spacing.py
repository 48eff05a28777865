"""How far apart checkpoints are, in words: what ΔM and ΔD between them depend on."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from deltaw.analysis.tables.run import Run


def spacing(runs: Iterable[Sequence[int]]) -> str:
    """Return how many training steps lie between the checkpoints of some runs; "" where no run has two.

    A last checkpoint that comes early, as training ended between two others, does not count.

    Arguments:
        runs: The steps of each run, in order.

    Example:
        >>> spacing([[0, 20, 40, 60, 64]]), spacing([[0, 1, 10, 100], [0, 5]])
        ('every 20 steps', '1 to 90 steps apart')
    """
    gaps: set[int] = set()
    for steps in runs:
        between = [int(gap) for gap in np.diff(np.asarray(steps, dtype=np.int64))]
        early = len(between) > 1 and between[-1] < min(between[:-1])
        gaps |= set(between[:-1] if early else between)
    if not gaps:
        return ""
    low, high = min(gaps), max(gaps)
    if low < high:
        return f"{low:,} to {high:,} steps apart"
    return "every step" if low == 1 else f"every {low:,} steps"


def told(frame: pd.DataFrame, runs: Sequence[Run]) -> pd.DataFrame:
    """Return a table with what a figure says of it and its rows do not, in ``attrs``: spacing and seeds of its runs.

    Arguments:
        frame: A table of some of the runs' checkpoints.
        runs: Opened runs. The seed is that of a run's settings, where it was trained by `deltaw train`.
    """
    frame.attrs["spacing"] = spacing([run.steps for run in runs])
    settings = [run.source.info.get("settings") for run in runs]
    seeds = [found.get("seed") if isinstance(found, dict) else None for found in settings]
    known = sorted({seed for seed in seeds if isinstance(seed, int)})
    if known and None not in seeds:
        first = ", ".join(map(str, known[:-1]))
        frame.attrs["seeds"] = f"seeds {first} and {known[-1]}" if first else f"seed {known[0]}"
    return frame


def spacing_of(frame: pd.DataFrame, *columns: str) -> str:
    """Return the spacing of the checkpoints in a table: what its ``attrs`` say, else that of its own steps.

    Arguments:
        frame: Its runs stand in the column ``run``, or the whole table is one.
        columns: Those that hold steps.
    """
    said = frame.attrs.get("spacing")
    if isinstance(said, str):
        return said
    keys = [frame[name] for name in ("run", "method") if name in frame]
    groups = [found for _, found in frame.groupby(keys, sort=False)] if keys else [frame]
    return spacing(
        sorted({int(step) for name in columns for step in found[name].dropna().unique()}) for found in groups
    )
