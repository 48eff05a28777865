"""What Dual LoRA's claims alone need: ranks by layer, and every split r₁ : r₂ of its rank.

In its experiments r₁ = r₂ = r, and LoRA and the others have rank 2r, which is as many parameters. So they are compared
here: Dual LoRA at r with another method at 2r, where both were run.
"""

from collections.abc import Iterator, Mapping

import pandas as pd

from deltaw.analysis.claims.evidence import require_methods, trained
from deltaw.analysis.claims.interval import Measured, Undecidable
from deltaw.analysis.claims.rules import Parts, mean_over
from deltaw.analysis.claims.scores import ANY, clear_of, score_difference

METHOD = "dual-lora"


def rank_ratio(
    spectra: pd.DataFrame, over: Mapping[str, str], under: Mapping[str, str], trained_only: bool = True
) -> Parts:
    """Return the ratio of two ranks in every layer, at the lowest r whose runs there are.

    Arguments:
        spectra: See ``Evidence``.
        over, under: A method, a group of its update, and the column of the table.
        trained_only: Leave out runs that are no better than guessing. A rank that an equation bounds is bounded whether
            the run has learned or not.
    """
    if not trained_only:
        spectra = spectra.drop(columns="guessing", errors="ignore")
    methods = {over["method"], under["method"]}
    require_methods(spectra, sorted(methods))
    middle = even_ranks(trained(spectra), "adapter_rank")
    ranks = {method: _ranks_of(middle, method) for method in methods}
    if methods == {"lora", METHOD}:
        fitting = [r for r in ranks[METHOD] if 2 * r in ranks["lora"]]
        if not fitting:
            raise Undecidable(f"missing: {_wanted(ranks[METHOD])}")
        chosen = {METHOD: fitting[0], "lora": 2 * fitting[0]}
    else:
        chosen = {method: found[0] for method, found in ranks.items() if found}
    if not chosen:
        raise Undecidable(f"missing: a run of {METHOD} with r₁ = r₂")

    def by_layer(part: Mapping[str, str]) -> "pd.Series[float]":
        method, group, column = part["method"], part["group"], part["column"]
        rows = middle[(middle["method"] == method) & (middle["group"] == group)]
        rows = rows[rows["adapter_rank"] == chosen[method]]
        layer = rows["layer"].astype("string").fillna(rows["module"].astype("string"))
        found: pd.Series[float] = rows[column].astype("float64").groupby(layer.rename("part"), sort=False).mean()
        return found

    ratio = (by_layer(over) / by_layer(under)).dropna()
    note = ", ".join(f"{method} of rank {rank}" for method, rank in sorted(chosen.items()))
    return mean_over({f"layer {part}": float(value) for part, value in ratio.items()}, note)


def _wanted(ranks: list[int]) -> str:
    if not ranks:
        return f"a run of {METHOD} with r₁ = r₂"
    return f"a run of lora of rank {' or '.join(str(2 * rank) for rank in ranks)}"


def _ranks_of(frame: pd.DataFrame, method: str) -> list[int]:
    return sorted({int(rank) for rank in frame.loc[frame["method"] == method, "adapter_rank"].dropna()})


def even_ranks(frame: pd.DataFrame, column: str = "rank") -> pd.DataFrame:
    """Return all but Dual LoRA with r₁ ≠ r₂, which is compared by its split alone."""
    if "direction_rank" not in frame.columns:
        return frame
    uneven = frame["direction_rank"].notna() & (frame["direction_rank"] != frame[column])
    return frame[~(uneven.astype(bool) & (frame["method"] == METHOD))]


def _fitting(frame: pd.DataFrame, other: str) -> Iterator[tuple[str, pd.DataFrame, pd.DataFrame]]:
    """Dual LoRA's runs of every r₁ : r₂ whose sum another method was run with, as rank, and that method's.

    Where there are several sums, the lowest.
    """
    require_methods(frame, [METHOD, other])
    dual = frame[frame["method"] == METHOD]
    rows = frame[frame["method"] == other]
    second = dual["direction_rank"].fillna(dual["rank"])
    sums = dual["rank"] + second
    ranks = sorted({int(rank) for rank in rows["rank"].dropna()} & {int(one) for one in sums})
    if not ranks:
        wanted = " or ".join(str(one) for one in sorted({int(one) for one in sums}))
        raise Undecidable(f"missing: a run of {other} of rank {wanted}")
    chosen = dual[sums == ranks[0]]
    for first, found in chosen.groupby("rank"):
        number = int(str(first))
        yield f"{number} : {ranks[0] - number}", found, rows[rows["rank"] == ranks[0]]


def parameters_by_split(runs: pd.DataFrame, other: str) -> Parts:
    """Return the ratio of trainable parameters at every r₁ : r₂."""
    return Parts(
        {
            name: Measured(float(found["trainable"].median() / rows["trainable"].median()), None)
            for name, found, rows in _fitting(runs, other)
        }
    )


def scores_by_split(scores: pd.DataFrame, other: str) -> Parts:
    """Return the difference at every r₁ : r₂; what is shown is the share of ratios where it is above 0."""
    differences = {
        name: score_difference(pd.concat([found, rows]), ANY, METHOD, other, None)
        for name, found, rows in _fitting(scores, other)
    }
    parts = clear_of(differences)
    above = sum(found.statistic > 0 for found in differences.values())
    return Parts(parts.each, parts.one_breaks, parts.note, statistic=above / len(differences))
