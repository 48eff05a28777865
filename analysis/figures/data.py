"""From run folders, or results of training, to the table that a figure is drawn from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from deltaw.adapters.errors import OptionError, RecordError
from deltaw.adapters.injection import matching
from deltaw.adapters.methods.registry import METHODS
from deltaw.analysis.figures.drawing.rows import spread_out
from deltaw.analysis.measures.change import Axis
from deltaw.analysis.records.results import RESULT, has_result, read_result
from deltaw.analysis.tables import dynamics
from deltaw.analysis.tables.runs import open_runs, table
from deltaw.analysis.tables.tidy import display_name
from deltaw.analysis.trajectory import Trajectory

Paths = Sequence[str | Path | Trajectory]
Side = Literal["right", "left"]


def consecutive(paths: Paths, *, kind: str | None = None, modules: Sequence[str] | None = None) -> pd.DataFrame:
    """Return ΔM and ΔD from step to step."""
    return _changes(paths, "consecutive", kind, modules)


def initial(paths: Paths, *, kind: str | None = None, modules: Sequence[str] | None = None) -> pd.DataFrame:
    """Return ΔM and ΔD since the first recorded step."""
    return _changes(paths, "initial", kind, modules)


def since(
    paths: Paths,
    *,
    kind: str | None = None,
    modules: Sequence[str] | None = None,
    pairs: Literal["base", "initial"] = "base",
) -> pd.DataFrame:
    """Return ΔM and ΔD since the base weights, or since the first recorded step."""
    return _changes(paths, pairs, kind, modules)


def last_base(paths: Paths, *, modules: Sequence[str] | None = None) -> pd.DataFrame:
    """Return ΔM and ΔD since the base weights at each run's last step."""
    runs = _moved(paths)
    ends: list[Any] = [[(None, run.steps[-1])] for run in runs]  # None: the base
    frames = [run.changes(end, modules=modules, progress=True) for run, end in zip(runs, ends, strict=True)]
    return pd.concat(frames, ignore_index=True)


def last_spectra(paths: Paths, *, modules: Sequence[str] | None = None) -> pd.DataFrame:
    """Return ranks at each run's last step, with Dual LoRA's groups."""
    return table(open_runs(paths), "spectra", steps="last", modules=modules, progress=True)


def spectra(
    paths: Paths, *, kind: str | None = None, modules: Sequence[str] | None = None, at_most: int = 40
) -> pd.DataFrame:
    """Return ranks over training."""
    frames = [
        run.spectra(_steps(run, at_most), modules=_modules(run, kind, modules), progress=True) for run in _moved(paths)
    ]
    return pd.concat(frames, ignore_index=True)


def singular_values(
    paths: Paths, *, kind: str | None = None, modules: Sequence[str] | None = None, at_most: int = 40
) -> pd.DataFrame:
    """Return the singular values of ΔW over training."""
    return _over_training(paths, dynamics.singular_values, kind, modules, at_most)


def amplification(
    paths: Paths, *, kind: str | None = None, modules: Sequence[str] | None = None, at_most: int = 40, rank: int = 4
) -> pd.DataFrame:
    """Return amplification factors over training."""
    return _over_training(paths, dynamics.amplification_table, kind, modules, at_most, ranks=(rank,))


def intruders(
    paths: Paths, *, kind: str | None = None, modules: Sequence[str] | None = None, at_most: int = 40, k: int = 10
) -> pd.DataFrame:
    """Return intruder dimensions over training."""
    return _over_training(paths, dynamics.intruder_table, kind, modules, at_most, k=k)


def similarity(
    paths: Paths, *, kind: str | None = None, modules: Sequence[str] | None = None, at_most: int = 40
) -> pd.DataFrame:
    """Return weight similarity over training."""
    return _over_training(paths, dynamics.similarity_table, kind, modules, at_most)


