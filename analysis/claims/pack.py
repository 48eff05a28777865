"""A pack: a paper's claims as data, with the rules that decide them, its figures, its table and where to cite it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from deltaw.analysis.claims.claim import Claim
from deltaw.analysis.claims.measuring import Measure, Need
from deltaw.analysis.printable import html_table

if TYPE_CHECKING:
    from deltaw.analysis.claims.evidence import Evidence
    from deltaw.analysis.claims.rules import Check, Rule


@dataclass(frozen=True)
class Paper:
    """What a pack's claims are of.

    Arguments:
        short: What it is called in a table.
        title, authors, year: As on its first page.
        key: Of its entry in BibTeX.
        venue, journal: The conference or the journal it was published in; both empty for a preprint.
        arxiv, doi, url: Where it is; empty where that is not known.
    """

    short: str
    title: str
    authors: tuple[str, ...]
    year: int
    key: str
    venue: str = ""
    journal: str = ""
    arxiv: str = ""
    doi: str = ""
    url: str = ""


@dataclass(frozen=True)
class PackClaim:
    """A claim of a pack, and how it is decided.

    Arguments:
        id: Its name within the pack.
        claim: What the paper says, in the words of whoever wrote the pack, and where.
        measured: What the number is, in words.
        measure: The name of the measure.
        options: What the measure is given.
        rule: What the number is held against.
        quote: The paper's own words; empty where the pack has none.
    """

    id: str
    claim: Claim
    measured: str
    measure: str
    options: Mapping[str, Any]
    rule: "Rule"
    quote: str = ""


@dataclass(frozen=True)
class PackFigure:
    """A figure of ``deltaw plot`` that shows what the paper shows.

    Arguments:
        name: The figure's.
        where: In the paper.
        options: Of ``deltaw plot``.
        line: In the pack's file; ``None`` where that is not known.
    """

    name: str
    where: str
    options: Mapping[str, str | int | float]
    line: int | None = None


@dataclass(frozen=True)
class PackTable:
    """The table of verdicts for a paper.

    Arguments:
        columns: What stands in each, one of ``deltaw.analysis.claims.latex.FIELDS``, by the column's head.
        caption: Beneath it; empty for the paper's title.
        only: The ids of the claims that are in it; none for all.
    """

    columns: Mapping[str, str]
    caption: str = ""
    only: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False, eq=False)
class Pack:
    """A paper's claims as data, read by ``load_pack``.

    Arguments:
        name: What ``--pack`` calls it.
        paper: What its claims are of.
        claims: They, in the paper's order.
        figures: What to draw beside them.
        table: The table of verdicts in LaTeX.
        about: What a reader must know, and what of the paper is not in the pack.
        roles: Names that stand for runs of which the method says too little, as "rl" and "sft", with what each means.
        source: Where it was found: "deltaw", a package, or a file.
        measures: By name, those that its claims use.
    """

    name: str
    paper: Paper
    claims: tuple[PackClaim, ...]
    figures: tuple[PackFigure, ...] = ()
    table: PackTable = PackTable({})
    about: str = ""
    roles: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    measures: Mapping[str, Measure] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Pack({self.name}: {self.paper.short}, {len(self.claims)} claims)"

    def _repr_html_(self) -> str:
        rows = [("paper", self.paper.title), ("claims", len(self.claims)), ("from", self.source)]
        return html_table(f"Pack {self.name}", [*rows, *((one.id, one.claim.sentence) for one in self.claims)])

    def checks(self, evidence: "Evidence") -> "Iterator[Check]":
        """Yield the claims with their rules; nothing is measured before it is decided."""
        from deltaw.analysis.claims.rules import Check

        for one in self.claims:
            find = self.measures[one.measure].load()
            yield Check(one.claim, one.measured, one.rule, partial(find, evidence, **one.options))

    def needs(self) -> list[Need]:
        """Return what has to be measured for its claims."""
        return [need for one in self.claims for need in self.measures[one.measure].needs(**one.options)]
