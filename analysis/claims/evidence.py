"""The evidence that claims are held against: tables of recorded runs, and which of their rows can be compared."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pandas as pd

from deltaw.analysis.claims.interval import Undecidable, Unlearned
from deltaw.analysis.claims.rules import count_of
from deltaw.analysis.tables.tidy import display_name

CHANGES = ("run", "method", "module", "layer", "kind", "axis", "step_from", "step_to", "delta_m", "delta_d")
SPECTRA = ("run", "method", "module", "layer", "group", "rank", "full_rank")
GEOMETRY = (
    *("run", "method", "module", "layer", "kind", "step", "rotation_left", "rotation_right", "rotation_random"),
    *("drift", "off_principal", "off_principal_expected", "visible_bfloat16", "visible_path_not_taken"),
)
INTRUDERS = ("run", "method", "module", "layer", "kind", "step", "index", "intruder")
DISTANCES = ("run", "method", "module", "layer", "kind", "step", "frobenius")
REGIONS = ("run", "method", "module", "out", "in", "moved_rows", "moved_columns", "untouched_weights")
RUNS = (
    "run",
    "method",
    "rank",
    "direction_rank",
    "trainable",
    "share",
    "seconds_per_epoch",
    "peak_megabytes",
    "on_gpu",
)
SCORES = ("run", "method", "rank", "direction_rank", "score", "value", "n", "prior", "labels", "predictions")


def _empty(columns: Sequence[str]) -> Callable[[], pd.DataFrame]:
    return lambda: pd.DataFrame(columns=list(columns))


@dataclass(frozen=True)
class Evidence:
    """Tables of recorded runs; what there is none of stays empty.

    Arguments:
        runs: One row a run: run, method, rank, direction_rank (missing where there is none), trainable (parameters),
            share (of all parameters), seconds_per_epoch, peak_megabytes, on_gpu (where memory was measured).
        scores: One row a run and score: run, method, rank, direction_rank, score (its name: mcc, vqa, …), value, n
            (examples), and where they are known prior (what guessing scores), labels and predictions (of mcc: a digit a
            sentence).
        consecutive, initial, base: ``Trajectory.changes`` of such pairs; a column ``adapter_rank`` tells apart runs
            of several ranks.
        spectra: ``Trajectory.spectra`` at each run's last step, with groups, and adapter_rank and direction_rank.
        geometry: ``Trajectory.geometry``, the columns that are needed, at each run's last step and the last that the
            compared runs have.
        intruders: ``intruder_table`` at the same steps, one row a singular vector.
        distances: ``Trajectory.spectra``'s frobenius of ΔW at each run's last step and the one nearest to half of it.
            These seven have adapter_rank, and may have a column ``guessing``: why the run is no better than guessing.
            Such a run counts for no claim about trained models.
        regions: One row a matrix, with adapter_rank: how many rows and columns of ΔW are not zero.
        kind: The kind of matrix that a claim is about which names none.
    """

    runs: pd.DataFrame = field(default_factory=_empty(RUNS))
    scores: pd.DataFrame = field(default_factory=_empty(SCORES))
    consecutive: pd.DataFrame = field(default_factory=_empty(CHANGES))
    initial: pd.DataFrame = field(default_factory=_empty(CHANGES))
    base: pd.DataFrame = field(default_factory=_empty(CHANGES))
    spectra: pd.DataFrame = field(default_factory=_empty(SPECTRA))
    regions: pd.DataFrame = field(default_factory=_empty(REGIONS))
    geometry: pd.DataFrame = field(default_factory=_empty(GEOMETRY))
    intruders: pd.DataFrame = field(default_factory=_empty(INTRUDERS))
    distances: pd.DataFrame = field(default_factory=_empty(DISTANCES))
    kind: str = "query"


def require_methods(frame: pd.DataFrame, methods: Sequence[str], what: str = "run") -> None:
    """Raise where the table lacks one of the methods, or has only runs of it that are no better than guessing.

    Raises:
        Undecidable: Names those that are missing, or says why one is no better.
    """
    missing = [method for method in dict.fromkeys(methods) if not (frame["method"] == method).any()]
    if missing:
        raise Undecidable(f"missing: a {what} of {' and of '.join(missing)}")
    for method in methods if "guessing" in frame.columns else ():
        reasons = frame.loc[frame["method"] == method, "guessing"]
        if reasons.notna().all():
            raise Unlearned(f"{method} learned nothing: {reasons.iloc[0]}")


def trained(frame: pd.DataFrame) -> pd.DataFrame:
    """Leave out the runs that are no better than guessing."""
    return frame[frame["guessing"].isna()] if "guessing" in frame.columns else frame


def of_equal_rank(frame: pd.DataFrame, methods: Sequence[str], what: str = "run") -> pd.DataFrame:
    """Return the rows of these methods at the lowest rank that all of them have; methods without a rank count anyway.

    Arguments:
        frame: A table with method and, where there are several ranks, adapter_rank or rank.

    Raises:
        Undecidable: A method is missing, or they have no rank in common.
    """
    require_methods(frame, methods, what)
    rows = trained(frame[frame["method"].isin(list(methods))])
    column = rank_column(frame)
    if column is None:
        return rows
    ranks = [set(rows.loc[rows["method"] == method, column].dropna()) for method in methods]
    ranks = [found for found in ranks if found]
    if not ranks:
        return rows
    common = set.intersection(*ranks)
    if not common:
        raise Undecidable(f"missing: {what}s of {count_of(methods)} of the same rank")
    kept: pd.DataFrame = rows[rows[column].isna() | (rows[column] == min(common))]
    return kept


def rank_column(frame: pd.DataFrame) -> str | None:
    """The column with the rank of the adapters; in spectra "rank" is that of ΔW."""
    if "adapter_rank" in frame.columns:
        return "adapter_rank"
    return "rank" if "rank" in frame.columns and "full_rank" not in frame.columns else None


def method_name(method: str) -> str:
    """Return the display name of a method, or of one of its variants: "qdora", "dual-lora, activation abs".

    Example:
        >>> method_name("qdora"), method_name("dora, detach_norm False")
        ('QDoRA (column)', 'DoRA (column) (detach_norm False)')
    """
    name, _, variant = method.partition(", ")
    shown = display_name(name)
    if shown == name and name.startswith("q") and display_name(name[1:]) != name[1:]:
        shown = "Q" + display_name(name[1:])
    return f"{shown} ({variant})" if variant else shown
