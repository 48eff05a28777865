"""``deltaw compare``: two runs, models or adapters on one screen, or several against each other."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deltaw.analysis.tables.work import Work
from deltaw.cli.commands import Command
from deltaw.cli.options import base_option, json_option, modules_option, out_option, work_options
from deltaw.cli.output import emit, emit_table, progress, write_table
from deltaw.cli.summary import fitted

if TYPE_CHECKING:
    import pandas as pd

MATRICES = 10  # that differ most
SETTINGS = 12  # lines of what differs in options
NAMES = 3  # of modules that only one has
COLUMNS = {
    "difference": "relative: ‖ΔW₁ − ΔW₂‖ over the mean of the two norms, from 0 to 2",
    "‖ΔW₁‖, ‖ΔW₂‖": "Frobenius norms of the updates",
    "cosine": "of the two updates as vectors; unrelated ones have 0 ± 1/√(out·in), the column beside it",
    "ΔM, ΔD": "row and column, from the first's weights to the second's",
    "rank": "of the two updates",
    "overlap": "φ(k, k) of the k leading right directions, 1 where they span the same; k/in by chance",
    "angle": "the smallest principal angle between these, in degrees; beside it by chance",
}

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
    explain: bool,
    path: Path | None,
    as_json: bool,
    work: Work,
) -> None:
    """Print how two runs, models or adapters differ, on one screen; or how far several agree, runs by runs.

    Of two: options and modules, and the ten matrices that differ most: the changes from one's weights to the other's,
    the norms and ranks of the two updates, how parallel they are, and what their leading directions share, beside
    chance. The file given by -o and --json hold every matrix.

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

    if points is not None:
        _between(runs, steps, points, modules, base, path, as_json, work)
        return
    if len(runs) != 2:
        _several(runs, steps, rank, modules, base, explain, path, as_json, work)
        return
    first, second = runs
    if len(steps) > 2:
        raise click.UsageError(f"--step is given {len(steps)} times; name one step of each")
    at = dict(zip(("step_first", "step_second"), (*steps, *steps) if len(steps) == 1 else steps, strict=False))
    given: dict[str, Any] = {"base": base, "modules": modules or None, "rank": rank, "work": work, **at}
    frame = compare(first, second, progress=progress(as_json), **given)
    if path is not None:
        write_table(frame, path)
    if as_json:
        emit_table(frame, True, None)
        return
    emit("\n\n".join(_parts(frame, first, second)))
    if explain:
        emit("\n" + "\n".join(f"{name}: {meaning}" for name, meaning in COLUMNS.items()))
    end = f"{path} has" if path is not None else "-o FILE writes"
    emit(f"\n{end} all {len(frame)} matrices and columns; --explain says what these are")


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


def _parts(frame: "pd.DataFrame", first: str, second: str) -> list[str]:
    """What differs of the two, and of their matrices."""
    from deltaw.analysis.tables.whole_model import whole_cosine

    parts = []
    differ = frame.attrs["settings"]
    if differ:
        rows = [{"": name, Path(first).name: one, f"{Path(second).name} ": two} for name, one, two in differ[:SETTINGS]]
        more = f"\n… and {len(differ) - SETTINGS} more" if len(differ) > SETTINGS else ""
        parts.append(fitted(rows) + more)
    for which, path in (("only_first", first), ("only_second", second)):
        if names := frame.attrs[which]:
            more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
            parts.append(f"only in {path}: {', '.join(names[:NAMES])}{more}")
    most = frame.sort_values("relative", ascending=False, na_position="last", kind="stable").head(MATRICES)
    several = f"the {len(most)} that differ most, " if len(most) < len(frame) else ""
    steps = f"step {frame['step_first'].iloc[0]} against step {frame['step_second'].iloc[0]}"
    parts.append(f"{several}of {len(frame)} matrices in both, {steps}\n{fitted([_row(row) for row in _records(most)])}")
    names = {"cosine": "cosine", "relative": "difference", "delta_m_row": "ΔM of rows", "delta_d_row": "ΔD of rows"}
    means = frame[list(names)].mean().dropna()
    if len(means):
        parts.append("mean over all: " + ", ".join(f"{names[name]} {value:.3g}" for name, value in means.items()))
    whole = whole_cosine(frame)
    if whole["cosine"] == whole["cosine"]:
        parts.append(
            f"all updates as one vector: cosine {whole['cosine']:.3g} ± {whole['cosine_chance']:.1g} by chance"
        )
    return parts


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
                row[other] = "" if i == j else f"{sign}{_number(shown)}"
            rows.append(row)
        parts.append(fitted(rows))
    return parts


def _records(frame: "pd.DataFrame") -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _row(row: dict[str, Any]) -> dict[str, Any]:
    """A matrix as a line that fits a terminal: numbers that belong together share a column."""
    line = {"module": row["module"], "difference": row["relative"]}
    line |= {"‖ΔW₁‖, ‖ΔW₂‖": _both(row["norm_first"], row["norm_second"])}
    line |= {"cosine": f"{_number(row['cosine'])} ± {row['cosine_chance']:.1g}"}
    line |= {f"Δ{name.upper()}": _both(row[f"delta_{name}_row"], row[f"delta_{name}_column"]) for name in ("m", "d")}
    if "rank_first" in row:
        line |= {"rank": _both(row["rank_first"], row["rank_second"])}
        line |= {"overlap": f"{_number(row['overlap_right'])} ({_number(row['overlap_chance_right'])})"}
        line |= {"angle": f"{_number(row['angle_right'])}° ({_number(row['angle_chance_right'])}°)"}
    return line


def _both(first: float, second: float) -> str:
    return f"{_number(first)}, {_number(second)}"


def _number(value: float) -> str:
    return "–" if value != value else f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"  # noqa: PLR0124 - NaN
