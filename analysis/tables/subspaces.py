"""How far the directions of two updates agree: overlaps and principal angles, of two runs or two steps of one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch

from deltaw.adapters.checks import whole_number
from deltaw.adapters.errors import OptionError, ShapeError
from deltaw.analysis.measures.chance import expected_angles
from deltaw.analysis.measures.subspace import SIDES, Directions, Side, overlap, principal_angles
from deltaw.analysis.tables.device import placed
from deltaw.analysis.tables.run import Run
from deltaw.analysis.tables.stop import Stop, located
from deltaw.analysis.tables.updates import update_at
from deltaw.analysis.tables.walk import Walk, chosen_steps, common_modules, some
from deltaw.analysis.tables.work import How, Work, work_from

_PAIR = ["run_first", "run_second", "step_first", "step_second", "module", "layer", "kind", "side"]


def subspace_overlap(
    first: Run,
    second: Run,
    *,
    step_first: int | None = None,
    step_second: int | None = None,
    modules: Sequence[str] | None = None,
    ranks: Sequence[int] = range(1, 9),
    ranks_second: Sequence[int] | None = None,
    side: Side = "right",
    progress: bool = False,
    **work: Unpack[How],
) -> pd.DataFrame:
    """Return φ(i, j) of the updates of two runs, or of two steps of one run, for every module that both have.

    Arguments:
        first, second: Opened runs; the same one for two of its steps.
        step_first, step_second: The steps; ``None`` for the last.
        modules: Glob patterns over the modules of both; ``None`` for all.
        ranks: The numbers i of directions of the first.
        ranks_second: The numbers j of the second; ``None`` for ``ranks``.
        side: "right" for directions in the input space, as in LoRA's figures, "left" for the output space.
        progress: Show a progress bar.
        device, jobs, engine, address, cache: As in `Work`, the last ``False`` by default; or ``work``, one of those.

    Returns:
        One row each: run_first, run_second, step_first, step_second, module, layer, kind, side, i, j, overlap,
        expected (what random directions have on average, max(i, j)/n). The overlap is NaN where an update has fewer
        than i or j directions, as an update of zeros has none.

    Raises:
        OptionError: The runs have no module in common; no such side or step; a rank below 1 or above the matrix' size.
        ShapeError: A module has another shape in the other run.
        NonFiniteError: A weight holds NaN or infinity; names module and step.

    Source:
        Hu et al. 2022 (LoRA), section 7.2, equation 4, figures 3 and 4. See `deltaw.analysis.overlap`.
    """
    seconds = ranks if ranks_second is None else ranks_second
    walk, both = _walk(first, second, step_first, step_second, modules, side, progress, work_from(work))
    rows = walk.rows(partial(_overlap, both=both, ranks=ranks, seconds=seconds))
    return walk.frame(rows, [*_PAIR, "i", "j", "overlap", "expected"])


def subspace_angles(
    first: Run,
    second: Run,
    *,
    step_first: int | None = None,
    step_second: int | None = None,
    modules: Sequence[str] | None = None,
    rank: int | None = None,
    side: Side = "right",
    progress: bool = False,
    **work: Unpack[How],
) -> pd.DataFrame:
    """Return the principal angles between the directions of two updates, for every module that both runs have.

    Arguments:
        rank: How many directions of each; ``None`` for all that each has.
        first, second, step_first, step_second, modules, side, progress, device, …: As in `subspace_overlap`.

    Returns:
        One row each: run_first, run_second, step_first, step_second, module, layer, kind, side, index (from 1),
        angle (radians, in [0, π/2], smallest first), expected (that of random directions, see
        `deltaw.analysis.measures.chance.expected_angles`). For every module as many as the smaller span has, or
        ``rank``, with NaN for those an update has no directions for. An update without any direction gives one row of
        NaN.

    Raises:
        As `subspace_overlap`.

    Source:
        Björck, Golub 1973. See `deltaw.analysis.principal_angles`.
    """
    walk, both = _walk(first, second, step_first, step_second, modules, side, progress, work_from(work))
    rows = walk.rows(partial(_angles, both=both, rank=rank))
    return walk.frame(rows, [*_PAIR, "index", "angle", "expected"])


@dataclass(frozen=True, eq=False)
class _Both:
    """What the updates of the first run, at the stops of a walk, are compared with."""

    second: Run
    steps: tuple[int, int]
    side: Side
    device: str

    def directions(self, stop: Stop) -> Iterator[Directions]:
        """Yield the directions of the first run's update, and of the second's."""
        for run, step in zip((stop.run, placed(self.second, self.device)), self.steps, strict=True):
            with located(run, stop.module, f"at step {step}"):
                yield update_at(stop, run, step).directions()

    def labels(self, stop: Stop) -> dict[str, Any]:
        """Return the first columns."""
        return {
            "run_first": stop.run.name,
            "run_second": self.second.name,
            "step_first": self.steps[0],
            "step_second": self.steps[1],
            **{name: value for name, value in stop.labels.items() if name not in ("run", "method")},
            "side": self.side,
        }


def _walk(
    first: Run,
    second: Run,
    step_first: int | None,
    step_second: int | None,
    modules: Sequence[str] | None,
    side: Side,
    progress: bool,
    work: Work,
) -> tuple[Walk, _Both]:
    """Return a walk over the modules that two runs have, and what their updates are compared with."""
    if side not in SIDES:
        raise OptionError(f"side is {side!r}; choose one of {', '.join(map(repr, SIDES))}")
    some([first, second])
    chosen = common_modules(first, second, modules)
    for module in chosen:
        if first.shape(module) != second.shape(module):
            one, two = (f"{run.shape(module)} in {run.source.where}" for run in (first, second))
            raise ShapeError(f"{module} is {one} and {two}; pass runs of one model")
    at, beside = (
        chosen_steps(run, "last" if step is None else [step])[0]
        for run, step in ((first, step_first), (second, step_second))
    )
    what = f"{second.name} against the directions"
    walk = Walk([first], what, lambda _: [(beside, at)], lambda _: chosen, unit="module", progress=progress, work=work)
    return walk, _Both(second, (at, beside), side, work.device)


def _overlap(stop: Stop, both: _Both, ranks: Sequence[int], seconds: Sequence[int]) -> list[dict[str, Any]]:
    one, two = both.directions(stop)
    i, j = (checked_ranks(given, found, stop.module) for given, found in ((ranks, one), (seconds, two)))
    table = torch.full((max(i), max(j)), torch.nan, dtype=torch.float64)
    a, b = (found.basis(both.side)[:, : max(wanted)] for found, wanted in ((one, i), (two, j)))
    if a.shape[1] and b.shape[1]:
        table[: a.shape[1], : b.shape[1]] = overlap(a, b)
    rows, columns = (grid.ravel() for grid in np.meshgrid(i, j, indexing="ij"))
    return [
        both.labels(stop)
        | {"i": rows, "j": columns, "overlap": table.numpy()[rows - 1, columns - 1]}
        | {"expected": np.maximum(rows, columns) / len(a)}
    ]


def _angles(stop: Stop, both: _Both, rank: int | None) -> list[dict[str, Any]]:
    one, two = both.directions(stop)
    if rank is not None:
        checked_ranks([rank], one, stop.module)
    a, b = (found.basis(both.side)[:, :rank] for found in (one, two))
    count = min(a.shape[1], b.shape[1])
    angles = np.full(max(count, 1) if rank is None else rank, np.nan)
    expected = angles.copy()
    if count:
        angles[:count] = principal_angles(a, b).numpy()
        expected[:count] = expected_angles(a.shape[1], b.shape[1], len(a))
    return [both.labels(stop) | {"index": np.arange(1, len(angles) + 1), "angle": angles, "expected": expected}]


def checked_ranks(ranks: Sequence[int], found: Directions, module: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the ranks as an array.

    Raises:
        OptionError: There is none, or one is above the size of the matrix.
    """
    most = min(len(found.left), len(found.right))
    try:
        whole = [whole_number("a rank", rank, 1) for rank in ranks]
    except (OptionError, TypeError):
        whole = []
    if not whole or max(whole) > most:
        given = list(ranks) if isinstance(ranks, Sequence) else ranks
        raise OptionError(f"ranks are {given}; for {module} choose whole numbers from 1 to {most}, its size")
    return np.asarray(whole, dtype=np.int64)
