"""How far each block of a model moved: ‖ΔW‖, ‖W₀‖, ΔM and ΔD of its matrices, and of the block as a whole."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Unpack

import numpy as np
import pandas as pd

from deltaw.adapters.checks import public
from deltaw.analysis.measures.blocks import Axis, checked_axes
from deltaw.analysis.measures.norms import Norms
from deltaw.analysis.names import block_of, block_order
from deltaw.analysis.records.foreign.base import BaseError
from deltaw.analysis.tables.run import LABELS, Run, Steps
from deltaw.analysis.tables.stop import Stop
from deltaw.analysis.tables.tidy import require_columns
from deltaw.analysis.tables.updates import update_at
from deltaw.analysis.tables.walk import Walk, at_steps
from deltaw.analysis.tables.work import How, work_from

COLUMNS = ("run", "method", "module", "block", "step", "norm", "base_norm", "delta_m", "delta_d")


@public
def block_table(
    runs: Sequence[Run],
    steps: Steps = "last",
    *,
    axis: Axis = "column",
    modules: Sequence[str] | None = None,
    progress: bool = False,
    **work: Unpack[How],
) -> pd.DataFrame:
    """Return how far every matrix moved from W₀, and the block of the model that it is in.

    Arguments:
        runs: Opened runs.
        steps: The steps; "last" for each run's last, ``None`` for all that are recorded.
        axis: The vectors of ΔM and ΔD: "column", "row" or "matrix".
        modules, progress, device, …: As in `singular_values`.

    Returns:
        One row each: run, method, module, layer, kind, step, block (see `block_of`), norm (‖ΔW‖_F), base_norm (‖W₀‖_F),
        relative (their ratio), delta_m (in units of the weights), delta_d. Where W₀ is not known and ΔW is, as of an
        adapter without its base, only norm is a number.

    Raises:
        OptionError: No run; unknown step or axis.
        NonFiniteError: A weight holds NaN or infinity; names module and step.
    """
    (chosen,) = checked_axes(axis)
    walk = Walk(runs, "blocks", at_steps(steps), modules, progress=progress, work=work_from(work))
    rows = walk.rows(partial(_of_step, axis=chosen))
    return walk.frame(rows, [*LABELS, "step", "block", "norm", "base_norm", "relative", "delta_m", "delta_d"])


def _of_step(stop: Stop, axis: Axis) -> list[dict[str, Any]]:
    update = update_at(stop).operand()
    row = stop.labels | {"step": stop.step, "block": block_of(stop.module), "norm": update.norm * update.scale}
    row |= dict.fromkeys(("base_norm", "relative", "delta_m", "delta_d"), np.nan)
    try:
        base = stop.once("norm of W₀", lambda: Norms(partial(stop.run.base, stop.module)).frobenius)
        change = stop.changes([axis]).get(axis)
    except BaseError:  # an adapter without its base has an update, and no weights
        return [row]
    row |= {"base_norm": base, "relative": row["norm"] / base if base else np.nan}
    return [row | ({} if change is None else {"delta_m": change.delta_m, "delta_d": change.delta_d})]


@public
def by_block(frame: pd.DataFrame) -> pd.DataFrame:
    r"""Return how far each block moved, a row a run, step and block, in the model's order.

        norm = √(Σ_m ‖ΔW_m‖²), base_norm = √(Σ_m ‖W₀,m‖²), relative = norm / base_norm

    over the block's matrices, so large matrices count more; delta_m and delta_d are the means of the matrices' own.

    Arguments:
        frame: What `block_table` returns.

    Returns:
        One row each: run, method, step, block, matrices (how many), norm, base_norm, relative, delta_m, delta_d. Where
        W₀ of one of a block's matrices is not known, the last four are NaN.

    Raises:
        OptionError: The table is of another form.

    Example:
        >>> rows = [("a", "lora", f"h.0.{k}", "h.0", 9, norm, 10.0, 0.1, 0.2) for k, norm in (("q", 3.0), ("v", 4.0))]
        >>> by_block(pd.DataFrame(rows, columns=list(COLUMNS)))[["block", "matrices", "norm"]].values.tolist()
        [['h.0', 2, 5.0]]
    """
    require_columns(frame, COLUMNS, "block_table")
    first = {block_of(module): module for module in sorted(frame["module"].unique(), key=block_order, reverse=True)}
    rows: list[dict[str, Any]] = []
    for (run, method, step, block), own in frame.groupby(["run", "method", "step", "block"], sort=False):
        norm, base = (float(np.sqrt(np.square(own[name].to_numpy(float)).sum())) for name in ("norm", "base_norm"))
        known = {name: float(own[name].to_numpy(float).mean()) for name in ("delta_m", "delta_d")}
        rows.append(
            {"run": run, "method": method, "step": step, "block": block, "matrices": own["module"].nunique()}
            | {"norm": norm, "base_norm": base, "relative": norm / base if base else np.nan}
            | known
        )
    runs = {run: place for place, run in enumerate(frame["run"].unique())}
    rows.sort(key=lambda row: (runs[row["run"]], row["step"], block_order(first[row["block"]])))
    columns = ["run", "method", "step", "block", "matrices", "norm", "base_norm", "relative", "delta_m", "delta_d"]
    return pd.DataFrame(rows, columns=columns)
