"""Reproduce a paper's weight picture: train, record, measure, draw, and hold the result against the paper."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from deltaw.adapters import METHODS, OptionError
from deltaw.analysis.claims import Outcome, bora_claims, claims_json, claims_markdown, format_number
from deltaw.analysis.figures import rank, save, symmetry, updates
from deltaw.analysis.files import write_text
from deltaw.analysis.tables import open_runs, table
from deltaw.trainers.cola.experiment import ColaResult, ColaSettings, train_cola

BORA_METHODS = ("ft", "lora", "dora", "dora-row", "bora")
FORMATS = ("png", "svg", "pdf")


@dataclass(frozen=True)
class Report:
    """What ``reproduce_bora`` made.

    Arguments:
        results: One a method.
        outcomes: The paper's claims, each with its verdict.
        pictures, tables: The files, by path.
    """

    results: list[ColaResult]
    outcomes: list[Outcome]
    pictures: list[Path]
    tables: list[Path]

    def page(self) -> str:
        """The closing page: results, claims, pictures."""
        claims = [
            (outcome.claim.sentence, f"{outcome.claim.source}", outcome.verdict, format_number(outcome))
            for outcome in self.outcomes
        ]
        return "\n".join(
            [
                results_table(self.results),
                "",
                tabulate(claims, headers=["BoRA says", "where", "seen", "number"], maxcolwidths=[52, 24, 10, 24]),
                "",
                "Pictures:",
                *(f"  {path}" for path in self.pictures if path.suffix == ".png"),
                "Tables, and the rule behind each verdict:",
                *(f"  {path}" for path in self.tables),
            ]
        )


def reproduce_bora(
    out: str | Path,
    settings: ColaSettings,
    methods: Sequence[str] = BORA_METHODS,
    *,
    full_learning_rate: float | None = None,
    progress: bool = True,
) -> Report:
    """Train every method on CoLA, draw BoRA's Figures 2 and 3 and the ranks, and check BoRA's claims.

    What is finished is not done again; a run that was interrupted goes on.

    Arguments:
        out: The folder: runs/METHOD, tables, pictures.
        settings: Everything but the method; see ``ColaSettings``. ``settings.learning_rate`` is the adapters'.
        methods: Names of ``METHODS``; the claims want BoRA's five.
        full_learning_rate: The learning rate of ``ft``; ``None`` for the default.
        progress: Show progress bars.

    Raises:
        RecordError: A run folder holds another run.
        OptionError, DataError, TargetError: As ``train_cola``.

    Source:
        BoRA, §3.3, Figures 2 and 3, Tables 10 and 11.
    """
    for name in methods:
        if name not in METHODS:
            raise OptionError(f"there is no method {name!r}; choose from {', '.join(METHODS)}")
    out = Path(out)
    results = []
    for name in methods:
        rate = full_learning_rate if name == "ft" else settings.learning_rate
        options = {} if name == "ft" else settings.options
        run = replace(settings, method=name, learning_rate=rate, options=options)
        results.append(train_cola(run, out / "runs" / name, progress=progress))

    runs = open_runs([out / "runs" / name for name in methods])
    consecutive = table(runs, "consecutive", progress=progress)
    initial = table(runs, "initial", progress=progress)
    spectra = table(runs, "spectra", steps="last", progress=progress)
    frame = pd.DataFrame([asdict(result) for result in results])
    kinds = list(consecutive["kind"].unique())
    kind = "query" if "query" in kinds else kinds[0]  # the paper's figures show the query matrices
    outcomes = bora_claims(consecutive, initial, frame, kind=kind)

    pictures = []
    for stem, figure in {
        "figure2_symmetry": symmetry(consecutive, kind=kind),
        "figure3_updates": updates(initial, kind=kind),
        "rank_by_layer": rank(spectra),
    }.items():
        for suffix in FORMATS:
            pictures.append(out / f"{stem}.{suffix}")
            save(figure, pictures[-1])
    tables = {
        "results.csv": frame.to_csv(index=False),
        "changes_consecutive.csv": consecutive.to_csv(index=False),
        "changes_from_start.csv": initial.to_csv(index=False),
        "ranks.csv": spectra.to_csv(index=False),
        "claims.md": claims_markdown(outcomes),
        "claims.json": json.dumps(claims_json(outcomes), indent=1),
    }
    for name, text in tables.items():
        write_text(out / name, text)
    return Report(results, outcomes, pictures, [out / name for name in tables])


def results_table(results: Sequence[ColaResult]) -> str:
    """Return the closing table of runs on CoLA."""
    rows = [
        {
            "method": r.method,
            "trainable": f"{r.trainable:,}",
            "share %": f"{100 * r.share:.2f}",
            "best MCC": f"{r.best_mcc:.3f}",
            "at epoch": r.best_epoch,
            "s an epoch": f"{r.seconds_per_epoch:.2f}",
            "peak MB": f"{r.peak_megabytes:.0f}",
        }
        for r in results
    ]
    return tabulate(rows, headers="keys", stralign="right", disable_numparse=True)
