"""The four papers by name, and all their claims; a paper's claims are imported when they are asked for."""

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from deltaw.adapters.errors import OptionError

if TYPE_CHECKING:
    from deltaw.analysis.claims.claim import Outcome
    from deltaw.analysis.claims.evidence import Evidence
    from deltaw.analysis.claims.rules import Check

# By its name on the command line, the file in this folder with what each paper claims, in order of appearance.
PAPERS = {"dora": "dora", "bora": "bora", "sbora": "sbora", "dual-lora": "dual_lora"}


def claims(evidence: "Evidence", papers: Sequence[str] | None = None) -> "list[Outcome]":
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
        >>> from deltaw.analysis.claims.evidence import Evidence
        >>> outcomes = claims(Evidence(), ["sbora"])
        >>> {outcome.verdict for outcome in outcomes}, outcomes[0].note
        ({'unclear'}, 'missing: a run of sbora-fa')
    """
    from deltaw.analysis.claims.rules import decide

    return [decide(check) for check in all_checks(evidence, papers)]


def all_checks(evidence: "Evidence", papers: Sequence[str] | None = None) -> "Iterator[Check]":
    """Yield the claims of some papers with their rules; nothing is measured before it is decided.

    Raises:
        OptionError: There is no such paper.
    """
    chosen = list(PAPERS) if papers is None else list(dict.fromkeys(papers))
    for paper in chosen:
        if paper not in PAPERS:
            raise OptionError(f"there is no paper {paper!r}; choose from {', '.join(PAPERS)}")
    for paper in chosen:
        yield from import_module(f"deltaw.analysis.claims.{PAPERS[paper]}").checks(evidence)
