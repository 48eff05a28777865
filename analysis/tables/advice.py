"""Which rank each module's update needs, which modules hardly moved, and how a budget of parameters is shared out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch

from deltaw.adapters.checks import public, whole_number
from deltaw.adapters.errors import OptionError
from deltaw.adapters.method import ScaledFactors
from deltaw.analysis.measures.factors import grams
from deltaw.analysis.measures.norms import Norms
from deltaw.analysis.measures.ranks import RULES, fewest, in_proportion, rank_by, rule_named, within
from deltaw.analysis.records.foreign.base import BaseError
from deltaw.analysis.records.foreign.split import SplitSource
from deltaw.analysis.tables.low_rank_part import low_rank_part
from deltaw.analysis.tables.run import LABELS, Budget, Run, Spread, Steps
from deltaw.analysis.tables.stop import Stop
from deltaw.analysis.tables.updates import Update, update_at
from deltaw.analysis.tables.walk import Walk, at_steps, chosen_modules, some
from deltaw.analysis.tables.work import How, work_from

UNIFORM = 1 / (2 * math.sqrt(3))  # the standard deviation of rounding to the nearest, in units of eps

_MEASURED = ["step", "of", "rows", "columns", "trained", "scaling", "stabilized", "norm", "base_norm", "rounding"]
_MEASURED += ["singular_value"]
COLUMNS = ["step", "of", "rows", "columns", "trained", "norm", "relative", "against_median", "rounding", "hardly"]
COLUMNS += ["noise_rank", "stable_rank", "effective_rank", "energy_rank_90", "energy_rank_99"]
COLUMNS += ["rank", "kept", "alpha", "scaling", "stabilized", "parameters", "parameters_now"]


@public
def advice_table(
    runs: Sequence[Run],
    *,
    step: int | None = None,
    modules: Sequence[str] | None = None,
    rule: str = "energy",
    at: float | None = None,
    together: bool = False,
    parameters: Budget = None,
    spread: Spread = None,
    least: int = 1,
    most: int | None = None,
    hardly: float = 0.1,
    drop: bool = False,
    scaling: float | None = None,
    progress: bool = False,
    **work: Unpack[How],
) -> pd.DataFrame:
    """Return a rank for every module, by what its update's singular values say.

    Of an adapter it is s·B A whose rank is in question: for LoRA that is ΔW, for DoRA and BoRA it is what the
    magnitudes multiply (their ΔW has full rank by itself). Of whole matrices it is ΔW, and the rank is that which a
    LoRA would need. Singular values at or below the noise floor count in nothing:

        whole weights    eps(stored)·‖W‖₂, see `spectrum`
        stored factors   eps(stored)·s·‖B‖₂·‖A‖₂

    A module's alpha keeps the scale that was trained, α = s·rank, or s·√rank for rsLoRA; of whole matrices s = 1.

    Arguments:
        runs: Opened runs; each gets its own advice.
        step: The step; ``None`` for each run's last.
        modules: Glob patterns over the recorded modules; ``None`` for all.
        rule: The rule of a module's rank, see `rank_by`: one of "energy", "noise", "stable", "effective", "sv_fro",
            "sv_cumulative", "sv_ratio".
        at: The rule's number, as 0.99 of the energy; ``None`` for its usual one.
        together: Let the rule "energy" hold of all modules together: the fewest parameters that hold ``at`` of the sum
            of all ‖ΔW‖_F². A module that moved little may then get only ``least``.
        parameters: Instead of a rule a budget, a number of parameters r·(out + in), or "same" for as many as were
            trained.
        spread: How a budget is shared out. "energy": what holds the most of all ‖ΔW‖_F²; it ends where the singular
            values do. "need": in proportion to the effective rank, which may go beyond the rank that was trained.
            ``None``: by need where there are factors and the budget is not below what they have, else by energy.
        least, most: No rank is below or above this; nor above min(out, in).
        hardly: A module hardly moved if its size is below this share of the median of all, or its norm is no more
            than twice what rounding leaves. The size is ‖·‖_F/‖W₀‖_F where W₀ of all is known, else ‖·‖_F/√(out·in).
        drop: Give modules that hardly moved rank 0: no adapter.
        scaling: s of the adapters to come; ``None`` for the one that was trained, 1 where there is none.
        progress: Show a progress bar.
        device, jobs, engine, address, cache: As in `Work`, the last ``False`` by default; or ``work``, one of those.

    Returns:
        One row a module: run, method, module, layer, kind, step, of ("update", or "product" for s·B A alone), rows,
        columns, trained (the rank of the adapter, missing where there is none), norm (‖·‖_F), relative
        (‖·‖_F/‖W₀‖_F, NaN without W₀), against_median (its size over the median size), rounding (the norm that rounding
        of what is stored leaves), hardly, noise_rank (singular values above the floor), stable_rank, effective_rank,
        energy_rank_90, energy_rank_99, rank (the advice), kept (the share of ‖·‖_F² it holds, at most 1), alpha,
        scaling, stabilized, parameters (rank·(out + in)), parameters_now (the same of ``trained``).
        ``attrs["rule"]`` says the rule in words.

    Raises:
        OptionError: No such rule or step; a number is out of its range; the budget does not pay for ``least``.
        NonFiniteError: A weight holds NaN or infinity; names module and step.

    Source:
        The rules: see `rank_by`.
    """
    used = rule_named(rule).checked(rule, at)
    least = whole_number("least", least, 0)
    most = None if most is None else whole_number("most", most, max(1, least))
    _check(rule, together, parameters, spread, hardly, scaling, at)
    steps: Steps = "last" if step is None else [step]
    walk = Walk(runs, "advice", at_steps(steps), modules, progress=progress, work=work_from(work))
    for run in some(runs):
        _check_split(run, chosen_modules(run.modules, modules))
    rows = walk.rows(_of_module)
    wide = walk.frame(rows, [*LABELS, *_MEASURED])
    values = {
        place: group["singular_value"].to_numpy()[group["singular_value"].to_numpy() > 0]
        for place, group in wide.groupby(["run", "module"], sort=False)
    }
    frame = wide.drop_duplicates(["run", "module"]).drop(columns="singular_value").reset_index(drop=True)
    frame["trained"] = frame["trained"].astype("Int64")
    parts = []
    said = ""
    for _, of_run in frame.groupby("run", sort=False):
        found = _described(of_run, values, hardly, scaling)
        signal = [values[place] for place in zip(found["run"], found["module"], strict=True)]
        ranks, said = _ranks(found, signal, rule, used, together, parameters, spread, least)
        limits = found[["rows", "columns"]].min(axis=1)
        ranks = [min(rank, limit, most or limit) for rank, limit in zip(ranks, limits, strict=True)]
        if drop:
            ranks = [0 if still else rank for rank, still in zip(ranks, found["hardly"], strict=True)]
        parts.append(_with_ranks(found, signal, ranks))
    whole = pd.concat(parts, ignore_index=True)[[*LABELS, *COLUMNS]] if parts else frame.reindex(columns=COLUMNS)
    whole.attrs = wide.attrs | {"rule": said}
    return whole


def _check(
    rule: str,
    together: bool,
    parameters: Budget,
    spread: Spread,
    hardly: float,
    scaling: float | None,
    at: float | None,
) -> None:
    if together and rule != "energy":
        raise OptionError(f"together goes with the rule 'energy', not {rule!r}; leave one of them out")
    if parameters is not None and (together or at is not None):
        raise OptionError("parameters is a budget in the place of a rule; leave together and at out")
    if parameters is not None and parameters != "same":
        whole_number("parameters", parameters, 1, also="'same'")
    if spread not in (None, "energy", "need"):
        raise OptionError(f"spread is {spread!r}; choose 'energy' or 'need', or None for what fits")
    if spread is not None and parameters is None:
        raise OptionError(f"spread is {spread!r}, and no budget is given; add parameters, as parameters='same'")
    if not isinstance(hardly, float | int) or not 0 <= hardly < 1:
        raise OptionError(f"hardly is {hardly!r}; choose a share of the median from 0 to below 1, as 0.1")
    if scaling is not None and not (isinstance(scaling, float | int) and 0 < scaling < math.inf):
        raise OptionError(f"scaling is {scaling!r}; choose a number above 0, or None for the one that was trained")


def _check_split(run: Run, modules: Sequence[str]) -> None:
    """Raise where query, key and value of a fused matrix are shown apart, which no adapter has ranks for."""
    parts = [name for name in run.source.parts if name in set(modules)] if isinstance(run.source, SplitSource) else []
    if parts:
        raise OptionError(
            f"{run.source.where}: {parts[0]} is a part of a fused matrix, and adapters are put on the whole; open the "
            "run with split=False"
        )


def _of_module(stop: Stop) -> list[dict[str, Any]]:
    run, module, step = stop.run, stop.module, stop.step
    rows, columns = run.shape(module)
    part = low_rank_part(run, module, step)
    product = part is not None and part.scales_base
    update = Update(factors=part.factors) if part is not None and product else update_at(stop)
    found = update.spectrum()
    values = found.singular_values.double().numpy()
    base = stop.once("norms of W₀", lambda: Norms(partial(run.base, module)))
    try:
        base_norm = base.frobenius
    except BaseError:
        base_norm = math.nan
    floor, rounding = found.tolerance, 0.0
    if update.factors is not None:
        of_factors, rounding = _rounding_of(update.factors)
        floor = max(floor, of_factors)
    elif update.floor is not None:
        rounding = UNIFORM * update.floor.eps * base_norm
    signal = values[values > floor]
    return [
        stop.labels
        | {"step": step, "of": "product" if product else "update", "rows": rows, "columns": columns}
        | {"trained": None if part is None else part.rank, "scaling": None if part is None else part.factors.scaling}
        | {"stabilized": part is not None and part.stabilized, "norm": float(np.sqrt(np.sum(values**2)))}
        | {"base_norm": base_norm, "rounding": rounding}
        | {"singular_value": signal if len(signal) else np.zeros(1)}
    ]


def _rounding_of(factors: ScaledFactors) -> tuple[float, float]:
    """The floor eps·s·‖U‖₂·‖V‖₂ of what the rounding of stored factors leaves, and its expected Frobenius norm at most.

    An entry u rounds by an error of standard deviation eps/(2√3)·|u| at most, so that of U V has
    E‖E_U V + U E_V‖_F² ≤ (eps²/6)·Σ_k ‖u_k‖²‖v_k‖².
    """
    eps = max(torch.finfo(factor.dtype).eps for factor in (factors.U, factors.V))
    left, right = (gram.cpu() for gram in grams(factors.U.detach(), factors.V.detach().T))
    scale = abs(factors.scaling)
    spectral = math.sqrt(max(float(torch.linalg.eigvalsh(left)[-1]), 0.0))
    spectral *= math.sqrt(max(float(torch.linalg.eigvalsh(right)[-1]), 0.0))
    terms = math.sqrt(float(left.diagonal() @ right.diagonal()))
    return eps * scale * spectral, eps * scale * terms * UNIFORM * math.sqrt(2)


def _described(frame: pd.DataFrame, values: dict[Any, Any], hardly: float, scaling: float | None) -> pd.DataFrame:
    found = frame.copy()
    found["relative"] = found["norm"] / found["base_norm"]
    entries = np.sqrt(found["rows"] * found["columns"])
    size = found["norm"] / entries if found["base_norm"].isna().any() else found["relative"]
    middle = float(size.median())
    found["against_median"] = size / middle if middle > 0 else np.nan
    found["hardly"] = (found["against_median"] < hardly) | (found["norm"] <= 2 * found["rounding"])
    signal = [values[place] for place in zip(found["run"], found["module"], strict=True)]
    found["noise_rank"] = [len(of) for of in signal]
    found["stable_rank"] = [float(np.sum((of / of[0]) ** 2)) if len(of) else 0.0 for of in signal]
    found["effective_rank"] = [_entropy(of) for of in signal]
    for share in (0.9, 0.99):
        found[f"energy_rank_{share * 100:.0f}"] = [rank_by(of, "energy", share) for of in signal]
    used = found["scaling"].astype(float).fillna(1.0) if scaling is None else float(scaling)
    found["scaling"] = used
    found["parameters_now"] = found["trained"] * (found["rows"] + found["columns"])
    return found


def _entropy(values: Any) -> float:
    if not len(values):
        return 0.0
    p = values / values.sum()
    return math.exp(-float(np.sum(p * np.log(p))))


def _ranks(
    found: pd.DataFrame,
    signal: list[Any],
    rule: str,
    at: float,
    together: bool,
    parameters: Budget,
    spread: Spread,
    least: int,
) -> tuple[list[int], str]:
    """The ranks of a run's modules, and the rule in words."""
    costs = [int(cost) for cost in found["rows"] + found["columns"]]
    if parameters is None:
        said = f"{rule}: {RULES[rule].formula}" + ("" if math.isnan(at) else f", at = {at:g}")
        if together:
            ranks = fewest(signal, costs, at)
            said += ", over all modules together"
        else:
            ranks = [rank_by(of, rule, None if math.isnan(at) else at) for of in signal]
        return [max(least, rank) for rank in ranks], said
    now = found["parameters_now"]
    if parameters == "same":
        if now.isna().any():
            where = found["module"][now.isna()].iloc[0]
            raise OptionError(f"parameters is 'same', and {where} has no adapter to count; give a number of parameters")
        parameters = int(now.sum())
    by_need = spread == "need" or (spread is None and not now.isna().any() and parameters >= int(now.sum()))
    said = f"{parameters} parameters shared out by " + (
        "need: ranks in proportion to the effective rank" if by_need else "energy: the most of all ‖ΔW‖_F²"
    )
    if by_need:
        limits = [int(limit) for limit in found[["rows", "columns"]].min(axis=1)]
        needs = [float(need) for need in found["effective_rank"]]
        return in_proportion(needs, costs, parameters, limits, least), said
    return within(signal, costs, parameters, least), said


def _with_ranks(found: pd.DataFrame, signal: list[Any], ranks: list[int]) -> pd.DataFrame:
    found = found.copy()
    found["rank"] = ranks
    held = [float(np.sum((of[:rank] / of[0]) ** 2)) if len(of) else 0.0 for of, rank in zip(signal, ranks, strict=True)]
    found["kept"] = [share / whole if whole else 1.0 for share, whole in zip(held, found["stable_rank"], strict=True)]
    root = np.where(found["stabilized"], np.sqrt(found["rank"]), found["rank"])
    found["alpha"] = found["scaling"] * root
    found["parameters"] = found["rank"] * (found["rows"] + found["columns"])
    return found
