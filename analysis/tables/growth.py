"""How fast each singular value of an update grows, and how evenly the update spreads over its directions meanwhile."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch

from deltaw.adapters.checks import public
from deltaw.analysis.measures.entropy import spectral_entropy
from deltaw.analysis.tables.run import LABELS, Run, Steps
from deltaw.analysis.tables.singular_values import singular_values
from deltaw.analysis.tables.work import How

_KEY = ["run", "module"]
_GROWTH = ["step_from", "step", "index", "singular_value", "growth", "log_growth", "uncertain"]
_NUMBERS = ["rank", "entropy", "energy_entropy", "entropy_rate", "energy_entropy_rate", "growth"]


@public
def singular_value_growth(
    runs: Sequence[Run],
    *,
    steps: Steps = None,
    modules: Sequence[str] | None = None,
    top: int | None = None,
    progress: bool = False,
    **work: Unpack[How],
) -> pd.DataFrame:
    r"""Return how fast each singular value of ΔW grows from one recorded step to the next.

        growth_i = (σ_i(t) − σ_i(t')) / (t − t'),        log_growth_i = (log σ_i(t) − log σ_i(t')) / (t − t')

    Under one rule all σ_i grow by the same amount a step (equal ``growth``: what "Uniform Spectral Growth" proves for
    spectral gradient flow and sees under Muon), under another each by a share of itself (equal ``log_growth``); under
    plain gradient flow the largest come first.

    σ_i is the i-th largest of its step: where two cross, the index changes hands.

    Arguments:
        runs, modules, top, progress, device, …: As in `singular_values`.
        steps: These steps, ``None`` for all; two or more a run.

    Returns:
        One row each: run, method, module, layer, kind, step_from, step, index, singular_value (σ_i(t)), growth (σ a
        step), log_growth (a step; NaN where σ_i is at or below the tolerance at either step), uncertain (how far growth
        may be off where σ is noise: both tolerances over t − t').

    Raises:
        As `singular_values`.

    Source:
        "Uniform Spectral Growth and Convergence of Muon in LoRA-Style Matrix Factorization" (arXiv 2602.06385), the
        abstract; its sections were not read.
    """
    frame = singular_values(runs, steps=steps, modules=modules, top=top, progress=progress, **work)
    blocks = []
    for _, rows in frame.groupby(_KEY, sort=False):
        labels = {name: rows[name].iloc[0] for name in LABELS}
        at = [found.set_index("index") for _, found in rows.groupby("step")]
        blocks += [_between(before, after).assign(**labels) for before, after in pairwise(at)]
    columns = [*LABELS, *_GROWTH]
    whole = pd.concat(blocks, ignore_index=True)[columns] if blocks else pd.DataFrame(columns=columns)
    whole.attrs = dict(frame.attrs)
    return whole


def _between(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """The growth between two steps of a module, whose σ are given by index."""
    start, end = int(before["step"].iloc[0]), int(after["step"].iloc[0])
    apart = end - start
    old = before["singular_value"].reindex(after.index, fill_value=0.0).to_numpy(dtype=np.float64)
    new = after["singular_value"].to_numpy(dtype=np.float64)
    limits = float(before["tolerance"].iloc[0]), float(after["tolerance"].iloc[0])
    signal = (old > limits[0]) & (new > limits[1])
    ratio = np.full(len(new), np.nan)
    ratio[signal] = np.log(new[signal] / old[signal])
    return pd.DataFrame(
        {"step_from": start, "step": end, "index": after.index, "singular_value": new}
        | {"growth": (new - old) / apart, "log_growth": ratio / apart, "uncertain": sum(limits) / apart}
    )


@public
def spectral_growth(
    runs: Sequence[Run],
    *,
    steps: Steps = None,
    modules: Sequence[str] | None = None,
    progress: bool = False,
    **work: Unpack[How],
) -> pd.DataFrame:
    r"""Return how evenly ΔW spreads over its directions at every step, and how evenly its singular values grow.

        unevenness = the standard deviation of growth_i over the size of its mean, of the σ_i above the tolerance

    0 where all singular values grow by the same amount; ``log_unevenness``, of log_growth_i, where each grows by the
    same share of itself.

    Arguments:
        runs, steps, modules, progress, device, …: As in `singular_value_growth`.

    Returns:
        One row a module and step: run, method, module, layer, kind, step, rank (how many σ are above the tolerance),
        entropy (of σ) and energy_entropy (of σ²), normalised by log min(out, in), see `spectral_entropy`; entropy_rate
        and energy_entropy_rate (a step, since the one before), growth (the mean of growth_i), unevenness,
        log_unevenness. NaN at the first step, and where there is no update.

    Raises:
        As `singular_values`.
    """
    frame = singular_values(runs, steps=steps, modules=modules, progress=progress, **work)
    sizes = {(run.name, module): min(run.shape(module)) for run in runs for module in run.modules}
    rows: list[dict[str, Any]] = []
    for _, found in frame.groupby(_KEY, sort=False):
        labels = {name: found[name].iloc[0] for name in LABELS}
        last: tuple[dict[str, Any], pd.DataFrame] | None = None
        for _, at in found.groupby("step"):
            row = (
                labels
                | {"step": int(at["step"].iloc[0])}
                | _evenness(at, sizes[str(labels["run"]), str(labels["module"])])
            )
            by_index = at.set_index("index")
            if last is not None:
                apart = row["step"] - last[0]["step"]
                row |= {f"{name}_rate": (row[name] - last[0][name]) / apart for name in ("entropy", "energy_entropy")}
                row |= _uneven(_between(last[1], by_index), float(at["tolerance"].iloc[0]))
            rows.append(row)
            last = row, by_index
    whole = pd.DataFrame(rows, columns=[*LABELS, "step", *_NUMBERS, "unevenness", "log_unevenness"])
    whole.attrs = dict(frame.attrs)
    return whole


def _evenness(rows: pd.DataFrame, size: int) -> dict[str, Any]:
    sigma, limit = (rows[name].to_numpy(dtype=np.float64) for name in ("singular_value", "tolerance"))
    signal = torch.from_numpy(np.where(sigma > limit, sigma, 0.0))
    found = {name: spectral_entropy(signal, power=q, size=size) for q, name in ((1, "entropy"), (2, "energy_entropy"))}
    return {"rank": int((signal > 0).sum())} | found


def _uneven(rows: pd.DataFrame, tolerance: float) -> dict[str, float]:
    """The mean and the spread of the growth over the singular values that are no noise."""
    found: dict[str, float] = {}
    signal = rows[rows["singular_value"] > tolerance]
    for column, name in (("growth", "unevenness"), ("log_growth", "log_unevenness")):
        values = signal[column].dropna().to_numpy(dtype=np.float64)
        mean = float(values.mean()) if len(values) else math.nan
        found[name] = float(values.std()) / abs(mean) if len(values) and mean else math.nan
        if column == "growth":
            found["growth"] = mean
    return found
