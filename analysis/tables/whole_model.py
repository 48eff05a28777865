"""The agreement of runs over the whole model: from a row a module to a row a pair, and to a square of runs × runs."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from deltaw.adapters.checks import public
from deltaw.adapters.errors import OptionError
from deltaw.analysis.tables.agreement import COSINE, ENDS, PAIR
from deltaw.analysis.tables.tidy import require_columns


@public
def model_agreement(frame: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    r"""Return how far the updates of runs agree over all modules, a row a pair of runs and of steps.

        cosine = Σ_m ⟨A_m, B_m⟩ / √(Σ_m ‖A_m‖² Σ_m ‖B_m‖²)

    the cosine of the whole models' updates as one vector each, in which modules with large updates count more, beside
    ``cosine_mean``, the mean of the modules' own cosines. The spread by chance is

        cosine_chance = √(Σ_m ‖A_m‖² ‖B_m‖² / (out_m·in_m)) / √(Σ_m ‖A_m‖² Σ_m ‖B_m‖²)

    Sign agreement and Jaccard are those of all entries together.

    Arguments:
        frame: What `update_agreement` returns.
        by: Further columns to tell apart, as ["kind"] or ["layer"].

    Returns:
        One row each: run_first, run_second, step_first, step_second, the columns of ``by``, modules (how many),
        entries, norm_first, norm_second, cosine, cosine_mean, cosine_chance, and of what the table has sign_agreement,
        sign_expected, sign_chance, energy_left, energy_left_reverse, energy_left_expected, …, jaccard,
        jaccard_expected, visible_first, visible_second. Modules without an update in one of the two are left out.

    Raises:
        OptionError: The table is of another form.
    """
    require_columns(frame, [*PAIR, *COSINE, "entries", "module"], "update_agreement")
    wanted = [by] if isinstance(by, str) else list(by)
    require_columns(frame, wanted, "update_agreement")
    groups = frame.groupby([*PAIR, *wanted], sort=False, dropna=False)
    keys = [*PAIR, *wanted]
    rows = [dict(zip(keys, key, strict=True)) | _whole(rows) for key, rows in groups]
    return pd.DataFrame(rows)


def whole_cosine(rows: pd.DataFrame) -> dict[str, float]:
    """Return the cosine of two models' updates from those of their modules, with its mean and spread by chance.

    Arguments:
        rows: A row a module, with norm_first, norm_second, cosine and cosine_chance; see `model_agreement`.
    """
    first, second, cosine, spread = (
        rows[name].to_numpy(dtype=np.float64) for name in ("norm_first", "norm_second", "cosine", "cosine_chance")
    )
    there = ~np.isnan(cosine)  # NaN where one of the two is zero
    whole = math.sqrt(np.nansum(first**2)) * math.sqrt(np.nansum(second**2))
    products = (first * second)[there]
    if not whole:
        return {"cosine": math.nan, "cosine_mean": math.nan, "cosine_chance": math.nan}
    return {
        "cosine": float((products * cosine[there]).sum()) / whole,
        "cosine_mean": float(cosine[there].mean()) if there.any() else math.nan,
        "cosine_chance": math.sqrt(np.sum((products * spread[there]) ** 2)) / whole,
    }


def _whole(rows: pd.DataFrame) -> dict[str, float]:
    known = rows[rows["norm_first"].notna() & rows["norm_second"].notna()]
    entries, first, second = (known[name].to_numpy(dtype=np.float64) for name in ("entries", *COSINE[:2]))
    found: dict[str, float] = {"modules": len(known), "entries": int(entries.sum())}
    found |= {"norm_first": math.sqrt(np.sum(first**2)), "norm_second": math.sqrt(np.sum(second**2))}
    found |= whole_cosine(known)
    share = entries / max(entries.sum(), 1)
    if "sign_agreement" in rows:
        found |= {name: float((known[name] * share).sum()) for name in ("sign_agreement", "sign_expected")}
        found["sign_chance"] = 0.5 / math.sqrt(entries.sum()) if len(known) else math.nan
    for side in ENDS if "directions" in rows else ():
        for end, norm in (("", second), ("_reverse", first), ("_expected", second)):
            weights = np.where(known[f"energy_{side}{end}"].notna(), norm**2, 0.0)
            total = weights.sum()
            found[f"energy_{side}{end}"] = (
                float((known[f"energy_{side}{end}"].fillna(0.0) * weights).sum() / total) if total else math.nan
            )
    if "jaccard" in rows:
        found |= _whole_masks(rows[rows["visible_first"].notna()])
    return found


def _whole_masks(rows: pd.DataFrame) -> dict[str, float]:
    entries = rows["entries"].to_numpy(dtype=np.float64)
    p, q = (rows[f"visible_{name}"].to_numpy(dtype=np.float64) for name in ("first", "second"))
    jaccard = rows["jaccard"].fillna(0.0).to_numpy(dtype=np.float64)
    either = entries * (p + q) / (1 + jaccard)  # |A ∪ B| = (|A| + |B|)/(1 + J)
    shared, all_of = float((jaccard * either).sum()), float(either.sum())
    independent = entries * p * q
    beside = float((entries * (p + q) - independent).sum())
    return {
        "jaccard": shared / all_of if all_of else math.nan,
        "jaccard_expected": float(independent.sum()) / beside if beside else math.nan,
        "visible_first": float((entries * p).sum() / entries.sum()) if len(rows) else math.nan,
        "visible_second": float((entries * q).sum() / entries.sum()) if len(rows) else math.nan,
    }


@public
def agreement_matrix(frame: pd.DataFrame, measure: str = "cosine") -> pd.DataFrame:
    """Return a measure of the whole model as a square table of runs × runs.

    Arguments:
        frame: What `update_agreement` returns, or `model_agreement` of it without ``by``; of one step.
        measure: A column of `model_agreement`: "cosine", "cosine_mean", "sign_agreement", "jaccard", or "energy_left"
            and "energy_right", where row i and column j are the share of j's energy in i's directions.

    Returns:
        Runs × runs in the order of the table; 1 on the diagonal.

    Raises:
        OptionError: There is no such measure, or the table is of several steps.
    """
    whole = frame if "cosine_mean" in frame else model_agreement(frame)
    named = [name for name in whole.columns if name.startswith(("cosine", "sign", "energy", "jaccard", "visible"))]
    if measure not in named:
        raise OptionError(f"measure is {measure!r}; choose one of {', '.join(named)}")
    if whole.duplicated(["run_first", "run_second"]).any():
        raise OptionError("the table has several rows of two runs; pass one step, and model_agreement without by")
    names = list(dict.fromkeys([*whole["run_first"], *whole["run_second"]]))
    square = pd.DataFrame(np.eye(len(names)), index=names, columns=names)
    back = f"{measure}_reverse" if f"{measure}_reverse" in whole else measure
    for row in whole.to_dict("records"):
        square.loc[row["run_first"], row["run_second"]] = row[measure]
        square.loc[row["run_second"], row["run_first"]] = row[back]
    return square
