"""The four papers by name, and all their claims; packs of other papers are checked in the same way."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deltaw.adapters.errors import OptionError
from deltaw.analysis.claims.found import PACKS, find_pack

if TYPE_CHECKING:
    from deltaw.analysis.claims.claim import Verdicts
    from deltaw.analysis.claims.evidence import Evidence
    from deltaw.analysis.claims.pack import Pack
    from deltaw.analysis.claims.rules import Check

# Those that are reproduced here, and whose claims are checked where no pack is named.
PAPERS = ("dora", "bora", "sbora", "dual-lora")


def claims(evidence: "Evidence", papers: "Sequence[str | Pack] | None" = None) -> "Verdicts":
    """Hold the claims of some papers against recorded runs; the rules stand in ``deltaw.analysis.claims.rules``.

    Arguments:
        evidence: What was measured, as ``gather`` returns.
        papers: Packs, or their names, as those in ``PAPERS``; ``None`` for these.

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
    from deltaw.analysis.claims.claim import Verdicts
    from deltaw.analysis.claims.rules import decide

    return Verdicts(decide(check) for check in all_checks(evidence, papers))


def all_checks(evidence: "Evidence", papers: "Sequence[str | Pack] | None" = None) -> "Iterator[Check]":
    """Yield the claims of some papers with their rules; nothing is measured before it is decided.

    Raises:
        OptionError: There is no such paper.
    """
    chosen = PAPERS if papers is None else papers
    for paper in chosen:
        if isinstance(paper, str) and paper not in PACKS and not Path(paper).is_file():
            raise OptionError(f"there is no paper {paper!r}; choose from {', '.join(PACKS)}")
    for pack in dict.fromkeys(map(find_pack, chosen)):
        yield from pack.checks(evidence)
