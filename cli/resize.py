"""``deltaw resize``: an adapter at other ranks, with the error of each matrix."""

from pathlib import Path
from typing import Any

import click

from deltaw.cli.advise import rule_of, rule_options
from deltaw.cli.commands import Command, OneOf
from deltaw.cli.options import base_option, folder_option, json_option, modules_option
from deltaw.cli.output import emit, emit_json, in_columns, progress, remark

DTYPES = OneOf(("float64", "float32", "bfloat16", "float16"))
NAMED = 4  # modules in a line


@click.command("resize", cls=Command)
@click.argument("adapter", type=click.Path())
@folder_option("The new folder, which must not be there or be empty.")
@click.option("--rank", type=click.IntRange(1), help="Of all modules; those that have less stay as they are.")
@click.option(
    "--advice", type=click.Path(path_type=Path, dir_okay=False), help="A file that deltaw advise has written."
)
@rule_options
@click.option("--dtype", type=DTYPES, help="What the tensors are stored in. Default: as they are.")
@click.option("--plain", is_flag=True, help="A plain LoRA of ΔW for DoRA and BoRA too; says how much that loses.")
@click.option("--grow", is_flag=True, help="Allow larger ranks than were trained, filled with zeros.")
@click.option("--step", type=int, help="A recorded step. Default: the last.")
@modules_option
@base_option
@json_option
def command(adapter: str, out: Path, modules: tuple[str, ...], base: str | None, as_json: bool, **given: Any) -> None:
    """Write an adapter at other ranks, and print the error of each matrix.

    Every s·B A becomes its best approximation of the new rank, by the singular values of its factors. The errors are
    relative to the matrix: of cutting alone, and of what is stored, whose rounding counts. DoRA keeps its magnitudes
    and needs --base. A whole model with --base becomes a LoRA of its difference from it.

    \b
    Example:
      deltaw resize adapter -o smaller --rank 4
      deltaw resize adapter -o smaller --energy 0.99
      deltaw resize adapter -o smaller --rule sv_fro --at 0.95 --most 32 --dtype float16
      deltaw resize tuned-model --base base-model -o lora --rank 64
    """
    from deltaw.analysis.advice.adapter_folder import REPORT
    from deltaw.analysis.advice.resize import resize

    chosen = rule_of(given)
    if chosen["together"] and chosen["rule"] is None:
        chosen["rule"] = "energy"
    if chosen["parameters"] == "same":
        raise click.UsageError("--parameters same leaves an adapter as it is; give a smaller number")
    frame = resize(adapter, out, base=base, modules=modules or None, progress=progress(as_json), **chosen, **given)
    if as_json:
        emit_json({"kept": frame.attrs["kept"], "modules": frame.to_dict(orient="records")})
        return
    columns = {"module": "module", "rank_before": "before", "rank": "rank", "cut_frobenius": "cut, ‖·‖_F"}
    columns |= {"cut_spectral": "cut, ‖·‖₂", "error_frobenius": "error, ‖·‖_F", "error_spectral": "error, ‖·‖₂"}
    if frame["error_update"].notna().any():
        columns["error_update"] = "error of ΔW"
    shown = frame.rename(columns=columns)[list(columns.values())].astype(object)
    emit(in_columns(shown.where(shown.notna(), "").to_dict(orient="records"), floatfmt=".3g"))
    emit("errors are relative to the norm of each matrix; cut: without the rounding of what is stored")
    if frame.attrs["kept"]:
        kept = frame.attrs["kept"]
        more = f" and {len(kept) - NAMED} more" if len(kept) > NAMED else ""
        emit(f"{len(kept)} adapters stay as they are: {', '.join(kept[:NAMED])}{more}")
    remark(f"written to {out}; the errors stand in {out / REPORT}")
