"""The page of all claims: ``python docs/claims_page.py`` writes claims.md from ``deltaw.analysis.claims``."""

import textwrap
from pathlib import Path

from deltaw.analysis.claims import PAPERS, Evidence, all_checks, markdown_table, rules
from deltaw.analysis.claims.found import SHIPPED, find_pack

PAGE = Path(__file__).with_name("claims.md")
HEAD = """# The claims

Every claim of the four papers that recorded runs can check: {count} of them, each with its source, the rule that
decides it, and the paper's own number where it prints one for what is measured. `deltaw claims runs/*` holds them
against runs of one experiment, `deltaw reproduce all --out papers` trains the runs first. A claim "agrees", "disagrees"
or is "unclear": a method, matrix or score that is missing makes it unclear, and the note names it. The sentences are
ours, not the papers'. Behind the four stand {more} claims of {others} other papers, which `--pack` names. How to write
a pack of one's own is in [packs.md](packs.md).

All rules were fixed before anything was measured, and none depends on a result. Where the paper's own difference is too
small to be told with so few examples, the note says so.

{points}

This page is made by `make docs` from the packs in `analysis/claims/shipped/`, and a test fails where it is out of date.

## How it is decided

{rules}
"""
POINTS = """What to know when reading a verdict:

- DoRA's equations have a magnitude a column, its authors' code one a row. The claims are held against both: by column
  with `dora`, by row with `dora-row`. BoRA's "DoRA" is the column's.
- DoRA's Figures 3 and 8 (LLaMA2-7B) have DoRA nearer to the base than LoRA; by the axes of its Figures 2 and 7
  (VL-BART) it is further from it, and BoRA's Figure 3 has it change column magnitudes more. They are claims of their
  own, and cannot all agree on one model.
- Correlations are over layers and steps together, as in DoRA's figures: where all layers move further from the base
  with every step, in magnitude and in direction, that alone makes r positive.
- The papers measured on other models and tasks. "Disagrees" says that a claim does not hold in these runs, not that the
  paper's numbers are wrong.
- An interval over the matrices of one run says nothing of other seeds: train several (`--seed 0,1,2`).
- A run is what its method and these options say: `detach_norm`, `activation`, `sign`, a base in 4 bits (QLoRA, …), and
  DoRA with magnitudes in more modules than directions. Other options of a method's runs are not told apart."""


def page() -> str:
    """Return the text of docs/claims.md."""
    packs = [find_pack(name) for name in SHIPPED]
    count = {name: len(find_pack(name).claims) for name in SHIPPED}
    four = sum(count[name] for name in PAPERS)
    text = (rules.__doc__ or "").partition("\n\n")[2].strip()
    others = {"more": sum(count.values()) - four, "others": len(SHIPPED) - len(PAPERS)}
    parts = [HEAD.format(count=four, **others, points=POINTS, rules=_as_markdown(text))]
    for pack in packs:
        rows = [
            [
                check.claim.sentence,
                check.claim.source,
                check.text,
                "" if check.claim.paper_number is None else f"{check.claim.paper_number:g}",
            ]
            for check in all_checks(Evidence(), [pack])
        ]
        parts.append(f"## {pack.paper.short}\n")
        link = f"https://arxiv.org/abs/{pack.paper.arxiv}"
        parts.append(f"*{pack.paper.title}*, arXiv [{pack.paper.arxiv}]({link}): `--pack {pack.name}`.\n")
        parts += [f"{textwrap.fill(pack.about, 120)}\n"] if pack.about else []
        parts.append(markdown_table(["claim", "source", "measured: rule", "paper"], rows) + "\n")
    return "\n".join(parts)


def _as_markdown(text: str) -> str:
    """Fence the indented definitions, and turn the code marks of a docstring into those of Markdown."""
    blocks = []
    for block in text.split("\n\n"):
        blocks.append(f"```text\n{block}\n```" if block.startswith("    ") else block.replace("``", "`"))
    return "\n\n".join(blocks)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
