"""The table of verdicts as LaTeX, and the papers as BibTeX. Every text of a pack is text in them, and no command."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from deltaw.analysis.claims.claim import Outcome, format_number
from deltaw.analysis.printable import latex_text

if TYPE_CHECKING:
    from deltaw.analysis.claims.pack import Pack, PackClaim, Paper

# What a column may hold, of a claim and its outcome.
FIELDS: Mapping[str, "Callable[[PackClaim, Outcome], str]"] = {
    "id": lambda one, found: one.id,
    "says": lambda one, found: one.claim.sentence,
    "quote": lambda one, found: one.quote,
    "where": lambda one, found: one.claim.source,
    "measured": lambda one, found: one.measured,
    "rule": lambda one, found: one.rule.text,
    "paper": lambda one, found: "" if one.claim.paper_number is None else f"{one.claim.paper_number:g}",
    "number": lambda one, found: format_number(found),
    "statistic": lambda one, found: "–" if found.statistic is None else f"{found.statistic:.3g}",
    "verdict": lambda one, found: found.verdict,
    "note": lambda one, found: found.note,
}
COLUMNS = {"Claim": "says", "Where": "where", "Paper": "paper", "Here": "number", "Verdict": "verdict"}
_WIDE = {"says": 0.4, "quote": 0.4, "note": 0.25, "where": 0.16, "measured": 0.25, "rule": 0.18}  # of the line


def claims_latex(pack: "Pack", outcomes: Sequence[Outcome]) -> str:
    r"""Return a pack's verdicts as a table of LaTeX, which wants the packages booktabs and longtable.

    Arguments:
        pack: Its columns and caption are taken.
        outcomes: One a claim of the pack, in its order, as ``check_claims`` returns.

    Example:
        >>> from deltaw.analysis.claims.evidence import Evidence
        >>> from deltaw.analysis.claims.found import find_pack
        >>> from deltaw.analysis.claims.rules import decide
        >>> pack = find_pack("sbora")
        >>> outcomes = [decide(check) for check in pack.checks(Evidence())]
        >>> print(claims_latex(pack, outcomes).splitlines()[2])
        Claim & Where & Paper & Here & Verdict \\
    """
    columns = pack.table.columns or COLUMNS
    shown = [
        (one, found)
        for one, found in zip(pack.claims, outcomes, strict=True)
        if not pack.table.only or one.id in pack.table.only
    ]
    layout = "".join(rf"p{{{_WIDE[field]}\linewidth}}" if field in _WIDE else "l" for field in columns.values())
    rows = [[FIELDS[field](one, found) for field in columns.values()] for one, found in shown]
    caption = pack.table.caption or f"Claims of {pack.paper.short}"
    return "\n".join(
        [
            rf"\begin{{longtable}}{{{layout}}}",
            r"\toprule",
            _row(columns),
            r"\midrule",
            r"\endhead",
            *map(_row, rows),
            r"\bottomrule",
            rf"\caption{{{latex_text(caption)} \cite{{{pack.paper.key}}}.}}",
            rf"\label{{tab:claims-{pack.name}}}",
            r"\end{longtable}",
        ]
    )


def bibtex(papers: "Iterable[Paper]") -> str:
    """Return papers as entries of BibTeX, each once.

    Example:
        >>> from deltaw.analysis.claims.pack import Paper
        >>> print(bibtex([Paper("X", "A paper", ("A. Author",), 2024, "author2024", arxiv="2402.09353")]))
        @misc{author2024,
          title = {{A paper}},
          author = {A. Author},
          year = {2024},
          eprint = {2402.09353},
          archivePrefix = {arXiv},
          url = {https://arxiv.org/abs/2402.09353}
        }
    """
    return "\n\n".join(dict.fromkeys(_entry(paper) for paper in papers))


def _entry(paper: "Paper") -> str:
    fields = {
        "title": f"{{{latex_text(paper.title)}}}",
        "author": " and ".join(latex_text(name) for name in paper.authors),
        "year": str(paper.year),
    }
    if paper.venue:
        fields["booktitle"] = latex_text(paper.venue)
    if paper.journal:
        fields["journal"] = latex_text(paper.journal)
    if paper.arxiv:
        fields |= {"eprint": paper.arxiv, "archivePrefix": "arXiv"}
    if paper.doi:
        fields["doi"] = latex_text(paper.doi)
    if paper.url or paper.arxiv:
        fields["url"] = latex_text(paper.url) if paper.url else f"https://arxiv.org/abs/{paper.arxiv}"
    lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
    kind = "inproceedings" if paper.venue else "article" if paper.journal else "misc"
    return f"@{kind}{{{paper.key},\n{lines}\n}}"


def _row(cells: Iterable[str]) -> str:
    return " & ".join(latex_text(cell) for cell in cells) + r" \\"
