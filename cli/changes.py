"""``deltaw changes``: the ΔM, ΔD table."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deltaw.adapters.errors import OptionError
from deltaw.analysis.tables.work import Work
from deltaw.cli.commands import Command, ListOption, OneOf
from deltaw.cli.options import (
    base_option,
    heads_option,
    json_option,
    modules_option,
    out_option,
    runs_argument,
    work_options,
)
from deltaw.cli.output import emit_table, progress, remark, write_table
from deltaw.cli.summary import (
    GROUPS,
    Shown,
    at_step,
    check_sort,
    emit_rows,
    emit_summary,
    shown_options,
    steps_text,
)

if TYPE_CHECKING:
    import pandas as pd

    from deltaw.analysis.trajectory import Trajectory

MODELS = ("safetensors", "transformers")  # formats of whole models
PAIRS = ("consecutive", "initial", "base")
AXES = ("row", "column", "matrix", "head", "expert", "entry")
COLUMNS = {
    "delta_m_row": "ΔM, the mean over rows of |‖w_t‖ − ‖w_s‖|, in units of the weights (BoRA, equation 5); "
    "w_s is the row before, w_t after",
    "delta_m_column": "ΔM, the mean over columns of the same (DoRA, equation 3)",
    "delta_m_matrix": "ΔM of the whole matrix as one vector: of Frobenius' norm (MAP)",
    "delta_m_head": "ΔM, the mean over attention heads, each one vector",
    "delta_m_expert": "ΔM of an expert's whole matrix as one vector",
    "delta_d_row": "ΔD, the mean over rows of 1 − cos(w_t, w_s), from 0 to 2 (BoRA, equation 6)",
    "delta_d_column": "ΔD, the mean over columns of the same (DoRA, equation 4)",
    "delta_d_matrix": "ΔD of the whole matrix as one vector (MAP)",
    "delta_d_head": "ΔD, the mean over attention heads",
    "delta_d_expert": "ΔD of an expert's whole matrix",
}


@click.command("changes", cls=Command)
@runs_argument
@click.option(
    "--pairs",
    cls=ListOption,
    kind=OneOf(PAIRS),
    help="One or several of: {names}. Default: consecutive; base for a run of one checkpoint.",
)
@click.option(
    "--axes",
    cls=ListOption,
    kind=OneOf(AXES),
    help="One or several of: {names}. Default: row and column.",
)
@heads_option
@modules_option
@base_option
@click.option("--step", type=int, help="Show the pairs that end at this step. Default: each run's last.")
@shown_options
@click.option("--tokens", "tokens", flag_value="moved", help="Print the tokens whose rows moved most instead.")
@click.option("--new-tokens", "tokens", flag_value="new", help="Print the rows that a resized vocabulary has new.")
@click.option("--tokenizer", metavar="FOLDER", help="Where the tokens' texts are. Default: beside checkpoint or base.")
@click.option("--correlation", "correlate", is_flag=True, help="Print how ΔM and ΔD go together instead.")
@out_option
@work_options
@json_option
def command(
    runs: tuple[str, ...],
    pairs: list[str],
    axes: list[str],
    heads: dict[str, int] | None,
    modules: tuple[str, ...],
    base: str | None,
    tokens: str | None,
    tokenizer: str | None,
    correlate: bool,
    path: Path | None,
    as_json: bool,
    work: Work,
    shown: Shown,
) -> None:
    """Print ΔM and ΔD of every module, pair of steps and axis: in the terminal by kind and layer at the last step.

    \b
    --pairs consecutive   from the checkpoint before (BoRA, Figure 2)
            initial       from the first checkpoint (BoRA, Figure 3)
            base          from the base weights W₀ (DoRA, Figure 2)
    Several, as consecutive,base, are measured in one pass; the table then has a column pairs.

    \b
    --axes row, column    the vectors of W [out, in], one per output or input feature
           matrix         the whole matrix as one vector
           head           an attention head's rows of query, key, value, its columns of the output
           expert         an expert's whole matrix

    \b
    Example:
      deltaw changes runs/lora runs/bora --pairs base -o changes.csv
      deltaw changes runs/* --pairs base --correlation
      deltaw changes runs/lora --axes row,matrix,head
      deltaw changes before/model.safetensors after/model.safetensors
      deltaw changes before after --tokens --top 50

    A run is a folder that deltaw recorded, an output folder of Hugging Face or PEFT, or its address. Two model files,
    or two folders of one model each, are compared with each other, as are a model and an adapter of it.

    --tokens is of embeddings and output heads: by default those of the base weights to the last step, sorted by
    ‖Δw‖/‖w‖, or by --sort; --top so many of each, 20 by default, or --all.
    """
    if tokens is not None:
        if axes or heads or correlate or len(pairs) > 1:
            raise click.UsageError("--axes, --heads, --correlation and several --pairs are not for tables of tokens")
        frame = _tokens(runs, tokens, pairs[0] if pairs else "base", base, modules, tokenizer, shown, work, as_json)
        emit_table(frame, as_json, path)
        return
    if tokenizer is not None:
        raise click.UsageError("--tokenizer is for --tokens and --new-tokens")
    from deltaw.analysis.measures.correlation import correlation
    from deltaw.analysis.runs import table

    if not (correlate or as_json):
        check_sort(shown, COLUMNS)
    kinds, chosen = pairs[0] if len(pairs) == 1 else tuple(pairs) or None, tuple(axes) or AXES[:2]
    opened, bars, known = _opened(runs, base), progress(as_json), modules or None
    frame = table(opened, "changes", pairs=kinds, axes=chosen, heads=heads, modules=known, progress=bars, work=work)
    if correlate:
        frame = correlation(frame, by=["run", "method", "kind", *(["pairs"] if "pairs" in frame else []), "axis"])
        emit_table(frame, as_json, path)
        return
    if path is not None:
        write_table(frame, path)
    every = (shown.every or as_json) and shown.step is None and not shown.last
    there = frame if every else at_step(frame, "step_to", shown.step)
    if shown.every or as_json:
        emit_rows(there, shown, as_json, path)
        return
    columns = {name: told for name, told in COLUMNS.items() if name.rpartition("_")[2] in set(there["axis"])}
    emit_summary(_by_axis(there, list(columns)), columns, shown, _what(opened, there), total=len(frame), path=path)


def _by_axis(frame: "pd.DataFrame", columns: list[str]) -> "pd.DataFrame":
    """Return a row a matrix, with the axes side by side."""
    keys = [name for name in frame.columns if name in (*GROUPS, "step_from", "step_to")]
    found = frame.pivot(index=keys, columns="axis", values=["delta_m", "delta_d"])
    found.columns = found.columns.map("_".join)
    ordered = frame[keys].drop_duplicates()  # a pivot sorts: runs by name, and layer 10 before layer 2
    return ordered.merge(found.reindex(columns=columns).reset_index(), on=keys, how="left")


def _what(runs: "list[Trajectory]", frame: "pd.DataFrame") -> str:
    """Return between which steps the changes are that a summary is of."""
    starts = {None if str(step) == "<NA>" else int(step) for step in frame["step_from"].unique()}
    known = sorted(step for step in starts if step is not None)
    since = ["W₀"] if None in starts else []
    since += [steps_text(runs, known, before="")] if known else []
    end = steps_text(runs, frame["step_to"].unique(), before=" to ")
    return f"means over matrices of ΔM and ΔD, from {' and '.join(filter(None, since))}{end}"


def _tokens(
    paths: tuple[str, ...],
    which: str,
    pairs: str,
    base: str | None,
    modules: tuple[str, ...],
    tokenizer: str | None,
    shown: Shown,
    work: Work,
    quiet: bool,
) -> "pd.DataFrame":
    """Return the table of the tokens that moved most, or of the new ones."""
    from deltaw.analysis.tables.frame import joined
    from deltaw.analysis.tables.tokens import new_tokens, token_changes

    opened = _opened(paths, base, modules or ("*",))  # embeddings are shown where a pattern names them
    options: dict[str, Any] = {"tokenizer": tokenizer, "modules": modules or None, "work": work}
    options["progress"] = progress(quiet)
    if which == "new":
        frame = new_tokens(opened, "last" if shown.step is None else [shown.step], **options)
        if frame.empty and not quiet:
            remark("no vocabulary has more rows than the base's")
        return frame
    top = None if shown.every else shown.top or 20
    return joined(
        [
            token_changes([run], _ending(run, pairs, shown.step), top=top, by=shown.sort or "relative", **options)
            for run in opened
        ]
    )


def _ending(run: "Trajectory", pairs: str, step: int | None) -> list[tuple[int | None, int]]:
    """Return the pairs that end at a step, or at the last: an embedding is large, and no other is shown."""
    from deltaw.analysis.tables.walk import chosen_pairs, no_stops

    there = chosen_pairs(run, pairs)  # type: ignore[arg-type]
    ends = sorted({end for _, end in there})
    if not ends:
        raise OptionError(no_stops(run))
    if step is not None and step not in ends:
        near = ", ".join(str(end) for end in sorted(ends, key=lambda end: abs(end - step))[:4])
        raise OptionError(f"{run.source.where}: step {step} ends no pair; near it there are {near}")
    return [pair for pair in there if pair[1] == (ends[-1] if step is None else step)]


def _opened(paths: tuple[str, ...], base: str | None, modules: Sequence[str] | None = None) -> "list[Trajectory]":
    """Open the runs; two models, each of one step, are one run from the first to the second."""
    from deltaw.analysis.runs import open_runs
    from deltaw.analysis.trajectory import Trajectory

    given = paths if modules is None else [Trajectory.open(path, base=base, modules=modules) for path in paths]
    runs = open_runs(given, base=base)
    formats = [run.source.format for run in runs if len(run.steps) == 1]
    two = base is None and len(runs) == len(formats) == 2
    pair = two and formats[0] in MODELS and (formats[1] in (*MODELS, "peft") or "adapter" in runs[1].info)
    return [Trajectory.from_pair(*paths, modules=modules)] if pair else runs
