"""BoRA's claims on tables, without recorded runs."""

import pandas as pd

from deltaw.adapters.errors import OptionError
from deltaw.analysis.claims.claim import Outcome
from deltaw.analysis.claims.evidence import CHANGES, Evidence
from deltaw.analysis.claims.papers import claims
from deltaw.analysis.claims.scores import guessing
from deltaw.analysis.tables.tidy import of_kind, require_columns, require_one_start, require_several_starts

RESULTS = ("method", "best_mcc", "n_dev", "seconds_per_epoch", "trainable")


def bora_claims(
    consecutive: pd.DataFrame, initial: pd.DataFrame, results: pd.DataFrame, kind: str = "query"
) -> list[Outcome]:
    """Hold BoRA's claims against runs on CoLA; the rules stand at the top of ``deltaw.analysis.claims.rules``.

    Arguments:
        consecutive: ``Trajectory.changes("consecutive")`` of the runs, concatenated.
        initial: ``Trajectory.changes("initial")`` of the runs, concatenated.
        results: One row a run: method, best_mcc (in [−1, 1], on the development set), n_dev (sentences in that set),
            seconds_per_epoch, trainable (parameters), and rank where methods were run with several.
        kind: The kind of matrix; the paper looks at "query".

    Returns:
        One outcome a claim, always all of them and in the same order; those that want a method or a column that is
        missing are "unclear", with a note that names it.

    Raises:
        OptionError: A table is of another form or has no rows, there is no matrix of this kind, or a score is not a
            correlation.

    Source:
        BoRA, §3.3 with Figures 2 and 3, §4.2 and §4.4 with Tables 1, 4 and 5, Tables 2, 10 and 11.

    Example:
        >>> columns = ["run", "method", "module", "layer", "kind", "axis", "step_from", "step_to", "delta_m", "delta_d"]
        >>> rows = [
        ...     ("a", "bora", f"{layer}.query", layer, "query", axis, 0, 1, 0.1 + 0.01 * layer, 0.1)
        ...     for layer in range(4)
        ...     for axis in ("row", "column")
        ... ]
        >>> table = pd.DataFrame(rows, columns=columns)
        >>> results = pd.DataFrame([("bora", 0.6, 1043, 9.0, 500)], columns=list(RESULTS))
        >>> agree = [outcome for outcome in bora_claims(table, table, results) if outcome.verdict == "agrees"]
        >>> [outcome.claim.sentence for outcome in agree][:2]
        ["BoRA's ΔM is symmetric in rows and columns", "BoRA's ΔD is symmetric in rows and columns"]
    """
    require_columns(consecutive, CHANGES, 'Trajectory.changes("consecutive")')
    require_columns(initial, CHANGES, 'Trajectory.changes("initial")')
    require_several_starts(consecutive, 'Trajectory.changes("consecutive")')
    require_one_start(initial, 'Trajectory.changes("initial")')
    require_columns(results, RESULTS, "train_cola, one row a run")
    scores = pd.to_numeric(results["best_mcc"])
    if (scores.abs() > 1).any():
        wrong = scores[scores.abs() > 1].iloc[0]
        raise OptionError(f"best_mcc is {wrong:g}, not in [−1, 1]; divide by 100 if it is in percent")
    steps, ends = of_kind(consecutive, kind), of_kind(initial, kind)
    runs = results.reset_index(drop=True).assign(run=range(len(results)), direction_rank=None)
    runs = runs if "rank" in runs.columns else runs.assign(rank=None)
    named = runs.assign(score="mcc", value=runs["best_mcc"], n=runs["n_dev"])
    weak = guessing(named)
    reasons = {
        str(method): weak[rows["run"].astype(str).iloc[0]]
        for method, rows in named.groupby("method")
        if set(rows["run"].astype(str)) <= set(weak)
    }
    steps, ends = (frame.assign(guessing=frame["method"].map(reasons)) for frame in (steps, ends))
    return claims(Evidence(runs, named, steps, ends, kind=kind), ["bora"])
