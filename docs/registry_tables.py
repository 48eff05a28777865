"""Tables in README.md, docs/methods.md and docs/packs.md, made from the registries by ``make docs``.

A table stands between ``<!-- made by `make docs`: NAME -->`` and ``<!-- end -->``.
"""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deltaw.adapters.methods.registry import METHODS
from deltaw.analysis.claims import MEASURES, RULES
from deltaw.analysis.claims.arguments import REQUIRED
from deltaw.analysis.figures import FIGURES

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs" / "methods.md")  # those with tables of methods
OTHERS = (ROOT / "docs" / "packs.md",)
COMMON = ("rank", "alpha", "dropout", "rank_stabilized")  # options that most methods have: said above the table


def methods() -> Iterator[str]:
    """Name, W' and paper of every method."""
    yield "| name | W' | paper |"
    yield "|---|---|---|"
    for name, make in METHODS.items():
        method = make()
        yield f"| `{name}` | {method.formula} | {method.source} |"


def counts() -> Iterator[str]:
    """Name, class with the options of its own, and number of trainable parameters of every method."""
    yield "| name | class | trainable parameters of a matrix |"
    yield "|---|---|---|"
    for name, make in METHODS.items():
        method = make()
        yield f"| `{name}` | `{type(method).__name__}({', '.join(own_options(make))})` | {method.counts} |"


def own_options(make: Any) -> Iterator[str]:
    """The options of a method with their defaults, less those that most have with the usual default."""
    given = getattr(make, "keywords", {})  # of a variant
    for option in inspect.signature(make).parameters.values():
        if option.name not in COMMON or option.name in given or option.default not in (8, None, 0.0, False):
            yield f"{option.name}={option.default!r}".replace("'", '"')


def figures() -> Iterator[str]:
    """Command and meaning of every figure."""
    yield "| command | what it shows |"
    yield "|---|---|"
    for name, figure in FIGURES.items():
        runs = figure.example if figure.paths != "RUNS" or len(figure.example.split()) == 2 else "runs/*"
        yield f"| `deltaw plot {name} {runs} -o {name}.{'gif' if figure.movie else 'pdf'}` | {figure.about} |"


def rules() -> Iterator[str]:
    """Name and text of every rule."""
    yield "| rule | agrees where |"
    yield "|---|---|"
    for name, rule in RULES.items():
        yield f"| `{name}` | {rule.text} |"


def measures() -> Iterator[str]:
    """Name, meaning and arguments of every measure of packs."""
    yield "| measure | what it is | with |"
    yield "|---|---|---|"
    for name, measure in MEASURES.items():
        taken = [
            f"`{key}`{'' if one.default is REQUIRED else ' (may be left out)'}: {one.takes}"
            for key, one in measure.arguments.items()
        ]
        yield f"| `{name}` | {measure.about} | {'; '.join(taken)} |"


TABLES = {"rules": rules, "measures": measures, "methods": methods, "counts": counts, "figures": figures}


def filled(text: str) -> str:
    """Return a page with its tables made anew."""

    def table(found: re.Match[str]) -> str:
        return f"{found[1]}\n\n" + "\n".join(TABLES[found[2]]()) + "\n\n<!-- end -->"

    return re.sub(r"(<!-- made by `make docs`: (\w+) -->).*?<!-- end -->", table, text, flags=re.DOTALL)
