"""A paper's claim, what came of it in recorded runs, and how that is written down."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tabulate import tabulate

from deltaw.analysis.printable import html_rows, html_table

Verdict = Literal["agrees", "disagrees", "unclear"]
_TAG = re.compile(r"<(?=[A-Za-z/!?])")


@dataclass(frozen=True)
class Claim:
    """Something a paper says, in our words.

    Arguments:
        paper: Its short name.
        source: Where it says so.
        sentence: What it says.
        paper_number: The number that the paper gives for what we measure; ``None`` where it only shows a picture.
    """

    paper: str
    source: str
    sentence: str
    paper_number: float | None = None


@dataclass(frozen=True)
class Outcome:
    """A claim held against recorded runs.

    Arguments:
        claim: The claim.
        verdict: "agrees", "disagrees" or "unclear".
        statistic: What was measured; ``None`` where it could not be.
        ci_low, ci_high: Its 95 % interval; ``None`` where there is none.
        rule: What "agrees" takes.
        note: What else a reader must know, such as what is missing.
    """

    claim: Claim
    verdict: Verdict
    statistic: float | None
    ci_low: float | None
    ci_high: float | None
    rule: str
    note: str = ""

    @property
    def missing(self) -> bool:
        """Whether it needs runs, matrices or scores that are not there."""
        return self.note.startswith("missing:")

    def _repr_html_(self) -> str:
        said = {"paper": f"{self.claim.paper}, {self.claim.source}", "it says": self.claim.sentence}
        said |= {"verdict": self.verdict, "measured": format_number(self), "rule": self.rule, "note": self.note}
        return html_table("Claim", said.items())


class Verdicts(list[Outcome]):
    """Outcomes of claims, which a notebook shows as a table: the count, and those that could be checked."""

    def _repr_html_(self) -> str:
        checked = [outcome for outcome in self if not outcome.missing]
        head = ["it says", "where", "verdict", "measured", "paper"]
        rows = [
            (o.claim.sentence, f"{o.claim.paper}, {o.claim.source}", o.verdict, format_number(o), _paper_number(o))
            for o in checked
        ]
        left = len(self) - len(checked)
        missing = f" {left} more need runs that are not here." if left else ""
        return html_rows(f"{count_line(checked)}{missing}", head, rows)


def claims_json(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return the outcomes as plain data, one flat object each.

    Returns:
        Objects with paper, source, sentence, paper_number, verdict, statistic, ci_low, ci_high, rule, note. A number
        that is not finite is None: JSON has no NaN.

    Example:
        >>> outcome = Outcome(Claim("BoRA", "Figure 2", "it is so"), "agrees", 0.1, 0.05, 0.2, "A ≤ 0.25")
        >>> claims_json([outcome])[0]["verdict"]
        'agrees'
    """
    rows = [
        asdict(outcome.claim) | {name: value for name, value in asdict(outcome).items() if name != "claim"}
        for outcome in outcomes
    ]
    return [
        {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()}
        for row in rows
    ]


def count_line(outcomes: Sequence[Outcome]) -> str:
    """Return how many agree, disagree and are unclear.

    Example:
        >>> count_line([Outcome(Claim("BoRA", "Figure 2", "it is so"), "agrees", 0.1, 0.05, 0.2, "A ≤ 0.25")])
        '1 claim: 1 agree, 0 disagree, 0 unclear.'
    """
    counts = {verdict: sum(o.verdict == verdict for o in outcomes) for verdict in ("agrees", "disagrees", "unclear")}
    return (
        f"{len(outcomes)} claim{'' if len(outcomes) == 1 else 's'}: {counts['agrees']} agree, "
        f"{counts['disagrees']} disagree, {counts['unclear']} unclear."
    )


