"""ΔM and ΔD of every module: their means, one row a pair of steps and axis."""

from collections.abc import Sequence

import pandas as pd

from deltaw.analysis.measures.change import AXES, Axis, changes
from deltaw.analysis.tables.run import LABELS, Pairs, Run
from deltaw.analysis.tables.walk import Walk, at_pairs


def changes_table(
    runs: Sequence[Run],
    pairs: Pairs = None,
    axes: Sequence[Axis] = AXES,
    modules: Sequence[str] | None = None,
    *,
    allow_nonfinite: bool = False,
    progress: bool = False,
) -> pd.DataFrame:
    """Return ΔM and ΔD of every module, pair of steps and axis.

    Arguments:
        runs: Opened runs.
        pairs: "consecutive" (t−1, t), "initial" (first recorded step, t), "base" (W₀, t), or a list of pairs.
            ``None`` for consecutive ones, and for base where a run has one checkpoint.
        axes: "row", "column" or both.
        modules: Glob patterns over the recorded modules; ``None`` for all.
        allow_nonfinite: Go on where a weight holds NaN or infinity.
        progress: Show a progress bar.

    Returns:
        One row each, with the columns run, method, module, layer, kind, axis, step_from (missing for the base),
        step_to, delta_m (in units of the weights), delta_d, undefined (vectors zero at exactly one of the steps).
        ``attrs["left_out"]`` says which modules are left out, as their W₀ is not known, ``attrs["no_rows"]`` why a run
        has no row.

    Raises:
        NonFiniteError: A weight holds NaN or infinity; names the module and the steps.
        OptionError: Unknown pairs, axis, module or step.
    """
    rows = []
    walk = Walk(runs, "changes", at_pairs(pairs), modules, unit="pair", progress=progress)
    for stop in walk:
        stop.where = from_to(stop.step_from, stop.step)
        with stop:
            before, after = stop.weight(stop.step_from), stop.weight(stop.step)
            for axis, change in changes(before, after, axes, allow_nonfinite=allow_nonfinite).items():
                rows.append(
                    stop.labels
                    | {"axis": axis, "step_from": stop.step_from, "step_to": stop.step}
                    | {"delta_m": change.delta_m, "delta_d": change.delta_d, "undefined": change.undefined}
                )
    return walk.frame(rows, [*LABELS, "axis", "step_from", "step_to", "delta_m", "delta_d", "undefined"])


def from_to(step_from: int | None, step: int) -> str:
    """Return the words for a pair of steps."""
    return f"from {'the base' if step_from is None else f'step {step_from}'} to step {step}"
