"""``deltaw claims``: the papers' claims beside what is seen in recorded runs."""

import json
from pathlib import Path

import click

from deltaw.analysis.tables.work import Work
from deltaw.cli.commands import Command
from deltaw.cli.options import PAPER, base_option, folder_option, json_option, runs_argument, work_options
from deltaw.cli.output import emit, emit_json, progress, remark


@click.command("claims", cls=Command)
@runs_argument
@click.option("--paper", "papers", multiple=True, type=PAPER, help="May be repeated. Default: all.")
@click.option("--all", "every", is_flag=True, help="Also the claims that these runs cannot check.")
@folder_option("Write claims.md and claims.json here.", required=False)
@base_option
@work_options
@json_option
def command(
    runs: tuple[str, ...],
    papers: tuple[str, ...],
    every: bool,
    out: Path | None,
    base: str | None,
    as_json: bool,
    work: Work,
) -> None:
    """Hold the claims of the four papers against recorded runs of one experiment.

    Give the runs of several methods; several seeds of a method are averaged and resampled, several ranks told apart.
    Every claim comes with its verdict (agrees, disagrees, unclear) and the number that decided it. One that needs a
    method, a matrix or a score that is not there is printed with --all, and says what is missing. Scores, times and
    parameters come from a run's result.json.

    \b
    Example:
      deltaw claims runs/ft runs/lora runs/dora runs/bora
      deltaw claims demo/runs/* --paper dora --paper bora -o verdicts
    """
    from deltaw.analysis.claims import PAPERS, claims, claims_json, claims_markdown, claims_table, count_line, gather
    from deltaw.analysis.records.storage.atomic import make_folder, write_text
    from deltaw.analysis.runs import open_runs

    chosen = papers or tuple(PAPERS)
    evidence = gather(open_runs(runs, base=base), chosen, progress=progress(as_json), work=work)
    outcomes = claims(evidence, chosen)
    if out is not None:
        make_folder(out)
        write_text(out / "claims.md", claims_markdown(outcomes))
        write_text(out / "claims.json", json.dumps(claims_json(outcomes), indent=1, allow_nan=False))
    if as_json:
        emit_json(claims_json(outcomes))
        return
    checked = [outcome for outcome in outcomes if every or not outcome.missing]
    emit(count_line(outcomes))
    if checked:
        emit(f"\n{claims_table(checked)}")
    if left := len(outcomes) - len(checked):
        emit(f"\n{left} more need runs that are not here; --all says which")
    if out is not None:
        remark(f"written to {out / 'claims.md'} and {out / 'claims.json'}, with every rule")