def claims_markdown(outcomes: Sequence[Outcome]) -> str:
    """Return the outcomes as a Markdown table, under a line that counts the verdicts.

    Example:
        >>> outcome = Outcome(Claim("BoRA", "Figure 2", "it is so"), "agrees", 0.1, 0.05, 0.2, "A ≤ 0.25")
        >>> print(claims_markdown([outcome]).splitlines()[0])
        1 claim: 1 agree, 0 disagree, 0 unclear.
    """
    head = ["claim", "source", "rule", "measured [95 % interval]", "verdict", "paper", "note"]
    rows = [
        [
            outcome.claim.sentence,
            f"{outcome.claim.paper}, {outcome.claim.source}",
            outcome.rule,
            format_number(outcome),
            f"**{outcome.verdict}**",
            _paper_number(outcome),
            outcome.note,
        ]
        for outcome in outcomes
    ]
    return f"{count_line(outcomes)}\n\n{markdown_table(head, rows)}\n"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose cells may hold bars, line breaks and what a browser would take for a tag."""
    clean = [[_TAG.sub("&lt;", cell.replace("|", "\\|").replace("\n", " ")) for cell in row] for row in rows]
    return tabulate(clean, headers=head, tablefmt="pipe", disable_numparse=True)


def claims_table(outcomes: Sequence[Outcome], width: int | None = None) -> str:
    """Return the outcomes as a table for a terminal: the verdict and the number of every claim.

    Arguments:
        outcomes: What to print.
        width: Columns of the terminal: the table is no wider, says below 100 not where a paper says it, and of the
            notes only what is missing; see `unclear_lines` for the others.

    Example:
        >>> outcome = Outcome(Claim("BoRA", "Figure 2", "it is so"), "agrees", 0.1, 0.05, 0.2, "A ≤ 0.25")
        >>> print(claims_table([outcome]))
        BoRA says    where     seen    number           paper
        -----------  --------  ------  ---------------  -------
        it is so     Figure 2  agrees  0.1 [0.05, 0.2]
    """
    papers = list(dict.fromkeys(outcome.claim.paper for outcome in outcomes))
    tables = []
    for paper in papers:
        rows = [
            (
                outcome.claim.sentence,
                outcome.claim.source,
                outcome.verdict,
                outcome.note if _noted(outcome, width) else format_number(outcome),
                _paper_number(outcome),
            )
            for outcome in outcomes
            if outcome.claim.paper == paper
        ]
        head = [f"{paper} says", "where", "seen", "number", "paper"]
        wide = [50, 22, 10, 26, 8]
        if width is not None:
            fixed = [10, 9, *(max([len(head[place]), *(len(row[place]) for row in rows)]) for place in (3, 4))]
            fixed[2:] = [min(fixed[2], 26), fixed[3]]
            left = width - sum(fixed[1:]) - 4 * 4  # what tabulate leaves between columns and around a heading
            wide = [left, 0, *fixed[1:]] if width < 100 else [left - left // 3, left // 3, *fixed[1:]]
        shown = [place for place in range(5) if wide[place]]
        cells = [[row[place] for place in shown] for row in rows]
        tables.append(
            tabulate(cells, headers=[head[place] for place in shown], maxcolwidths=[wide[place] for place in shown])
        )
    return "\n\n".join(tables)


def _noted(outcome: Outcome, width: int | None) -> bool:
    return outcome.statistic is None and (width is None or outcome.missing)


def unclear_lines(outcomes: Sequence[Outcome], most: int = 6) -> list[str]:
    """Return why claims are unclear that could be checked, the commonest reason first, and of how many claims.

    Example:
        >>> outcome = Outcome(Claim("BoRA", "Figure 2", "it is so"), "unclear", 0.1, None, None, "A ≤ 0.25", "one seed")
        >>> unclear_lines([outcome, outcome])
        ['2 claims: one seed']
    """
    notes = Counter(o.note for o in outcomes if o.verdict == "unclear" and o.note and not o.missing)
    lines = [f"{count} claim{'' if count == 1 else 's'}: {note}" for note, count in notes.most_common(most)]
    left = sum(notes.values()) - sum(count for _, count in notes.most_common(most))
    return [*lines, f"{left} claims: other reasons"] if left else lines


def _paper_number(outcome: Outcome) -> str:
    return "" if outcome.claim.paper_number is None else f"{outcome.claim.paper_number:g}"


def format_number(outcome: Outcome) -> str:
    """Return what was measured, with its interval where it has one; a dash where nothing could be.

    Example:
        >>> format_number(Outcome(Claim("BoRA", "Figure 2", "it is so"), "agrees", 0.1, 0.05, 0.2, "A ≤ 0.25"))
        '0.1 [0.05, 0.2]'
    """
    if outcome.statistic is None:
        return "–"
    text = f"{outcome.statistic:.3g}"
    if outcome.ci_low is not None and outcome.ci_high is not None:
        text += f" [{outcome.ci_low:.3g}, {outcome.ci_high:.3g}]"
    return text