def vectors(
    paths: Paths,
    *,
    kind: str | None = None,
    modules: Sequence[str] | None = None,
    axis: Axis = "column",
    quantile: float = 0.5,
    at_most: int = 40,
) -> pd.DataFrame:
    """Return the quantiles of ΔM and ΔD over the vectors since the base weights, over training."""
    quantiles = sorted({*dynamics.QUANTILES, quantile})
    frames = []
    for run in _moved(paths):
        pairs = [(None, step) for step in _steps(run, at_most)]
        chosen = _modules(run, kind, modules)
        frames.append(
            dynamics.vector_changes([run], pairs, (axis,), quantiles=quantiles, modules=chosen, progress=True)
        )
    return pd.concat(frames, ignore_index=True)


def overlap(
    paths: Paths,
    *,
    kind: str | None = None,
    modules: Sequence[str] | None = None,
    pair: Sequence[int] = (),
    rank: int = 8,
    side: Side = "right",
) -> pd.DataFrame:
    """Return φ(i, j) of two runs, or of two steps of one run, for i and j up to ``rank``."""
    first, second, at = _pair(paths, pair)
    return dynamics.subspace_overlap(
        first,
        second,
        step_first=at[0],
        step_second=at[1],
        modules=_shared(first, second, kind, modules),
        ranks=range(1, rank + 1),
        side=side,
        progress=True,
    )


def angles(
    paths: Paths,
    *,
    kind: str | None = None,
    modules: Sequence[str] | None = None,
    pair: Sequence[int] = (),
    rank: int = 8,
    side: Side = "right",
) -> pd.DataFrame:
    """Return the principal angles of two runs, or of two steps of one run, between the first ``rank`` directions."""
    first, second, at = _pair(paths, pair)
    return dynamics.subspace_angles(
        first,
        second,
        step_first=at[0],
        step_second=at[1],
        modules=_shared(first, second, kind, modules),
        rank=rank,
        side=side,
        progress=True,
    )


def updates(paths: Paths, *, module: str | None = None, step: int | None = None) -> dict[str, "np.ndarray[Any, Any]"]:
    """Return ΔW of one module by run, at its last step or a given one.

    Arguments:
        module: Its name, or a pattern that fits one; ``None`` for the first query.
        step: ``None`` for each run's last.

    Raises:
        OptionError: No module of a run fits, or several do.
    """
    runs = open_runs(paths)
    titles = [display_name(run.method) for run in runs]
    found = {}
    for run, title in zip(runs, titles, strict=True):
        name = f"{title}\n{run.name}" if titles.count(title) > 1 else title
        found[name] = run.update(_module(run, module), run.steps[-1] if step is None else step).numpy()
    return found


