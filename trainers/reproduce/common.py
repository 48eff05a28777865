"""The end of every reproduction: pictures, tables, verdicts, and a closing page."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import torch
from matplotlib.figure import Figure
from tabulate import tabulate

from deltaw.analysis.claims import (
    Evidence,
    Outcome,
    claims_json,
    claims_markdown,
    claims_table,
    count_line,
    gather,
)
from deltaw.analysis.figures import save
from deltaw.analysis.records.storage.atomic import write_text
from deltaw.analysis.trajectory import Trajectory
from deltaw.trainers.cola.experiment import ColaResult
from deltaw.trainers.settings import Settings
from deltaw.trainers.side_by_side import run_all

S = TypeVar("S", bound=Settings)
R = TypeVar("R")
FORMATS = ("png", "svg", "pdf")


@dataclass(frozen=True)
class Report:
    """The outcome of a reproduction.

    Arguments:
        paper: Its short name.
        results: One a run.
        outcomes: The paper's claims, each with its verdict.
        pictures, tables: The files, by path.
        summary: The closing table of the runs.
        folder: Where all of it is.
        runs: The folders of the runs.
    """

    paper: str
    results: list[Any]
    outcomes: list[Outcome]
    pictures: list[Path]
    tables: list[Path]
    summary: str
    folder: Path = Path()
    runs: list[Path] = field(default_factory=list)

    def page(self) -> str:
        """The closing page: results, claims, pictures."""
        return "\n".join(
            [
                self.summary,
                "",
                claims_table(self.outcomes),
                "",
                count_line(self.outcomes),
                "Pictures:",
                *(f"  {path}" for path in self.pictures if path.suffix == ".png"),
                "Tables, and the rule behind each verdict:",
                *(f"  {path}" for path in self.tables),
            ]
        )


def write_report(
    out: Path,
    paper: str,
    results: list[Any],
    outcomes: list[Outcome],
    figures: Mapping[str, Figure],
    tables: Mapping[str, str],
    summary: str,
    runs: Sequence[Path],
) -> Report:
    """Write every figure in ``FORMATS``, every table, and the claims as claims.md and claims.json.

    Arguments:
        figures: By the file's name without its suffix.
        tables: Texts by the file's name.
        summary, runs: See ``Report``.
    """
    pictures = []
    for stem, figure in figures.items():
        for suffix in FORMATS:
            pictures.append(save(figure, out / f"{stem}.{suffix}"))
    texts = {
        **tables,
        "claims.md": claims_markdown(outcomes),
        "claims.json": json.dumps(claims_json(outcomes), indent=1, allow_nan=False),
    }
    for name, text in texts.items():
        write_text(out / name, text)
    return Report(paper, results, outcomes, pictures, [out / name for name in texts], summary, out, list(runs))


def train_every(
    runs: Mapping[Path, S],
    finished: Callable[[S, Path], R | None],
    train: Callable[..., R],
    jobs: int,
    *,
    shared: Mapping[str, Any] | None = None,
) -> list[R]:
    """Train every run that is not finished, and return all results in their order.

    Arguments:
        runs: By their folders.
        finished: Returns a run's result, or None where there is work to do.
        train: A function of a module, or a ``functools.partial`` of one.
        jobs, shared: See ``run_all``.

    Raises:
        Exception: What the first that failed has raised, once the others are done.
    """
    todo = [place for place, run in runs.items() if finished(run, place) is None]
    work = {place.name: partial(train, run, place) for place, run in runs.items()}
    read = run_all({place.name: work[place.name] for place in runs if place not in todo}, shared=shared)
    found = read | run_all({place.name: work[place.name] for place in todo}, jobs, shared=shared)
    results: list[R] = []
    for place in runs:
        outcome = found[place.name]
        if isinstance(outcome, Exception):
            outcome.add_note(f"in the run {place.name}")
            raise outcome
        results.append(outcome)
    return results


def measured(runs: Sequence[Trajectory], papers: Iterable[str], *, progress: bool) -> Evidence:
    """Measure in runs that were trained here; see ``gather``."""
    return gather(runs, papers, on_gpu=torch.cuda.is_available(), progress=progress)


def run_folder(method: str, seed: int) -> str:
    """Return the name of a run's folder: METHOD for seed 0, METHOD-sSEED for another.

    Example:
        >>> run_folder("bora", 0), run_folder("bora", 2)
        ('bora', 'bora-s2')
    """
    return method if seed == 0 else f"{method}-s{seed}"


def results_frame(results: Sequence[Any]) -> pd.DataFrame:
    """Return one row a run, with a whole number or nothing as its rank."""
    columns = list(type(results[0]).__dataclass_fields__) if results else list(ColaResult.__dataclass_fields__)
    frame = pd.DataFrame([asdict(result) for result in results], columns=columns)
    return frame.astype({"rank": "Int64"}) if "rank" in frame.columns else frame


def results_table(results: Sequence[ColaResult]) -> str:
    """Return the closing table of runs on CoLA."""
    seeds = len({r.seed for r in results}) > 1
    rows = [
        {
            "method": r.method,
            **({"seed": r.seed} if seeds else {}),
            "trainable": f"{r.trainable:,}",
            "share %": f"{100 * r.share:.2f}",
            "best MCC": f"{r.best_mcc:.3f}",
            "at epoch": r.best_epoch,
            "s per epoch": f"{r.seconds_per_epoch:.2f}",
            "peak MB": f"{r.peak_megabytes:.0f}",
        }
        for r in results
    ]
    return tabulate(rows, headers="keys", stralign="right", disable_numparse=True)
