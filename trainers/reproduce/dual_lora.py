"""Dual LoRA: the rank of its groups by layer, and the score against the ratio of their ranks."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from deltaw.adapters import OptionError
from deltaw.analysis.claims import Claim, Outcome, Verdict, score_outcome
from deltaw.analysis.figures import rank as draw_rank
from deltaw.analysis.figures import sweep
from deltaw.analysis.tables import open_runs, table
from deltaw.analysis.tidy import display_name
from deltaw.trainers.cola.experiment import ColaSettings
from deltaw.trainers.cola.grid import grid_page, grid_table, train_grid
from deltaw.trainers.reproduce.common import Report, over_parts, results_frame, write_report

BASELINES = ("lora", "dora")
METHOD = "dual-lora"


def reproduce_dual_lora(
    out: str | Path,
    settings: ColaSettings,
    rank: int = 8,
    ratios: int = 5,
    seeds: Sequence[int] | None = None,
    *,
    progress: bool = True,
) -> Report:
    """Train Dual LoRA with several ratios r₁ : r₂ on CoLA, draw its Figures 2 and 3, and check what the paper says.

    In all runs r₁ + r₂ = 2·rank, so LoRA and DoRA of rank 2·rank, which are trained too, have as many parameters. The
    ranks by layer are those of r₁ = r₂ = rank. What is finished is not done again; a run that was interrupted goes on.

    Arguments:
        out: The folder: runs/baselines and runs/ratio-R1-R2 (grids, see ``train_grid``), tables, pictures.
        settings: Everything but method, rank and seed; see ``ColaSettings``.
        rank: r. The paper has 16.
        ratios: How many, evenly from 6 % to 94 % of 2·rank for r₁; see ``first_ranks``. The paper has 15.
        seeds: The grids'.
        progress: Show progress bars.

    Raises:
        GridError: Runs have failed; the same call tries them again.
        RecordError, OptionError, DataError, TargetError: As ``train_grid``.

    Source:
        Dual LoRA, §4.3 with Figure 2, §5 with Figure 3.
    """
    out = Path(out)
    ranks = first_ranks(rank, ratios)
    results = train_grid(
        settings, out / "runs" / "baselines", methods=BASELINES, ranks=[2 * rank], seeds=seeds, progress=progress
    )
    places = [out / "runs" / "baselines" / result.out for result in results]
    seconds: list[int | None] = [None] * len(results)
    for first in ranks:
        second = 2 * rank - first
        folder = out / "runs" / f"ratio-{first}-{second}"
        own = {METHOD: {"direction_rank": second}}
        found = train_grid(
            settings, folder, methods=[METHOD], ranks=[first], seeds=seeds, options=own, progress=progress
        )
        results += found
        places += [folder / result.out for result in found]
        seconds += [second] * len(found)
    frame = results_frame(results)
    frame["direction_rank"] = pd.array(seconds, dtype="Int64")

    equal = (frame["method"] == "lora") | ((frame["method"] == METHOD) & (frame["rank"] == rank))
    spectra = table(
        open_runs([place for place, shown in zip(places, equal, strict=True) if shown]),
        "spectra",
        steps="last",
        progress=progress,
    )
    summary = grid_table(results)
    summary["rank"] = [
        f"{r} : {2 * rank - r}" if method == METHOD else str(r)
        for method, r in zip(summary["method"], summary["rank"], strict=True)
    ]
    outcomes = list(dual_lora_claims(spectra, frame, rank))
    figures = {"figure2_sweep": sweep(frame), "figure3_rank": draw_rank(spectra)}
    tables = {
        "results.csv": summary.to_csv(index=False),
        "results.md": grid_page(summary, markdown=True) + "\n",
        "runs.csv": frame.to_csv(index=False),
        "ranks.csv": spectra.to_csv(index=False),
    }
    return write_report(out, "Dual LoRA", results, outcomes, figures, tables, grid_page(summary))


def first_ranks(rank: int, ratios: int) -> list[int]:
    """Return r₁ of a sweep with r₁ + r₂ = 2·rank: evenly from 1/16 to 15/16 of it, and the middle.

    Raises:
        OptionError: One of the two is below 1.

    Example:
        >>> first_ranks(8, 5)
        [1, 4, 8, 12, 15]
        >>> first_ranks(16, 15) == list(range(2, 31, 2))  # the paper's
        True
    """
    for name, value in (("rank", rank), ("ratios", ratios)):
        if value < 1:
            raise OptionError(f"{name} must be at least 1, not {value!r}")
    spaced = np.linspace(rank / 8, 15 * rank / 8, ratios) if ratios > 1 else [rank]
    return sorted({rank, *(min(max(round(float(r)), 1), 2 * rank - 1) for r in spaced)})


def dual_lora_claims(spectra: pd.DataFrame, results: pd.DataFrame, rank: int) -> Iterator[Outcome]:
    """Yield what Dual LoRA says beside what was seen.

    Ranks are means over a layer's matrices and the runs; a claim on them has to hold in every layer. "Almost full" is
    at least 0.95 of it, "much larger" at least 1.5 times, as in BoRA's claims.

    Arguments:
        spectra: ``Trajectory.spectra`` of LoRA and of Dual LoRA with r₁ = r₂ = rank, at one step.
        results: One row a run: method, rank, direction_rank, seed, best_mcc, n_dev, trainable.
        rank: r; LoRA's rank is 2r.
    """
    yield from _rank_claims(spectra, rank)
    trained = results.groupby(["method", "rank"])["trainable"].first()
    dual = sorted(results.loc[results["method"] == METHOD, "rank"])
    yield over_parts(
        Claim("Dual LoRA", "§4.3", "With r₁ + r₂ = 2r it trains as many parameters as LoRA of rank 2r", 1.0),
        "trainable parameters, Dual LoRA / LoRA",
        "ratio 1 at every r₁ : r₂",
        {f"{r} : {2 * rank - r}": float(trained[METHOD, r] / trained["lora", 2 * rank]) for r in dict.fromkeys(dual)},
        lambda ratio: ratio == 1,
    )
    for other in BASELINES:
        yield _sweep_outcome(results, other, rank)


def _rank_claims(spectra: pd.DataFrame, rank: int) -> Iterator[Outcome]:
    layer = spectra["layer"].astype("string").fillna(spectra["module"].astype("string")).rename("part")
    means = spectra.groupby(["method", "group", layer])[["rank", "full_rank"]].mean()

    def by_layer(method: str, group: str, column: str = "rank") -> "pd.Series[float]":
        rows = pd.DataFrame(means.xs((method, group), level=("method", "group")))
        return rows[column].astype("float64")

    lora, overall = by_layer("lora", "update"), by_layer(METHOD, "update")
    magnitude, direction = by_layer(METHOD, "magnitude"), by_layer(METHOD, "direction")
    full = by_layer(METHOD, "update", "full_rank")
    name, limit = f"LoRA of rank {2 * rank}", 2 * rank

    def check(
        source: str, sentence: str, measured: str, rule: str, values: "pd.Series[float]", holds: Callable[[float], bool]
    ) -> Outcome:
        parts = {f"layer {part}": float(value) for part, value in values.items()}
        return over_parts(
            Claim("Dual LoRA", f"§5, {source}", sentence), measured, f"{rule} in every layer", parts, holds
        )

    yield check(
        "equation 15",
        f"The update of {name} has no higher rank than that",
        "rank of ΔW, LoRA",
        f"rank ≤ {limit}",
        lora,
        lambda value: value <= limit,
    )
    yield check(
        "Figure 3",
        f"The overall update has a higher rank than that of {name}",
        "rank of ΔW, Dual LoRA / LoRA",
        "ratio > 1",
        overall / lora,
        lambda value: value > 1,
    )
    yield check(
        "Figure 3",
        "The overall update is almost of full rank",
        "rank of ΔW / full rank",
        "ratio ≥ 0.95",
        overall / full,
        lambda value: value >= 0.95,
    )
    yield check(
        "Figure 3",
        "The direction group is almost of full rank",
        "rank of the direction group / full rank",
        "ratio ≥ 0.95",
        direction / full,
        lambda value: value >= 0.95,
    )
    yield check(
        "Figure 3",
        "The magnitude group has a lower rank than the whole",
        "rank, magnitude group / overall",
        "ratio < 1",
        magnitude / overall,
        lambda value: value < 1,
    )
    yield check(
        "Figure 3",
        f"The magnitude group has a much higher rank than the update of {name}",
        "rank, magnitude group / LoRA",
        "ratio ≥ 1.5",
        magnitude / lora,
        lambda value: value >= 1.5,
    )


def _sweep_outcome(results: pd.DataFrame, other: str, rank: int) -> Outcome:
    """Is Dual LoRA above the other method at every ratio, by more than the standard error?"""
    name = f"{display_name(other)} of rank {2 * rank}"
    claim = Claim("Dual LoRA", "§4.3, Figure 2", f"Dual LoRA scores higher than {name} at every r₁ : r₂", 1.0)
    labels = [
        f"{r} : {2 * rank - r}" if method == METHOD else method
        for method, r in zip(results["method"], results["rank"], strict=True)
    ]
    labelled = results.assign(method=labels)
    ratios = [label for label in dict.fromkeys(labels) if ":" in label]
    found = [score_outcome(claim, labelled, label, other) for label in ratios]
    verdicts = [one.verdict for one in found]
    verdict: Verdict = "unclear"
    if all(one == "agrees" for one in verdicts):
        verdict = "agrees"
    elif "disagrees" in verdicts:
        verdict = "disagrees"
    above = sum((one.statistic or 0) > 0 for one in found)
    clear = f"beyond the standard error above at {verdicts.count('agrees')}, below at {verdicts.count('disagrees')}"
    differences = "; ".join(
        f"{label}: {one.statistic:+.3f}" for label, one in zip(ratios, found, strict=True) if one.statistic is not None
    )
    return Outcome(
        claim,
        verdict,
        above / len(found),
        None,
        None,
        "share of the ratios with a higher best Matthews correlation: higher at all of them by 1.96 standard errors "
        "(lower at one by as much disagrees)",
        f"above at {above} of {len(found)} ratios, {clear}; {differences}",
    )
