"""How ΔM and ΔD are spread over the rows and columns of a matrix: counts in bins, and the vectors that moved most."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from deltaw.adapters.checks import whole_number
from deltaw.analysis.measures.change import AXES
from deltaw.analysis.tables.changes import from_to
from deltaw.analysis.tables.run import Pairs, Run
from deltaw.analysis.tables.stop import Found, Stop
from deltaw.analysis.tables.walk import Walk, at_pairs
from deltaw.analysis.tables.work import How, work_from


def distributions(
    run: Run,
    pairs: Pairs,
    modules: Sequence[str] | None = None,
    *,
    bins: int = 24,
    most: int = 5,
    progress: bool = False,
    **work: Unpack[How],
) -> Iterator[Found]:
    """Yield the distribution of every module and pair of steps; a module whose W₀ is needed and not known has none.

    Arguments:
        run: An opened run.
        pairs: As in `changes_table`, of one kind.
        modules: These, in this order; ``None`` for all.
        bins: How many, of equal width from the smallest to the largest number.
        most: How many vectors that moved most.
        progress: Show a progress bar.
        device, jobs, engine, address, cache: As in `Work`, the last ``False`` by default; or ``work``, one of those.

    Yields:
        `Found` with four rows, for each axis and each of "m" and "d": run, method, module, layer, kind, axis, measure,
        counts (bins,), low, high (the ends of the bins), index and value (at most ``most``: the vectors that moved
        most, largest first). Vectors with NaN, or without a direction, are left out.

    Raises:
        OptionError: Unknown pairs, or a number below 1.
    """
    bins, most = whole_number("bins", bins, 1), whole_number("most", most, 1)
    walk = Walk(
        [run],
        "rows and columns",
        at_pairs(pairs),
        None if modules is None else lambda _: modules,
        unit="pair",
        progress=progress,
        work=work_from(work),
    )
    return walk.measured(partial(_of_pair, bins=bins, most=most))


def _of_pair(stop: Stop, bins: int, most: int) -> list[dict[str, Any]]:
    stop.where = from_to(stop.step_from, stop.step)
    return [
        stop.labels | {"axis": axis, "measure": measure} | _spread(vectors.numpy(), bins, most)
        for axis, change in stop.changes(AXES, allow_nonfinite=True).items()
        for measure, vectors in (("m", change.magnitude), ("d", change.direction))
    ]


def _spread(values: NDArray[np.float64], bins: int, most: int) -> dict[str, Any]:
    """Return counts and ends of the bins, and where the largest values stand."""
    finite = np.isfinite(values)
    if not finite.any():
        nothing = np.empty(0, dtype=np.int64)
        return {"counts": nothing, "low": np.nan, "high": np.nan, "index": nothing, "value": np.empty(0)}
    counts, edges = np.histogram(values[finite], bins)
    order = np.argsort(-np.where(finite, values, -1.0), kind="stable")[: min(most, int(finite.sum()))]
    return {
        "counts": counts.astype(np.int64),
        "low": float(edges[0]),
        "high": float(edges[-1]),
        "index": order.astype(np.int64),
        "value": values[order],
    }
