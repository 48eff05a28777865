"""``deltaw compare``: two runs, models or adapters on one screen, or several against each other."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deltaw.analysis.tables.work import Work
from deltaw.cli.commands import Command
from deltaw.cli.layout import fitted
from deltaw.cli.options import base_option, json_option, modules_option, out_option, work_options
from deltaw.cli.output import emit, emit_table, progress, write_table
from deltaw.cli.screen import EXPLAINED, number, screen, titles

if TYPE_CHECKING:
    import pandas as pd

    from deltaw.analysis.trajectory import Trajectory

NAMES = 3  # of modules that are not in all runs

LINE = {"frobenius": "‖ΔW‖", "spectral": "σ₁", "stable_rank": "stable rank", "effective_rank": "effective rank"}

SQUARES = {  # of several runs: the title, and what it is
    "cosine": ("cosine", "of all updates as one vector; by chance its standard deviation about 0"),
    "sign_agreement": ("same sign", "the share of entries whose updates have the same sign, zeros among them"),
    "jaccard": ("visible", "of the weights whose bfloat16 value changed in either run, the share that changed in both"),
}
CHANCE = {"cosine": "cosine_chance", "sign_agreement": "sign_expected", "jaccard": "jaccard_expected"}


@click.command("compare", cls=Command)
@click.argument("runs", nargs=-1, required=True, type=click.Path())
@click.option("--step", "steps", multiple=True, type=int, help="Of all; given twice, of each of two. Default: last.")
@click.option(
    "--rank", type=click.IntRange(min=0), default=8, show_default=True, help="Leading directions; 0 leaves them out."
)
@click.option(
    "--between",
    "points",
    type=click.IntRange(min=2),
    metavar="POINTS",
    help="Of two: norms and ranks of ΔW at so many points of the straight line between their weights, ends included.",
)
@modules_option
@base_option
@click.option("--all", "every", is_flag=True, help="Of two: every matrix and option, not those that differ most.")
@click.option("--explain", is_flag=True, help="Say what the columns are.")
@out_option
@work_options
@json_option
def command(
    runs: tuple[str, ...],
    steps: tuple[int, ...],
    rank: int,
    points: int | None,
    modules: tuple[str, ...],
    base: str | None,
    every: bool,
    explain: bool,
    path: Path | None,
    as_json: bool,
    work: Work,
) -> None:
    """Print how two runs, models or adapters differ, on one screen; or how far several agree, runs by runs.

    Of two: options and modules, and the ten matrices that differ most: the changes from one's weights to the other's,
    the norms and ranks of the two updates, how parallel they are, and what their leading directions share, beside
    chance. A wide terminal shows more columns. The file given by -o and --json hold every matrix and column.

    Of three or more: squares of the cosine of their updates, of the signs and of the weights that visibly changed in
    bfloat16, over all matrices that they have in common, with what chance gives above the diagonal.

    \b
    Example:
      deltaw compare runs/lora runs/bora
      deltaw compare runs/ft runs/lora runs/dora runs/bora -o agreement.csv
      deltaw compare adapter-a adapter-b --base meta-llama/Llama-3.2-1B -o differences.csv
      deltaw compare runs/bora runs/bora --step 100 --step 2000
      deltaw compare runs/lora runs/bora --between 5
    """
    from deltaw.analysis.runs import compare
    from deltaw.analysis.trajectory import Trajectory

    if points is not None:
        _between(runs, steps, points, modules, base, path, as_json, work)
        return
    if len(runs) != 2:
        _several(runs, steps, rank, modules, base, explain, path, as_json, work)
        return
    if len(steps) > 2:
        raise click.UsageError(f"--step is given {len(steps)} times; name one step of each")
    at = dict(zip(("step_first", "step_second"), (*steps, *steps) if len(steps) == 1 else steps, strict=False))
    given: dict[str, Any] = {"modules": modules or None, "rank": rank, "work": work, **at}
    first, second = (Trajectory.open(run, base=base) for run in runs)
    frame = compare(first, second, progress=progress(as_json), **given)
    if path is not None:
        write_table(frame, path)
    if as_json:
        emit_table(frame, True, None)
        return
    end = f"{path} has" if path is not None else "-o FILE writes"
    end += f" all {len(frame)} matrices and columns" + ("" if every else "; --all shows them")
    end += "" if explain else "; --explain says what the columns are"
    told = [f"{name}: {meaning}" for name, meaning in EXPLAINED.items()] if explain else []
    names, closing = titles(frame, (runs[0], runs[1])), [*told, end]
    emit("\n".join(screen(frame, names, _named_base(first, second), every=every, closing=closing)))


def _named_base(*runs: "Trajectory") -> str | None:
    """What PEFT's configuration says that the base is; its words, so nothing is opened there unasked."""
    names = (dict(run.info.get("peft") or {}).get("base_model_name_or_path") for run in runs)
    return next((name for name in names if isinstance(name, str) and name), None)


