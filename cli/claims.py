"""``deltaw claims``: the papers' claims beside what is seen in recorded runs."""

import json
from pathlib import Path

import click

from deltaw.analysis.tables.runs import open_runs
from deltaw.cli.output import base_option, emit_json, json_option

PAPERS = ("dora", "bora", "sbora", "dual-lora")


@click.command("claims")
@click.argument("runs", nargs=-1, required=True)
@click.option("--paper", "papers", multiple=True, type=click.Choice(PAPERS), help="May be repeated. Default: all.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, file_okay=False), help="Write claims.md and claims.json here."
)
@base_option
@json_option
def command(runs: tuple[str, ...], papers: tuple[str, ...], out: Path | None, base: str | None, as_json: bool) -> None:
    """Hold the claims of the four papers against recorded runs of one experiment.

    Give the runs of several methods; several seeds of a method are averaged and resampled, several ranks told apart.
    Every claim comes with its verdict (agrees, disagrees, unclear) and the number that decided it; one that needs a
    method, a matrix or a score that is not there is unclear, and says what is missing. Scores, times and parameters
    come from a run's result.json.

    \b
    Example:
      deltaw claims runs/ft runs/lora runs/dora runs/bora
      deltaw claims demo/runs/* --paper dora --paper bora -o verdicts
    """
    from deltaw.analysis.claims import claims, claims_json, claims_markdown, claims_table, count_line, gather
    from deltaw.analysis.records.atomic import write_text

    chosen = papers or PAPERS
    outcomes = claims(gather(open_runs(runs, base=base), chosen, progress=not as_json), chosen)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "claims.md", claims_markdown(outcomes))
        write_text(out / "claims.json", json.dumps(claims_json(outcomes), indent=1))
    if as_json:
        emit_json(claims_json(outcomes))
        return
    click.echo(f"{claims_table(outcomes)}\n\n{count_line(outcomes)}")
    if out is not None:
        click.echo(f"written to {out / 'claims.md'} and {out / 'claims.json'}, with every rule")
