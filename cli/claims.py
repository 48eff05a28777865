"""``deltaw claims``: the papers' claims beside what is seen in recorded runs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deltaw.adapters.errors import OptionError
from deltaw.analysis.tables.work import Work
from deltaw.cli.commands import Command
from deltaw.cli.layout import terminal, wrapped
from deltaw.cli.options import PAPER, PackName, base_option, folder_option, json_option, runs_argument, work_options
from deltaw.cli.output import check_writable, emit, emit_json, progress, remark

if TYPE_CHECKING:
    from deltaw.analysis.claims import Outcome, Pack
    from deltaw.analysis.trajectory import Trajectory


def _check_file(context: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    if path is not None and not context.resilient_parsing:
        check_writable(path.parent)
    return path


_file: dict[str, Any] = {"type": click.Path(path_type=Path, dir_okay=False), "callback": _check_file}


@click.command("claims", cls=Command)
@runs_argument
@click.option("--paper", "papers", multiple=True, type=PAPER, help="May be repeated. Default: all.")
@click.option(
    "--pack",
    "packs",
    multiple=True,
    type=PackName(),
    metavar="NAME|FILE",
    help="The claims of another paper, see deltaw packs; may be repeated.",
)
@click.option(
    "--role",
    "roles",
    multiple=True,
    metavar="ROLE=RUN",
    help="What a run counts as, where a pack tells runs apart by more than their method; may be repeated.",
)
@click.option("--all", "every", is_flag=True, help="Also the claims that these runs cannot check.")
@folder_option("Write claims.md and claims.json here.", required=False)
@click.option("--tex", help="Write the verdicts here as tables of LaTeX, one a paper.", **_file)
@click.option("--bibtex", "cited", help="Write the papers here as entries of BibTeX.", **_file)
@base_option
@work_options
@json_option
def command(
    runs: tuple[str, ...],
    papers: tuple[str, ...],
    packs: tuple[str, ...],
    roles: tuple[str, ...],
    every: bool,
    out: Path | None,
    tex: Path | None,
    cited: Path | None,
    base: str | None,
    as_json: bool,
    work: Work,
) -> None:
    """Hold papers' claims against recorded runs of one experiment.

    Give the runs of several methods; several seeds of a method are averaged and resampled, several ranks told apart.
    Every claim comes with its verdict (agrees, disagrees, unclear) and the number that decided it. One that needs a
    method, a matrix or a score that is not there is printed with --all, and says what is missing. Scores, times and
    parameters come from a run's result.json. Without --paper and --pack it is the four papers DoRA, BoRA, SBoRA and
    Dual LoRA.

    \b
    Example:
      deltaw claims runs/ft runs/lora runs/dora runs/bora
      deltaw claims demo/runs/* --paper dora --paper bora -o verdicts
      deltaw claims runs/* --pack lora-vs-full --pack mine.toml --tex claims.tex --bibtex claims.bib
      deltaw claims runs/grpo runs/sft --pack path-not-taken --role rl=runs/grpo --role sft=runs/sft
    """
    from deltaw.analysis.claims import (
        PAPERS,
        bibtex,
        claims,
        claims_json,
        claims_latex,
        claims_markdown,
        find_pack,
        gather,
    )
    from deltaw.analysis.records.storage.atomic import make_folder, write_text
    from deltaw.analysis.runs import open_runs

    chosen = list(dict.fromkeys(map(find_pack, (papers + packs) or PAPERS)))
    opened = open_runs(runs, base=base)
    named = _roles(roles, opened, chosen)
    evidence = gather(opened, chosen, roles=named, progress=progress(as_json), work=work)
    found = {pack: claims(evidence, [pack]) for pack in chosen}
    outcomes = [outcome for of_pack in found.values() for outcome in of_pack]
    if out is not None:
        make_folder(out)
        write_text(out / "claims.md", claims_markdown(outcomes))
        write_text(out / "claims.json", json.dumps(claims_json(outcomes), indent=1, allow_nan=False))
    if tex is not None:
        _write(tex, "\n\n".join(claims_latex(pack, of_pack) for pack, of_pack in found.items()))
    if cited is not None:
        _write(cited, bibtex(pack.paper for pack in chosen))
    if as_json:
        emit_json(claims_json(outcomes))
        return
    _show(outcomes, every)
    if out is not None:
        remark(f"written to {out / 'claims.md'} and {out / 'claims.json'}, with every rule")
    for path in filter(None, (tex, cited)):
        remark(f"written to {path}")


def _write(path: Path, text: str) -> None:
    from deltaw.analysis.records.storage.atomic import make_folder, write_text

    make_folder(path.parent)
    write_text(path, f"{text}\n")


def _show(outcomes: "list[Outcome]", every: bool) -> None:
    from deltaw.analysis.claims import claims_table, count_line, unclear_lines

    checked = [outcome for outcome in outcomes if not outcome.missing]
    shown = outcomes if every else checked
    counts = count_line(checked).partition(": ")[2]
    emit(f"these runs can check {len(checked)} of {len(outcomes)} claims: {counts}")
    if shown:
        emit(f"\n{claims_table(shown, terminal()[0])}")
    if why := unclear_lines(checked):
        lines = [wrapped(f"  {line}", "    ") for line in why]
        emit("\n".join(["", "why unclear:", *lines]))
    if left := len(outcomes) - len(shown):
        emit(f"\n{left}{' more' if shown else ''} need runs that are not here; --all says which")


def _roles(given: tuple[str, ...], runs: "list[Trajectory]", packs: "list[Pack]") -> dict[str, str]:
    """The role of each run that has one, by the run's name."""
    known = list(dict.fromkeys(role for pack in packs for role in pack.roles))
    found: dict[str, str] = {}
    for text in given:
        role, sign, place = text.partition("=")
        if not sign or role not in known:
            has = f"these packs have {', '.join(known)}" if known else "these packs have none"
            raise OptionError(f"--role {text!r}: give a role and a run, as sft=runs/sft; {has}")
        names = [run.name for run in runs if place == run.name or Path(place) == Path(str(run.path))]
        if not names:
            raise OptionError(
                f"--role {text!r}: there is no run {place!r}; there are {', '.join(r.name for r in runs)}"
            )
        found |= dict.fromkeys(names, role)
    return found
