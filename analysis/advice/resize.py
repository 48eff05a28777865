"""Adapters written at other ranks, with the error of each matrix; LoRA extracted from whole models by the same way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from deltaw.adapters.checks import public, whole_number
from deltaw.adapters.errors import OptionError
from deltaw.adapters.method import ScaledFactors
from deltaw.analysis.advice.adapter_folder import NewFolder, check_new, write_new
from deltaw.analysis.advice.config import Advised, read_advice
from deltaw.analysis.measures.truncation import decomposed, distance
from deltaw.analysis.progress import progress as shown
from deltaw.analysis.records.foreign.base import BaseError, BaseLike
from deltaw.analysis.tables.low_rank_part import LowRankPart, low_rank_part
from deltaw.analysis.tables.run import Run
from deltaw.analysis.tables.stop import located
from deltaw.analysis.tables.walk import chosen_modules, chosen_steps
from deltaw.analysis.trajectory import Trajectory

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
COLUMNS = [
    "module",
    "of",
    "rows",
    "columns",
    "rank_before",
    "rank",
    "alpha",
    "scaling",
    "dtype",
    "frobenius",
    "spectral",
]
COLUMNS += ["cut_frobenius", "cut_spectral", "error_frobenius", "error_spectral", "error_update"]


@dataclass(frozen=True, eq=False)
class _Wanted:
    """What is cut of a module, and what an adapter of it has beside."""

    update: Tensor | ScaledFactors
    part: LowRankPart | None
    dtype: torch.dtype


@public
def resize(
    adapter: str | Path | Trajectory,
    out: str | Path,
    *,
    rank: int | None = None,
    advice: str | Path | None = None,
    rule: str | None = None,
    at: float | None = None,
    together: bool = False,
    parameters: int | None = None,
    most: int | None = None,
    base: BaseLike = None,
    step: int | None = None,
    modules: Sequence[str] | None = None,
    dtype: str | None = None,
    plain: bool = False,
    grow: bool = False,
    progress: bool = False,
) -> pd.DataFrame:
    """Write an adapter at other ranks as a folder of PEFT's, and return how far each matrix is from what it was.

    Every s·B A becomes its best approximation of the new rank, (s·B A)_k, exact from the factors (Eckart, Young 1936),
    in float64; what is stored is rounded to ``dtype``, and the error that is stated counts this rounding. Scales stay
    what they were, so α = s·k (s·√k for rsLoRA). What PEFT's folder holds beside (``modules_to_save``, biases) goes
    along as it is, and so do adapters that are no plain A and B of a linear layer (convolutions, embeddings, experts,
    attention's in_proj): ``attrs["kept"]`` names them.

    - DoRA keeps its magnitudes: W' = diag(m/‖·‖) (W₀ + (s·B A)_k). The error of that in ΔW needs W₀ and is measured,
      column ``error_update``; without W₀ it is refused.
    - Whatever else has a ΔW (PiSSA, LoHa, …; whole models with ``base``) becomes plain LoRA with s = 1: a LoRA is
      extracted. Only linear layers: what else was trained is not in it.

    Arguments:
        adapter: A folder of PEFT's, a recorded run, or a whole model with ``base``; or an opened run.
        out: The new folder. It must not be there, or be empty; it appears whole or not at all.
        rank: The rank of all modules; those that have less stay as they are.
        advice: Instead a file that ``deltaw advise`` has written.
        rule, at, together, parameters, most: Instead the ranks of `advice_table` with these; "energy" with 0.99 holds
            the relative error below 0.1.
        base: W₀, where it is needed and not recorded.
        step: The step; ``None`` for the last.
        modules: Glob patterns; the others stay as they are. Of what has no adapter, the others get none.
        dtype: "float64", "float32", "bfloat16" or "float16"; ``None`` for that in which it is stored.
        plain: Write plain LoRA of ΔW for DoRA and BoRA too, whose ΔW is of full rank: the error is large.
        grow: Allow ranks above those that were trained; what is added is 0 and can be trained.
        progress: Show a progress bar.

    Returns:
        One row a module: module, of ("update" or "product"), rows, columns, rank_before (missing where there was no
        adapter), rank, alpha, scaling, dtype; frobenius, spectral (the norms of ΔW, of DoRA those of s·B A); relative
        to these cut_frobenius = √(Σ_{i>k} σ_i² / Σ_i σ_i²) and cut_spectral = σ_{k+1}/σ₁ of cutting alone, and
        error_frobenius, error_spectral of what is stored; error_update (‖ΔW − ΔW_k‖_F/‖ΔW‖_F, where that is another).
        The same stands in ``deltaw_resize.json`` in the folder. ``attrs["kept"]``: adapters that stay as they are.

    Raises:
        OptionError: No rank, or several, are given; a rank is above the trained one; nothing can be resized; a method
            that PEFT has not.
        RecordError: The adapter is damaged, or W₀ is needed.
        WriteError: ``out`` holds something, or cannot be written.

    Source:
        Eckart, Young 1936; Mirsky 1960.

    Example:
        >>> import tempfile
        >>> from deltaw.adapters import LoRA, inject, save_peft
        >>> model = inject(torch.nn.Sequential(torch.nn.Linear(6, 4)), LoRA(rank=3), targets=["0"])
        >>> folder = Path(tempfile.mkdtemp())
        >>> save_peft(model, folder / "three")
        >>> resize(folder / "three", folder / "two", rank=2)[["module", "rank_before", "rank"]].values.tolist()
        [['0', 3, 2]]
    """
    given = [name for name, value in (("rank", rank), ("advice", advice), ("rule", rule)) if value is not None]
    given += ["parameters"] if parameters is not None else []
    if len(given) != 1:
        raise OptionError(
            f"{'nothing' if not given else ' and '.join(given)} is given; give one of rank, advice, rule and parameters"
        )
    if rank is not None:
        whole_number("rank", rank, 1)
    if dtype is not None and dtype not in DTYPES:
        raise OptionError(f"dtype is {dtype!r}; choose one of {', '.join(DTYPES)}, or None for that which is stored")
    check_new(Path(out))
    run = adapter if isinstance(adapter, Trajectory) else Trajectory.open(adapter, base=base, split=False)
    at_step = chosen_steps(run, "last" if step is None else [step])[0]
    new = NewFolder(run, at_step, base)
    chosen = chosen_modules(run.modules, modules)
    names = [name for name in chosen if new.resizable(name)]
    lost = [name for name in chosen if name not in set(names)] if not new.keeps_others else []
    if lost:
        raise OptionError(
            f"{run.source.where}: {lost[0]} is a convolution, which would be missing in the new adapter, and "
            f"{len(lost) - 1} more; name the linear layers by modules (--modules), to leave it out"
        )
    if not names:
        raise OptionError(
            f"{run.source.where}: no adapter on a linear layer can be resized there"
            + (f"; as they are stay {', '.join(new.kept(names)[:4])}" if new.kept(names) else "")
        )
    if advice is not None:
        ranks = _advised(read_advice(advice), names, str(advice))
    elif rank is not None:
        ranks = dict.fromkeys(names, rank)
    else:
        table = run.advice(
            at_step,
            names,
            rule=rule or "energy",
            at=at,
            together=together,
            parameters=parameters,
            most=most,
            cache=False,
        )
        ranks = dict(zip(table["module"], map(int, table["rank"]), strict=True))
    rows = []
    for name in shown(names, f"resizing {run.name}", "matrix", progress):
        with located(run, name, f"at step {at_step}"):
            wanted = _wanted(run, name, at_step, plain)
            k = _rank_of(name, ranks[name], run, wanted, grow, exact=rank is None)
            row, B, A = _cut(run, name, at_step, wanted, k, None if dtype is None else DTYPES[dtype])
        magnitude = None if wanted.part is None else wanted.part.magnitude
        new.put(name, B, A, row["alpha"], magnitude, stabilized=wanted.part is not None and wanted.part.stabilized)
        rows.append(row)
    if rank is not None and not grow and all(row["rank"] < min(rank, row["rows"], row["columns"]) for row in rows):
        most_there = max(row["rank"] for row in rows)
        raise OptionError(
            f"rank is {rank}, and the largest there is {most_there}; a larger rank adds nothing to what was trained: "
            "with grow=True (--grow) it is filled with zeros, to train on"
        )
    frame = pd.DataFrame(rows, columns=COLUMNS)
    frame["rank_before"] = frame["rank_before"].astype("Int64")
    frame.attrs = {"kept": new.kept(names)}
    write_new(Path(out), new, frame)
    return frame


def _advised(advised: dict[str, Advised], names: Sequence[str], where: str) -> dict[str, int]:
    """The ranks of a file of advice; it must name every module that is resized."""
    missing = [name for name in names if name not in advised]
    if missing:
        raise OptionError(
            f"{where}: has no rank for {missing[0]}"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            + "; take advice of this adapter, without dropped modules, or name the modules by patterns"
        )
    return {name: advised[name].rank for name in names}


def _wanted(run: Run, name: str, step: int, plain: bool) -> _Wanted:
    """What is cut of a module: s·B A where that is what an adapter has, else ΔW."""
    part = low_rank_part(run, name, step)
    if part is not None and part.whole:
        return _Wanted(part.factors, part, part.factors.U.dtype)
    if part is not None and part.scales_base and not plain:
        method = run.source.label(name)
        if method != "dora-row" or part.magnitude is None:
            raise OptionError(
                f"{run.source.where}: {name} is {method}, whose magnitudes have no counterpart in PEFT; "
                "plain=True (--plain) writes a plain LoRA of its ΔW, and says how much that loses"
            )
        return _Wanted(part.factors, part, part.factors.U.dtype)
    factors = run.source.scaled_factors(name, step)
    if factors is not None:
        return _Wanted(factors, None, factors.U.dtype)
    stored = run.source.rounding(name, step) or run.weight(name, step).dtype
    return _Wanted(run.update(name, step), None, stored)


def _rank_of(name: str, rank: int, run: Run, wanted: _Wanted, grow: bool, *, exact: bool) -> int:
    """The new rank of a module; above the trained one only where that is allowed."""
    rows, columns = run.shape(name)
    now = min(rows, columns) if wanted.part is None else wanted.part.rank
    if rank > now and not grow:
        if not exact:  # one rank for all: those that have less stay as they are
            return now
        raise OptionError(
            f"rank is {rank} for {name}, which has {now}; a larger rank adds nothing to what was trained: with "
            "grow=True (--grow) it is filled with zeros, to train on"
        )
    return min(rank, rows, columns)


def _cut(
    run: Run, name: str, step: int, wanted: _Wanted, rank: int, dtype: torch.dtype | None
) -> tuple[dict[str, Any], Tensor, Tensor]:
    found, (rows, columns) = decomposed(wanted.update), run.shape(name)
    part, scaling = wanted.part, 1.0 if wanted.part is None else wanted.part.factors.scaling
    if scaling <= 0:
        raise OptionError(
            f"its scale is {scaling:g}; one above 0 is needed, as the new factors are those of ΔW over it"
        )
    stored = dtype or wanted.dtype
    B, A = found.halves(rank, scaling, stored)
    cut, error = found.beyond(rank), distance(wanted.update, B, A, scaling)
    whole = (found.frobenius or 1.0, found.spectral or 1.0)
    row = {
        "module": name,
        "of": "product" if part is not None and part.scales_base else "update",
        "rows": rows,
        "columns": columns,
        "rank_before": None if part is None else part.rank,
        "rank": rank,
        "alpha": scaling * (math.sqrt(rank) if part is not None and part.stabilized else rank),
        "scaling": scaling,
        "dtype": str(stored).removeprefix("torch."),
        "frobenius": found.frobenius,
        "spectral": found.spectral,
        "cut_frobenius": cut[0] / whole[0],
        "cut_spectral": cut[1] / whole[1],
        "error_frobenius": error[0] / whole[0],
        "error_spectral": error[1] / whole[1],
        "error_update": math.nan,
    }
    if part is not None and part.magnitude is not None:
        row["error_update"] = _of_dora(run, name, step, part, scaling * (B.double() @ A.double()))
    return row, B, A


def _of_dora(run: Run, name: str, step: int, part: LowRankPart, product: Tensor) -> float:
    """‖ΔW − ΔW_k‖_F/‖ΔW‖_F of DoRA, whose magnitudes stay: measured, with W₀."""
    try:
        base = run.base(name).double()
    except BaseError as error:
        raise BaseError(f"{error} (the error of a smaller DoRA is that of its W', which rests on W₀)") from None
    before = run.weight(name, step, torch.float64)
    moved = base + product.to(base.device)
    norms = torch.linalg.vector_norm(moved, dim=1)
    magnitude = torch.zeros(1) if part.magnitude is None else part.magnitude
    scale = torch.where(norms > 0, magnitude.reshape(-1).double() / norms, 1.0)
    whole = float((before - base).norm())
    return float((before - scale[:, None] * moved).norm()) / (whole or 1.0)
