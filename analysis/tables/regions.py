"""Which part of every update is not zero."""

from collections.abc import Sequence
from typing import Any, Unpack

import pandas as pd

from deltaw.analysis.tables.run import LABELS, Run, Steps
from deltaw.analysis.tables.stop import Stop
from deltaw.analysis.tables.walk import Walk, at_steps
from deltaw.analysis.tables.work import How, work_from

_COLUMNS = ["out", "in", "moved_rows", "moved_columns", "untouched_rows", "untouched_columns", "untouched_weights"]


def regions_table(
    runs: Sequence[Run],
    steps: Steps = "last",
    modules: Sequence[str] | None = None,
    *,
    progress: bool = False,
    **work: Unpack[How],
) -> pd.DataFrame:
    """Return one row a matrix: its shape, and how much of ΔW is not zero.

    Arguments:
        runs: Opened runs.
        steps: These steps, "last" for each run's last, ``None`` for all.
        modules: Glob patterns over the recorded modules; ``None`` for all.
        progress: Show a progress bar.
        device, jobs, engine, address, cache: As in `Work`, the last ``False`` by default; or ``work``, one of those.

    Returns:
        A table with the columns run, method, module, layer, kind, step, out, in, moved_rows, moved_columns (how many
        are not zero), untouched_rows, untouched_columns, untouched_weights (shares that are).

    Source:
        SBoRA, §3.2.
    """
    walk = Walk(runs, "regions", at_steps(steps), modules, progress=progress, work=work_from(work))
    return walk.frame(walk.rows(_of_step), [*LABELS, "step", *_COLUMNS])


def _of_step(stop: Stop) -> list[dict[str, Any]]:
    zero = stop.run.update(stop.module, stop.step) == 0  # (out, in)
    moved_rows, moved_columns = int((~zero).any(1).sum()), int((~zero).any(0).sum())
    out_features, in_features = zero.shape
    return [
        stop.labels
        | {"step": stop.step, "out": out_features, "in": in_features}
        | {"moved_rows": moved_rows, "moved_columns": moved_columns}
        | {
            "untouched_rows": 1 - moved_rows / out_features,
            "untouched_columns": 1 - moved_columns / in_features,
            "untouched_weights": int(zero.sum()) / zero.numel(),
        }
    ]
