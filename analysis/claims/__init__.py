"""The papers' claims, each with a rule fixed before anything was measured, and the verdict on recorded runs."""

from collections.abc import Callable, Iterator, Sequence

from deltaw.adapters.errors import OptionError
from deltaw.analysis.claims import bora, dora, dual_lora, sbora
from deltaw.analysis.claims.bora import RESULTS, bora_claims
from deltaw.analysis.claims.claim import (
    Claim,
    Outcome,
    Verdict,
    claims_json,
    claims_markdown,
    claims_table,
    count_line,
    format_number,
    markdown_table,
)
from deltaw.analysis.claims.collect import gather, regions
from deltaw.analysis.claims.evidence import CHANGES, Evidence
from deltaw.analysis.claims.rules import Check, decide

# What each paper claims, by the paper's name on the command line, in order of appearance.
PAPERS: dict[str, Callable[[Evidence], Iterator[Check]]] = {
    "dora": dora.checks,
    "bora": bora.checks,
    "sbora": sbora.checks,
    "dual-lora": dual_lora.checks,
}


def claims(evidence: Evidence, papers: Sequence[str] | None = None) -> list[Outcome]:
    """Hold the claims of some papers against recorded runs; the rules stand in ``deltaw.analysis.claims.rules``.

    Arguments:
        evidence: What was measured, as ``gather`` returns.
        papers: Keys of ``PAPERS``; ``None`` for all.

    Returns:
        One outcome a claim, always all of them and in the same order. A claim that the runs cannot decide is "unclear",
        with a note that names what is missing.

    Raises:
        OptionError: There is no such paper.

    Example:
        >>> outcomes = claims(Evidence(), ["sbora"])
        >>> {outcome.verdict for outcome in outcomes}, outcomes[0].note
        ({'unclear'}, 'missing: a run of sbora-fa')
    """
    return [decide(check) for check in all_checks(evidence, papers)]


def all_checks(evidence: Evidence, papers: Sequence[str] | None = None) -> Iterator[Check]:
    """Yield the claims of some papers with their rules; nothing is measured before it is decided.

    Raises:
        OptionError: There is no such paper.
    """
    chosen = list(PAPERS) if papers is None else list(dict.fromkeys(papers))
    for paper in chosen:
        if paper not in PAPERS:
            raise OptionError(f"there is no paper {paper!r}; choose from {', '.join(PAPERS)}")
    for paper in chosen:
        yield from PAPERS[paper](evidence)


__all__ = [
    "CHANGES",
    "PAPERS",
    "RESULTS",
    "Check",
    "Claim",
    "Evidence",
    "Outcome",
    "Verdict",
    "all_checks",
    "bora_claims",
    "claims",
    "claims_json",
    "claims_markdown",
    "claims_table",
    "count_line",
    "decide",
    "format_number",
    "gather",
    "markdown_table",
    "regions",
]
