"""The singular values of every update."""

from collections.abc import Sequence
from functools import partial
from typing import Unpack

import numpy as np
import pandas as pd

from deltaw.adapters.checks import whole_number
from deltaw.adapters.errors import OptionError
from deltaw.analysis.measures.leading import LeadingValues, leading_values
from deltaw.analysis.measures.spectrum import Spectrum
from deltaw.analysis.tables.run import LABELS, Run, Steps
from deltaw.analysis.tables.stop import Later, Rows, Stop
from deltaw.analysis.tables.updates import rows_of, update_at
from deltaw.analysis.tables.walk import Walk, at_steps
from deltaw.analysis.tables.work import How, work_from


def singular_values(
    runs: Sequence[Run],
    *,
    steps: Steps = None,
    modules: Sequence[str] | None = None,
    top: int | None = None,
    progress: bool = False,
    **work: Unpack[How],
) -> pd.DataFrame:
    """Return the singular values of ΔW of every module at every step: its spectrum over training.

    From factors where the method has them, else by the cheapest exact way; where that is the Gram matrix, a value at or
    below the tolerance may be off by some 1e-7·σ₁, see `spectrum`. A few of the largest of a large matrix (``top``)
    come many times faster than all, with bounds that hold them to 1e-6.

    Arguments:
        runs: Opened runs.
        steps: These steps, "last" for each run's last, ``None`` for all.
        modules: Glob patterns over the recorded modules; ``None`` for all.
        top: How many, largest first; ``None`` for all there are, that is min(out, in), or min(out, in, r) from factors.
        progress: Show a progress bar.
        device, jobs, engine, address, cache: As in `Work`, the last ``False`` by default; or ``work``, one of those.

    Returns:
        One row each: run, method, module, layer, kind, step, index (from 1), singular_value, share (σ²/Σσ², of all of
        them above the tolerance; 0 for those that are not, and where there is no update), tolerance (the σ up to which
        one is noise).

    Raises:
        OptionError: No run, no such step, or ``top`` below 1.
        NonFiniteError: A weight holds NaN or infinity; names module and step.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from deltaw.adapters import LoRA, inject
        >>> from deltaw.analysis import Trajectory
        >>> from deltaw.trainers import Recorder
        >>> model = inject(torch.nn.Sequential(torch.nn.Linear(6, 4)), LoRA(rank=2), targets=["0"])
        >>> folder = tempfile.mkdtemp()
        >>> with Recorder(model, folder) as recorder:
        ...     recorder.step(0)
        >>> singular_values([Trajectory.open(folder)])[["module", "step", "index", "singular_value"]].values.tolist()
        [['0', 0, 1, 0.0], ['0', 0, 2, 0.0]]
    """
    if top is not None:
        try:
            top = whole_number("top", top, 1)
        except OptionError:
            raise OptionError(f"top is {top!r}; choose a whole number of at least 1, or None for all") from None
    walk = Walk(runs, "singular values", at_steps(steps), modules, progress=progress, work=work_from(work))
    blocks = walk.rows(partial(_of_step, top=top))
    return walk.frame(blocks, [*LABELS, "step", "index", "singular_value", "share", "tolerance"])


def _of_step(stop: Stop, top: int | None) -> Later:
    update, labels = update_at(stop), stop.labels | {"step": stop.step}

    def rows() -> Rows:
        found = None if top is None or update.dense is None else leading_values(update.dense, top, update.floor)
        if found is None:
            found = _of_all(update.spectrum(), top)
        return [
            labels
            | {"index": np.arange(1, len(found.values) + 1)}
            | {"singular_value": found.values.numpy(), "share": found.shares.numpy(), "tolerance": found.tolerance}
        ]

    return rows_of([update], rows)


def _of_all(found: Spectrum, top: int | None) -> LeadingValues:
    relative = (found.signal / (found.spectral or 1.0)).square()
    shares = relative / (relative.sum() if found.spectral > 0 else 1.0)
    return LeadingValues(found.singular_values[:top], shares[:top], found.tolerance)
