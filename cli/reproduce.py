"""``deltaw reproduce``: a paper's weight picture from training to verdict."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from deltaw.cli.cola_options import cola_options
from deltaw.cli.output import emit_json, json_option


@click.group("reproduce")
def command() -> None:
    """Train, record, analyse, plot, and hold the result against the paper."""


@command.command("bora")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Where everything goes.")
@click.option("--methods", default="ft,lora,dora,dora-row,bora", show_default=True, help="Separated by commas.")
@click.option("--ft-lr", "full_learning_rate", type=float, help="Learning rate of ft; --lr is the adapters'.")
@cola_options
@json_option
def bora(
    out: Path,
    methods: str,
    full_learning_rate: float | None,
    cola: dict[str, Any],
    options: dict[str, Any],
    as_json: bool,
) -> None:
    """BoRA's Figures 2 and 3 on CoLA, the ranks, and BoRA's claims beside what was seen.

    Offline with the built-in model and data this takes minutes. What is finished is not done again.

    \b
    Example:
      deltaw reproduce bora --out demo
      deltaw reproduce bora --model roberta-base --data hub --out bora-roberta
    """
    from deltaw.analysis.claims import claims_json
    from deltaw.trainers.cola import ColaSettings
    from deltaw.trainers.reproduce import reproduce_bora

    settings = ColaSettings(method="bora", options=options, **cola)
    report = reproduce_bora(
        out,
        settings,
        [name.strip() for name in methods.split(",") if name.strip()],
        full_learning_rate=full_learning_rate,
        progress=not as_json,
    )
    if as_json:
        emit_json({"results": [asdict(r) for r in report.results], "claims": claims_json(report.outcomes)})
        return
    click.echo(report.page())
