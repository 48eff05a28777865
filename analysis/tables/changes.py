"""ΔM and ΔD of every module: their means, one row a pair of steps and axis."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Unpack

import pandas as pd

from deltaw.analysis.measures.blocks import Axis, checked_axes
from deltaw.analysis.measures.change import AXES
from deltaw.analysis.tables.blocks import Counts, Heads, counts_of
from deltaw.analysis.tables.one_pass import Stops, in_one_pass
from deltaw.analysis.tables.run import LABELS, PairKind, Pairs, Run, Step
from deltaw.analysis.tables.stop import Stop
from deltaw.analysis.tables.walk import Walk, pairs_by_kind
from deltaw.analysis.tables.work import How, work_from


def changes_table(
    runs: Sequence[Run],
    pairs: Pairs | Sequence[PairKind] = None,
    axes: Sequence[Axis] = AXES,
    modules: Sequence[str] | None = None,
    *,
    heads: Heads = None,
    allow_nonfinite: bool = False,
    progress: bool = False,
    **work: Unpack[How],
) -> pd.DataFrame:
    """Return ΔM and ΔD of every module, pair of steps and axis.

    Arguments:
        runs: Opened runs.
        pairs: "consecutive" (t−1, t), "initial" (first recorded step, t), "base" (W₀, t), or a list of pairs.
            ``None`` for consecutive ones, and for base where a run has one checkpoint. Several kinds, as
            ("consecutive", "base"), are made in one pass, and the table has a column pairs.
        axes: "row", "column", "matrix" (the whole as one vector), "head" (one vector a head of query, key, value and
            output), "expert" (the whole of an expert's matrix as one vector), "entry", or several. A module without
            heads, or that is no expert's, has no row of these. Of a convolution "row" is a filter, "column" the slice
            W[:, c, …] of an input channel, "entry" a single place of one, W[:, c, i, j]; a linear layer has no entries.
        modules: Glob patterns over the recorded modules; ``None`` for all.
        heads: The number of attention heads, or numbers as {"num_attention_heads": 8, "num_key_value_heads": 2}, where
            the run's configuration does not say them.
        allow_nonfinite: Go on where a weight holds NaN or infinity.
        progress: Show a progress bar.
        device, jobs, engine, address, cache: As in `Work`, the last ``False`` by default; or ``work``, one of those.

    Returns:
        One row each, with the columns run, method, module, layer, kind, pairs (where several kinds are asked for),
        axis, step_from (missing for the base), step_to, delta_m (in units of the weights), delta_d, undefined (vectors
        zero at exactly one of the steps).
        ``attrs["left_out"]`` says which modules are left out, as their W₀ is not known, and whose heads are not known,
        ``attrs["no_rows"]`` why a run has no row.

    Raises:
        NonFiniteError: A weight holds NaN or infinity; names the module and the steps.
        OptionError: Unknown pairs, axis, module or step.
    """
    wanted: dict[int, dict[str | None, list[tuple[Step, int]]]] = {}  # by run

    def stops(run: Run) -> Stops:
        wanted[id(run)] = pairs_by_kind(run, pairs)
        return in_one_pass(pair for of_kind in wanted[id(run)].values() for pair in of_kind)

    by_module: dict[tuple[int, str], dict[tuple[Step, int], list[dict[str, Any]]]] = {}
    counts, chosen = counts_of(heads), checked_axes(axes)
    walk = Walk(runs, "changes", stops, modules, unit="pair", progress=progress, work=work_from(work))
    for found in walk.measured(partial(_of_pair, axes=chosen, heads=counts, allow_nonfinite=allow_nonfinite)):
        by_module.setdefault((id(found.run), found.module), {})[found.step_from, found.step] = found.rows
    rows = [
        row | {"pairs": kind}
        for (run, _), by_pair in by_module.items()
        for kind, of_kind in wanted[run].items()
        for pair in of_kind
        for row in by_pair.get(pair, [])
    ]
    several = any(None not in kinds for kinds in wanted.values())
    columns = ["axis", "step_from", "step_to", "delta_m", "delta_d", "undefined"]
    return walk.frame(rows, [*LABELS, *(["pairs"] if several else []), *columns], axes=chosen, heads=counts)


def _of_pair(stop: Stop, axes: Sequence[Axis], heads: Counts, allow_nonfinite: bool) -> list[dict[str, Any]]:
    stop.where = from_to(stop.step_from, stop.step)
    return [
        stop.labels
        | {"axis": axis, "step_from": stop.step_from, "step_to": stop.step}
        | {"delta_m": change.delta_m, "delta_d": change.delta_d, "undefined": change.undefined}
        for axis, change in stop.changes(axes, heads=heads, allow_nonfinite=allow_nonfinite).items()
    ]


def from_to(step_from: int | None, step: int) -> str:
    """Return the words for a pair of steps."""
    return f"from {'the base' if step_from is None else f'step {step_from}'} to step {step}"
