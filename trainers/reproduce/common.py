"""What every reproduction ends with: pictures, tables, verdicts, and a closing page."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from tabulate import tabulate

from deltaw.analysis.claims import Claim, Outcome, Verdict, claims_json, claims_markdown, format_number
from deltaw.analysis.figures import save
from deltaw.analysis.files import write_text
from deltaw.trainers.cola.experiment import ColaResult

FORMATS = ("png", "svg", "pdf")


@dataclass(frozen=True)
class Report:
    """What a reproduction made.

    Arguments:
        paper: Its short name.
        results: One a run.
        outcomes: The paper's claims, each with its verdict.
        pictures, tables: The files, by path.
        summary: The closing table of the runs.
    """

    paper: str
    results: list[ColaResult]
    outcomes: list[Outcome]
    pictures: list[Path]
    tables: list[Path]
    summary: str

    def page(self) -> str:
        """The closing page: results, claims, pictures."""
        claims = [
            (outcome.claim.sentence, f"{outcome.claim.source}", outcome.verdict, format_number(outcome))
            for outcome in self.outcomes
        ]
        return "\n".join(
            [
                self.summary,
                "",
                tabulate(
                    claims, headers=[f"{self.paper} says", "where", "seen", "number"], maxcolwidths=[52, 24, 10, 24]
                ),
                "",
                "Pictures:",
                *(f"  {path}" for path in self.pictures if path.suffix == ".png"),
                "Tables, and the rule behind each verdict:",
                *(f"  {path}" for path in self.tables),
            ]
        )


def write_report(
    out: Path,
    paper: str,
    results: list[ColaResult],
    outcomes: list[Outcome],
    figures: Mapping[str, Figure],
    tables: Mapping[str, str],
    summary: str,
) -> Report:
    """Write every figure in ``FORMATS``, every table, and the claims as claims.md and claims.json.

    Arguments:
        figures: By the file's name without its suffix.
        tables: Texts by the file's name.
        summary: See ``Report``.
    """
    pictures = []
    for stem, figure in figures.items():
        for suffix in FORMATS:
            pictures.append(save(figure, out / f"{stem}.{suffix}"))
    texts = {
        **tables,
        "claims.md": claims_markdown(outcomes),
        "claims.json": json.dumps(claims_json(outcomes), indent=1),
    }
    for name, text in texts.items():
        write_text(out / name, text)
    return Report(paper, results, outcomes, pictures, [out / name for name in texts], summary)


def over_parts(
    claim: Claim, measured: str, rule: str, parts: Mapping[str, float], holds: Callable[[float], bool | None]
) -> Outcome:
    """Hold a claim against a number that every rank, layer or matrix has its own of.

    It "agrees" where the rule holds for all parts, "disagrees" where it is broken by all, and is "unclear" between, or
    where there is no part. The statistic is the mean over the parts.

    Arguments:
        claim: The claim.
        measured: The number's name.
        rule: The rule in words.
        parts: The number by the part's name.
        holds: Whether a number is on the claimed side (True), on the other (False), or too near to tell (None).

    Example:
        >>> claim = Claim("SBoRA", "§5.2", "SBoRA-FA trains faster than LoRA")
        >>> over_parts(claim, "time", "ratio < 1", {"rank 8": 0.8, "rank 16": 0.9}, lambda ratio: ratio < 1).verdict
        'agrees'
    """
    text = f"{measured}: {rule}"
    if not parts:
        return Outcome(claim, "unclear", None, None, None, text, "missing: a run of one of the methods")
    found = [holds(value) for value in parts.values()]
    verdict: Verdict = "unclear"
    if all(one is True for one in found):
        verdict = "agrees"
    elif all(one is False for one in found):
        verdict = "disagrees"
    note = "; ".join(f"{name}: {value:.3g}" for name, value in parts.items())
    return Outcome(claim, verdict, sum(parts.values()) / len(parts), None, None, text, note)


def below(limit: float) -> Callable[[float], bool | None]:
    """Return the rule "a ratio is below the limit", where 3 % to either side are noise, as in BoRA's claims on time.

    Example:
        >>> [below(1.0)(ratio) for ratio in (0.9, 0.99, 1.1)]
        [True, None, False]
    """

    def holds(ratio: float) -> bool | None:
        return True if ratio < 0.97 * limit else False if ratio > 1.03 * limit else None

    return holds


def results_frame(results: Sequence[ColaResult]) -> pd.DataFrame:
    """Return one row a run, with a whole number or nothing as its rank."""
    frame = pd.DataFrame([vars(result) for result in results], columns=list(ColaResult.__dataclass_fields__))
    return frame.astype({"rank": "Int64"})


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
