"""Intruder dimensions: how like the base the strongest singular vectors of the trained weights are."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch

from deltaw.analysis.measures.intruders import intruders
from deltaw.analysis.measures.subspace import Directions, directions
from deltaw.analysis.tables.run import LABELS, Run, Steps
from deltaw.analysis.tables.stop import Stop
from deltaw.analysis.tables.walk import Walk, at_steps
from deltaw.analysis.tables.work import How, work_from


def intruder_table(
    runs: Sequence[Run],
    *,
    k: int = 10,
    epsilon: float = 0.5,
    steps: Steps = "last",
    modules: Sequence[str] | None = None,
    progress: bool = False,
    **work: Unpack[How],
) -> pd.DataFrame:
    """Return how like W₀'s the top k left singular vectors of W' are, one row a vector.

    Arguments:
        runs: Opened runs.
        k, epsilon: As in `deltaw.analysis.measures.intruders`.
        steps, modules, progress, device, …: As in `singular_values`.

    Returns:
        One row each: run, method, module, layer, kind, step, index (from 1), singular_value (of W'), similarity,
        intruder. The number of intruders: ``frame.groupby(["run", "module", "step"])["intruder"].sum()``.

    Raises:
        OptionError: No run, no such step, or ``k`` or ``epsilon`` out of its range.
        NonFiniteError: A weight holds NaN or infinity; names module and step.

    Source:
        Shuttleworth et al. 2024, definition 1 and algorithm 1.
    """
    walk = Walk(runs, "intruder dimensions", at_steps(steps), modules, progress=progress, work=work_from(work))
    blocks = walk.rows(partial(_of_step, k=k, epsilon=epsilon))
    return walk.frame(blocks, [*LABELS, "step", "index", "singular_value", "similarity", "intruder"])


def _of_step(stop: Stop, k: int, epsilon: float) -> list[dict[str, Any]]:
    base = stop.once("base", partial(_base, stop))
    after = stop.run.weight(stop.module, stop.step, torch.float64)
    found = intruders(base, after, k=k, epsilon=epsilon)
    return [
        stop.labels
        | {"step": stop.step, "index": np.arange(1, k + 1), "singular_value": found.singular_values.numpy()}
        | {"similarity": found.similarity.numpy(), "intruder": found.found.numpy()}
    ]


def _base(stop: Stop) -> Directions:
    return directions(stop.run.base(stop.module).double())