def _between(
    runs: tuple[str, ...],
    steps: tuple[int, ...],
    points: int,
    modules: tuple[str, ...],
    base: str | None,
    path: Path | None,
    as_json: bool,
    work: Work,
) -> None:
    """Print the update's norms and ranks along the straight line between two runs."""
    from deltaw.analysis.interpolation import interpolation_table

    if len(runs) != 2:
        raise click.UsageError(f"--between takes two runs, and {len(runs)} are given; name two")
    if len(steps) > 1:
        raise click.UsageError(f"--step is given {len(steps)} times with --between; name one step of both")
    if work.elsewhere or work.device != "cpu":
        raise click.UsageError("--between measures in this process, on the CPU; leave out what says where to compute")
    ts = [place / (points - 1) for place in range(points)]
    frame = interpolation_table(*runs, ts, steps=steps or "last", modules=modules or None, base=base)
    if path is not None:
        write_table(frame, path)
    if as_json:
        emit_table(frame, True, None)
        return
    means = frame.groupby("t")[list(LINE)].mean()
    rows = [
        {"t": f"{t:.3g}"} | {LINE[name]: row[name] for name in LINE} for t, row in zip(ts, _records(means), strict=True)
    ]
    emit(f"from {runs[0]} (t = 0) to {runs[1]} (t = 1): means over {frame['module'].nunique()} matrices in both")
    emit(fitted(rows))
    end = f"{path} has" if path is not None else "-o FILE writes"
    emit(
        f"\n{end} every matrix, {len(frame)} rows; at t = ½, updates that have nothing in common are 0.71 of their size"
    )


def _several(
    runs: tuple[str, ...],
    steps: tuple[int, ...],
    rank: int,
    modules: tuple[str, ...],
    base: str | None,
    explain: bool,
    path: Path | None,
    as_json: bool,
    work: Work,
) -> None:
    """Print how far several runs agree."""
    from deltaw.analysis.runs import open_runs
    from deltaw.analysis.tables.agreement import update_agreement

    if len(runs) < 2:
        raise click.UsageError("one run is given; name two or more to compare")
    if len(steps) > 1:
        raise click.UsageError(f"--step is given {len(steps)} times for {len(runs)} runs; name one step of all")
    opened = open_runs(runs, base=base)
    given: dict[str, Any] = {"modules": modules or None, "k": rank, "work": work, "steps": steps or "last"}
    frame = update_agreement(opened, progress=progress(as_json), **given)
    if path is not None:
        write_table(frame, path)
    if as_json:
        emit_table(frame, True, None)
        return
    emit("\n\n".join(_squares(frame, [run.name for run in opened])))
    if explain:
        emit("\n" + "\n".join(f"{name}: {meaning}" for name, meaning in SQUARES.values()))
    end = f"{path} has" if path is not None else "-o FILE writes"
    emit(f"\n{end} every matrix and column of all {len(frame)} rows; --explain says what is shown")


def _squares(frame: "pd.DataFrame", names: list[str]) -> list[str]:
    """The squares of runs by runs: measured below the diagonal, chance above it."""
    from deltaw.analysis.tables.whole_model import agreement_matrix, model_agreement

    whole = model_agreement(frame)
    parts = []
    if missing := frame.attrs.get("not_common", []):
        more = f" and {len(missing) - NAMES} more" if len(missing) > NAMES else ""
        parts.append(f"not in all runs, and left out: {', '.join(missing[:NAMES])}{more}")
    steps = sorted({int(step) for name in ("step_first", "step_second") for step in frame[name]})
    at = f"step {steps[0]}" if len(steps) == 1 else f"their last steps, {steps[0]} to {steps[-1]}"
    parts.append(f"{frame['module'].nunique()} matrices at {at}; below the diagonal measured, above it by chance")
    for measure, (title, _) in SQUARES.items():
        values, chance = (agreement_matrix(whole, name).to_numpy() for name in (measure, CHANCE[measure]))
        rows = []
        for i, name in enumerate(names):
            row = {title: name}
            for j, other in enumerate(names):
                shown = float(values[i, j] if i > j else chance[i, j])
                sign = "±" if i < j and measure == "cosine" else ""
                row[other] = "" if i == j else f"{sign}{number(shown)}"
            rows.append(row)
        parts.append(fitted(rows))
    return parts


def _records(frame: "pd.DataFrame") -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]
