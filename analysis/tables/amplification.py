"""LoRA's amplification factor of every update."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch

from deltaw.analysis.measures.amplification import amplification
from deltaw.analysis.measures.threads import one_thread
from deltaw.analysis.tables.run import LABELS, Run, Steps
from deltaw.analysis.tables.stop import Stop
from deltaw.analysis.tables.subspaces import checked_ranks
from deltaw.analysis.tables.updates import update_at
from deltaw.analysis.tables.walk import Walk, at_steps
from deltaw.analysis.tables.work import How, work_from

_NUMBERS = ["weight_norm", "update_norm", "share", "projected", "projected_own", "projected_random"]


def amplification_table(
    runs: Sequence[Run],
    *,
    ranks: Sequence[int] = (4,),
    steps: Steps = "last",
    modules: Sequence[str] | None = None,
    progress: bool = False,
    **work: Unpack[How],
) -> pd.DataFrame:
    """Return LoRA's amplification factor of every module, step and rank, with what it is compared with.

    Arguments:
        runs: Opened runs.
        ranks: The numbers r of directions of ΔW.
        steps, modules, progress, device, …: As in `singular_values`.

    Returns:
        One row each: run, method, module, layer, kind, step, rank, directions (how many ΔW has), weight_norm,
        update_norm, share, projected, projected_own, projected_random, amplification; see `Amplification`. The
        numbers are NaN where ΔW has fewer than r directions.

    Raises:
        OptionError: No run, no such step, or a rank below 1 or above the matrix' size.
        NonFiniteError: A weight holds NaN or infinity; names module and step.

    Source:
        Hu et al. 2022 (LoRA), section 7.3, table 7.
    """
    walk = Walk(runs, "amplification", at_steps(steps), modules, progress=progress, work=work_from(work))
    rows = walk.rows(partial(_of_step, ranks=ranks))
    return walk.frame(rows, [*LABELS, "step", "rank", "directions", *_NUMBERS, "amplification"])


def _of_step(stop: Stop, ranks: Sequence[int]) -> list[dict[str, Any]]:
    base = stop.once("base", partial(stop.run.base, stop.module))
    with one_thread():
        own = stop.once("own", partial(torch.linalg.svdvals, base.double()))
    moved = update_at(stop).directions()
    rows = []
    for rank in checked_ranks(ranks, moved, stop.module):
        row = stop.labels | {"step": stop.step, "rank": int(rank), "directions": moved.count}
        if rank <= moved.count:
            found = amplification(base, moved, int(rank), singular_values=own)
            row |= {name: getattr(found, name) for name in _NUMBERS} | {"amplification": found.factor}
        else:
            row |= dict.fromkeys([*_NUMBERS, "amplification"], np.nan)
        rows.append(row)
    return rows
