"""ΔM and ΔD of single attention heads and single experts: which moved most."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, Unpack

import numpy as np
import pandas as pd

from deltaw.adapters.checks import public
from deltaw.analysis.tables.blocks import Counts, Heads, counts_of
from deltaw.analysis.tables.changes import from_to
from deltaw.analysis.tables.run import LABELS, Pairs, Run
from deltaw.analysis.tables.stop import Stop
from deltaw.analysis.tables.walk import Walk, at_pairs
from deltaw.analysis.tables.work import How, Work, work_from


@public
def head_changes(
    runs: Sequence[Run],
    pairs: Pairs = "base",
    *,
    heads: Heads = None,
    modules: Sequence[str] | None = None,
    progress: bool = False,
    **work: Unpack[How],
) -> pd.DataFrame:
    """Return ΔM and ΔD of every attention head: of its rows of query, key and value, and its columns of the output.

    Arguments:
        runs: Opened runs.
        pairs: "base" (W₀, t), "consecutive" (t−1, t), "initial" (first recorded step, t), or a list of pairs, with
            ``None`` for the base.
        heads: As in `changes_table`.
        modules, progress, device, …: As in `singular_values`.

    Returns:
        One row each: run, method, module, layer, kind, step_from (missing for the base), step_to, part ("query",
        "key", "value" or "output": the kind, but of a matrix that holds several), head (from 0; of key and value with
        grouped heads there are fewer), delta_m (in units of the weights), delta_d (NaN where the head is zero at one of
        the steps). ``attrs["left_out"]`` says whose heads are not known.

    Raises:
        OptionError: No run; unknown pairs or step; heads that are no numbers.
        NonFiniteError: A weight holds NaN or infinity; names module and steps.

    Source:
        One vector a head as DoRA's and BoRA's magnitude and direction have one a row or column; that single heads
        differ: Diffract (ICML 2026).
    """
    return _per_block(runs, pairs, "head", heads, modules, progress, work_from(work))


@public
def expert_changes(
    runs: Sequence[Run],
    pairs: Pairs = "base",
    *,
    modules: Sequence[str] | None = None,
    progress: bool = False,
    **work: Unpack[How],
) -> pd.DataFrame:
    """Return ΔM and ΔD of every expert of a mixture, each of its matrices as one vector.

    Arguments:
        runs, pairs, modules, progress, device, …: As in `head_changes`.

    Returns:
        As `head_changes`, with a column expert in the place of head; part is the kind, "up", "gate" or "down".

    Raises:
        As `head_changes`.
    """
    return _per_block(runs, pairs, "expert", None, modules, progress, work_from(work))


def _per_block(
    runs: Sequence[Run],
    pairs: Pairs,
    axis: Literal["head", "expert"],
    heads: Heads,
    modules: Sequence[str] | None,
    progress: bool,
    work: Work,
) -> pd.DataFrame:
    counts = counts_of(heads)
    walk = Walk(runs, f"{axis}s", at_pairs(pairs), modules, unit="pair", progress=progress, work=work)
    blocks = walk.rows(partial(_of_pair, axis=axis, heads=counts))
    columns = [*LABELS, "step_from", "step_to", "part", axis, "delta_m", "delta_d"]
    return walk.frame(blocks, columns, axes=[axis], heads=counts)


def _of_pair(stop: Stop, axis: Literal["head", "expert"], heads: Counts) -> list[dict[str, Any]]:
    stop.where = from_to(stop.step_from, stop.step)
    change = stop.changes([axis], heads=heads).get(axis)
    if change is None:
        return []
    names = stop.blocks([axis], heads)[axis].names
    found = []
    for part in dict.fromkeys(part for part, _ in names):  # of a fused matrix there are several
        places = [place for place, (own, _) in enumerate(names) if own == part]
        found.append(
            stop.labels
            | {"step_from": stop.step_from, "step_to": stop.step, "part": part}
            | {axis: np.array([names[place][1] for place in places], dtype=np.int64)}
            | {"delta_m": change.magnitude.numpy()[places], "delta_d": change.direction.numpy()[places]}
        )
    return found
