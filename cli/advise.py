"""``deltaw advise``: a rank for every module, as PEFT's settings."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deltaw.adapters.errors import OptionError
from deltaw.analysis.tables.work import Work
from deltaw.cli.commands import Command, OneOf
from deltaw.cli.options import base_option, json_option, modules_option, out_option, with_default, work_options
from deltaw.cli.output import emit, emit_json, in_columns, progress, remark, write_table

if TYPE_CHECKING:
    import pandas as pd

RULES = OneOf(("energy", "noise", "stable", "effective", "sv_fro", "sv_cumulative", "sv_ratio"))
PRINTED = 24  # patterns that are printed; more go into a file
NAMED = 4  # modules in a line


def rule_options(function: Any) -> Any:
    """Give a verb the options that say which ranks are meant; `rule_of` takes their values."""
    for option in reversed(
        [
            click.option("--rule", type=RULES, help="What a module's rank follows from. Default: energy."),
            click.option(
                "--at", type=float, help="The rule's number. Default: 0.99 of energy, 0.9 of sv_…, 10 of sv_ratio."
            ),
            click.option("--energy", type=float, metavar="SHARE", help="The same as --rule energy --at SHARE."),
            click.option("--together", is_flag=True, help="Let the share of energy hold of all modules together."),
            click.option("--parameters", metavar="N|same", help="A budget of parameters instead, shared out."),
            click.option("--most", type=click.IntRange(1), help="No rank above this."),
        ]
    ):
        function = option(function)
    return function


def rule_of(given: dict[str, Any]) -> dict[str, Any]:
    """Take the values of these options out of what a verb was given, as arguments of ``advice``."""
    rule, at, energy = given.pop("rule"), given.pop("at"), given.pop("energy")
    parameters = given.pop("parameters")
    if energy is not None and (rule is not None or at is not None):
        raise click.UsageError("--energy is --rule energy --at SHARE; leave the others out")
    if parameters is not None and (rule or at or energy):
        raise click.UsageError("--parameters stands in the place of a rule; leave the rule out")
    if parameters not in (None, "same"):
        try:
            parameters = int(parameters.replace("_", ""))
        except ValueError:
            raise click.UsageError(f"--parameters {parameters!r} is no whole number, and not 'same'") from None
    rule, at = ("energy", energy) if energy is not None else (rule, at)
    if at is not None and rule is None:
        rule = "energy"
    return {
        "rule": rule,
        "at": at,
        "parameters": parameters,
        "together": given.pop("together"),
        "most": given.pop("most"),
    }


@click.command("advise", cls=Command)
@click.argument("run", type=click.Path())
@rule_options
@click.option("--spread", type=OneOf(("energy", "need")), help="How a budget is shared out. Default: what fits.")
@with_default("--least", type=click.IntRange(0), default=1, help="No rank below this.")
@with_default("--hardly", type=float, default=0.1, help="Below this share of the median size a module hardly moved.")
@click.option("--drop", is_flag=True, help="No adapter for modules that hardly moved.")
@click.option("--scaling", type=float, help="s of the adapters to come. Default: that which was trained, else 1.")
@click.option(
    "--advice",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write it as JSON, for LoraConfig, deltaw resize --advice and deltaw train --advice.",
)
@click.option("--step", type=int, help="A recorded step. Default: the last.")
@modules_option
@base_option
@out_option
@work_options
@json_option
def command(
    run: str,
    file: Path | None,
    modules: tuple[str, ...],
    base: str | None,
    path: Path | None,
    as_json: bool,
    work: Work,
    **given: Any,
) -> None:
    """Advise a rank for every module, and say which hardly moved.

    From the singular values of the update that was trained: of LoRA's s·B A (DoRA's and BoRA's too, without their
    magnitudes), or of a whole model's difference from --base, the rank a LoRA would need. Printed as PEFT's
    rank_pattern and alpha_pattern, which keep the scale that was trained.

    \b
    Example:
      deltaw advise runs/lora
      deltaw advise adapter --energy 0.9 --advice advice.json
      deltaw advise adapter --parameters same --advice advice.json
      deltaw advise tuned-model --base base-model --rule sv_ratio --at 10 --most 64
    """
    from deltaw.analysis.advice.config import lora_config, write_advice
    from deltaw.analysis.tables.advice import advice_table
    from deltaw.analysis.trajectory import Trajectory

    chosen = rule_of(given)
    chosen["rule"] = chosen["rule"] or "energy"
    if chosen["parameters"] is None and given["spread"]:
        raise click.UsageError("--spread says how --parameters are shared out; give both or none")
    opened = Trajectory.open(run, base=base, split=False)
    frame = advice_table([opened], modules=modules or None, progress=progress(as_json), work=work, **chosen, **given)
    if frame.empty:
        raise OptionError(f"{run}: there is no module to advise on")
    config = lora_config(frame)
    if path is not None:
        write_table(frame, path)
    if file is not None:
        write_advice(frame, file)
    if as_json:
        emit_json({"rule": frame.attrs["rule"], "lora_config": config, "modules": frame.to_dict(orient="records")})
        return
    emit(_page(frame))
    if file is not None:
        remark(f"written to {file}; use it: deltaw train cola --method lora --advice {file} …")
    elif len(config["rank_pattern"]) <= PRINTED:
        emit("\nfor peft.LoraConfig:")
        emit_json({name: value for name, value in config.items() if name != "target_modules"})
    else:
        emit("--advice FILE writes rank_pattern and alpha_pattern for peft.LoraConfig")


def _page(frame: "pd.DataFrame") -> str:
    rows = [
        {
            "module": row["module"],
            "now": "" if row["trained"] is None or row["trained"] != row["trained"] else row["trained"],
            "rank": row["rank"],
            "alpha": row["alpha"],
            "kept": f"{row['kept']:.4f}",
            "stable": row["stable_rank"],
            "effective": row["effective_rank"],
            "90 %, 99 %": f"{row['energy_rank_90']}, {row['energy_rank_99']}",
            "size/median": row["against_median"],
            "": "hardly moved" if row["hardly"] else "",
        }
        for row in frame.astype({"trained": object}).where(frame.notna(), None).to_dict(orient="records")
    ]
    known, then = bool(frame["parameters_now"].notna().all()), int(frame["parameters"].sum())
    held = float((frame["kept"] * frame["norm"] ** 2).sum()), float((frame["norm"] ** 2).sum())
    lines = [frame.attrs["rule"], in_columns(rows, floatfmt=".3g", missingval="")]
    lines.append(
        f"{then} parameters"
        + (f" of {int(frame['parameters_now'].sum())}" if known else "")  # a module may have no adapter
        + f", {held[0] / (held[1] or 1.0):.4f} of Σ‖ΔW‖_F² in them"
    )
    still = list(frame["module"][frame["hardly"]])
    if still:
        more = f" and {len(still) - NAMED} more" if len(still) > NAMED else ""
        lines.append(f"{len(still)} hardly moved: {', '.join(still[:NAMED])}{more}")
    return "\n".join(lines)
