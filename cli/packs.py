"""``deltaw packs``: the claims of papers that there are, and whether one that somebody writes is whole."""

import shlex
from typing import TYPE_CHECKING, Any

import click

from deltaw.adapters.errors import DeltawError, PackError
from deltaw.cli.commands import Command, did_you_mean
from deltaw.cli.options import PackName, json_option
from deltaw.cli.output import emit, emit_json, in_columns

if TYPE_CHECKING:
    from deltaw.analysis.claims import Pack, PackFigure


@click.command("packs", cls=Command)
@click.argument("pack", required=False, type=PackName(), metavar="[NAME|FILE]")
@click.option("--check", is_flag=True, help="Only say whether it is whole; a mistake comes with its line.")
@click.option("--bibtex", "cited", is_flag=True, help="Print where to cite it, as BibTeX.")
@json_option
def command(pack: str | None, check: bool, cited: bool, as_json: bool) -> None:
    """List the packs of claims, or show one: its claims, measures, rules and figures.

    A pack is a paper's claims as a file of TOML that anybody can write. Packs come with deltaw, with a package (entry
    point deltaw.packs), or as a file that is named. One that is named is read as data, and nothing in it is run.

    \b
    Example:
      deltaw packs
      deltaw packs lora-vs-full
      deltaw packs mine.toml --check
    """
    from deltaw.analysis.claims import bibtex, find_pack
    from deltaw.analysis.claims.found import PACKS

    chosen, broken = [], []
    for name in PACKS if pack is None else [pack]:
        try:
            chosen.append(_checked(find_pack(name)))
        except DeltawError as error:  # one of a package must not hide the others
            if pack is not None:
                raise
            broken.append(f"{name}: {error}")
    if check:
        for one in chosen:
            emit(f"{one.name}: whole, {len(one.claims)} claims, {len(one.figures)} figures")
    elif cited:
        emit(bibtex(one.paper for one in chosen))
    elif as_json:
        emit_json([_plain(one) for one in chosen] if pack is None else _plain(chosen[0]))
    elif pack is None:
        rows = [
            {"pack": one.name, "paper": one.paper.title, "claims": len(one.claims), "from": one.source}
            for one in chosen
        ]
        emit(in_columns(rows, disable_numparse=True))
    else:
        _show(chosen[0])
    if broken:
        raise PackError("; ".join(broken))


def _show(pack: "Pack") -> None:
    """Print a pack for a reader."""
    paper = pack.paper
    place = paper.venue or paper.journal or (f"arXiv:{paper.arxiv}" if paper.arxiv else "")
    emit(f"{paper.title}\n{', '.join(paper.authors)}. {', '.join(filter(None, [place, str(paper.year)]))}.\n")
    for text in filter(None, [pack.about, *(f"role {role}: {text}" for role, text in pack.roles.items())]):
        emit(f"{click.wrap_text(text, 100)}\n")
    emit(in_columns([{"id": one.id, "it says": one.claim.sentence, "where": one.claim.source} for one in pack.claims]))
    emit("\nmeasured: rule\n")
    emit(in_columns([{"id": one.id, "measured": one.measured, "rule": one.rule.text} for one in pack.claims]))
    for figure in pack.figures:
        emit(f"\n{figure.where}:\n  {_call(figure)}")


def _call(figure: "PackFigure") -> str:
    """The call that draws a figure."""
    from deltaw.analysis.figures.registry import FIGURES

    options = [word for name, value in figure.options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    words = ["deltaw", "plot", figure.name, f"{FIGURES[figure.name].paths}...", *options, "-o", f"{figure.name}.pdf"]
    return " ".join(word if word.endswith("...") else shlex.quote(word) for word in words)


def _checked(pack: "Pack") -> "Pack":
    """The pack, if its figures are such as ``deltaw plot`` has."""
    for number, figure in enumerate(pack.figures, start=1):
        _check_figure(pack, figure, number)
    return pack


def _check_figure(pack: "Pack", figure: "PackFigure", number: int) -> None:
    from deltaw.analysis.figures.registry import FIGURES

    place = f"{pack.source}{f', line {figure.line}' if figure.line else ''}: figures.{number}"
    if figure.name not in FIGURES:
        raise PackError(f"{place}.name: {figure.name!r} {did_you_mean(figure.name, FIGURES)}")
    for option in figure.options:
        if option not in FIGURES[figure.name].options:
            raise PackError(f"{place}.options: {option!r} {did_you_mean(option, FIGURES[figure.name].options)}")


def _plain(pack: "Pack") -> dict[str, Any]:
    """A pack as plain data."""
    from dataclasses import asdict

    return {
        "name": pack.name,
        "from": pack.source,
        "about": pack.about,
        "paper": asdict(pack.paper),
        "roles": dict(pack.roles),
        "claims": [
            {"id": one.id, "says": one.claim.sentence, "where": one.claim.source, "quote": one.quote}
            | {"number": one.claim.paper_number, "measured": one.measured, "measure": one.measure}
            | {"with": dict(one.options), "rule": one.rule.text}
            for one in pack.claims
        ],
        "figures": [{"name": one.name, "where": one.where, "options": dict(one.options)} for one in pack.figures],
    }