def results(paths: Sequence[str | Path]) -> pd.DataFrame:
    """Return one row a training run, from tables of results and from run folders with their result.json.

    Arguments:
        paths: .csv files as `deltaw reproduce` writes them, run folders, or folders of run folders.

    Returns:
        What was found, with the columns method, rank and direction_rank in any case; empty where there is none.

    Raises:
        RecordError: A path is nothing of the kind; names it.
    """
    frames = []
    for path in map(Path, paths):
        if path.is_file() and path.suffix == ".csv":
            frames.append(_read_csv(path))
        elif has_result(path):
            frames.append(pd.DataFrame([_result(path)]))
        else:
            inside = sorted(path.glob(f"*/{RESULT}"))
            if not inside:
                raise RecordError(f"{path}: is no .csv file of results, and no run folder with {RESULT}")
            frames.append(pd.DataFrame([_result(one.parent) for one in inside]))
    frame = pd.concat(frames, ignore_index=True)
    for column in ("rank", "direction_rank"):
        frame[column] = (
            pd.to_numeric(frame[column]).astype("Int64") if column in frame else pd.array([pd.NA] * len(frame), "Int64")
        )
    # One rank for both groups is r₁ = r₂.
    dual = (frame["method"] == "dual-lora") & frame["direction_rank"].isna()
    return frame.assign(direction_rank=frame["direction_rank"].mask(dual, frame["rank"]))


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        frame = pd.read_csv(path)
    except (ValueError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: is no table ({error})") from None
    if "method" not in frame or not set(frame["method"]) & set(METHODS):
        raise RecordError(f"{path}: has no column method with methods' names; pass results.csv or runs.csv")
    return frame


def _result(folder: Path) -> dict[str, Any]:
    found = read_result(folder)
    if found is None or "options" not in found.settings:
        raise RecordError(f"{folder / RESULT}: is no result of a training run (it has no settings.options)")
    ranks = {name: found.options.get(name) for name in ("rank", "direction_rank")}
    return ranks | {key: value for key, value in found.values.items() if value is not None}


def _changes(paths: Paths, pairs: Any, kind: str | None, modules: Sequence[str] | None) -> pd.DataFrame:
    frames = [run.changes(pairs, modules=_modules(run, kind, modules), progress=True) for run in open_runs(paths)]
    return pd.concat(frames, ignore_index=True)


def _over_training(
    paths: Paths, make: Any, kind: str | None, modules: Sequence[str] | None, at_most: int, **options: Any
) -> pd.DataFrame:
    """Return a table of `deltaw.analysis.tables.dynamics`, run by run, as runs differ in steps and modules."""
    frames: list[pd.DataFrame] = [
        make([run], steps=_steps(run, at_most), modules=_modules(run, kind, modules), progress=True, **options)
        for run in _moved(paths)
    ]
    return pd.concat(frames, ignore_index=True)


def _moved(paths: Paths) -> list[Trajectory]:
    """Open the runs; each must have a step."""
    runs = open_runs(paths)
    for run in runs:
        if not run.steps:
            raise OptionError(f"{run.path}: no step was recorded")
    return runs


def _steps(run: Trajectory, at_most: int) -> list[int]:
    """Return the recorded steps, or so many evenly spread; not step 0, where nothing has moved."""
    moved = [step for step in run.steps if step > 0] or run.steps
    return spread_out(moved, at_most) if at_most > 1 else moved[-1:]


def _modules(run: Trajectory, kind: str | None, patterns: Sequence[str] | None) -> list[str]:
    """Return the modules that fit the patterns, of a kind if there are any of it: the figure names those there are."""
    chosen = run.modules if not patterns else matching(run.modules, list(patterns), "module")
    return [name for name in chosen if kind is None or run.labels(name)["kind"] == kind] or list(chosen)


def _module(run: Trajectory, pattern: str | None) -> str:
    if pattern is None:
        return next((name for name in run.modules if run.labels(name)["kind"] == "query"), run.modules[0])
    found = [pattern] if pattern in run.modules else matching(run.modules, [pattern], "module")
    if len(found) > 1:
        raise OptionError(f"{run.path}: {pattern!r} fits {len(found)} modules, {', '.join(found[:3])}, …; name one")
    return found[0]


def _pair(paths: Paths, steps: Sequence[int]) -> tuple[Trajectory, Trajectory, tuple[int | None, int | None]]:
    """Return two runs, or one twice, and their steps."""
    runs = open_runs(paths)
    if len(runs) > 2 or len(steps) > 2:
        raise OptionError(
            f"two updates are compared, and there are {len(runs)} runs and {len(steps)} steps; "
            "pass two runs, or one run and two steps"
        )
    if len(runs) == 1 and len(steps) != 2:
        raise OptionError(f"{runs[0].path}: is one run; pass a second one, or two of its steps with --step")
    return runs[0], runs[-1], (steps[0], steps[-1]) if steps else (None, None)


def _shared(
    first: Trajectory, second: Trajectory, kind: str | None, patterns: Sequence[str] | None
) -> list[str] | None:
    """Return the modules of the first run that the second has as well; ``None`` where there is none, an error later."""
    return [name for name in _modules(first, kind, patterns) if name in set(second.modules)] or None
