"""From paths of runs to the table that a figure is drawn from: the modules, the steps and the table of `tables`."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from deltaw.adapters.errors import OptionError
from deltaw.adapters.patterns import matching
from deltaw.analysis.measures.change import AXES, Axis
from deltaw.analysis.measures.subspace import Side
from deltaw.analysis.runs import Paths, open_runs, table
from deltaw.analysis.tables.agreement import update_agreement
from deltaw.analysis.tables.amplification import amplification_table
from deltaw.analysis.tables.blocks import Heads
from deltaw.analysis.tables.changes import changes_table
from deltaw.analysis.tables.frame import joined, notes_of
from deltaw.analysis.tables.geometry import geometry_table
from deltaw.analysis.tables.growth import spectral_growth
from deltaw.analysis.tables.heads import head_changes
from deltaw.analysis.tables.intruders import intruder_table
from deltaw.analysis.tables.model_blocks import block_table
from deltaw.analysis.tables.run import Step
from deltaw.analysis.tables.similarity import similarity_table
from deltaw.analysis.tables.singular_values import singular_values as values_table
from deltaw.analysis.tables.spacing import spacing, told
from deltaw.analysis.tables.spectra import spectra_table
from deltaw.analysis.tables.subspaces import subspace_angles, subspace_overlap
from deltaw.analysis.tables.tidy import display_name
from deltaw.analysis.tables.vectors import QUANTILES, vector_changes
from deltaw.analysis.tables.walk import modules_of_kind, moved_steps
from deltaw.analysis.tables.work import HERE, Work
from deltaw.analysis.trajectory import Trajectory

Kind = str | None
Names = Sequence[str] | None


def consecutive(
    paths: Paths,
    *,
    kind: str | None = None,
    modules: Sequence[str] | None = None,
    axis: Axis | None = None,
    work: Work | None = None,
) -> pd.DataFrame:
    """Return ΔM and ΔD from step to step."""
    return _changes(paths, "consecutive", kind, modules, work, axis)


def initial(
    paths: Paths,
    *,
    kind: str | None = None,
    modules: Sequence[str] | None = None,
    axis: Axis | None = None,
    work: Work | None = None,
) -> pd.DataFrame:
    """Return ΔM and ΔD since the first recorded step."""
    return _changes(paths, "initial", kind, modules, work, axis)


def since(
    paths: Paths,
    *,
    kind: str | None = None,
    modules: Sequence[str] | None = None,
    pairs: Literal["base", "initial"] = "base",
    axis: Axis | None = None,
    work: Work | None = None,
) -> pd.DataFrame:
    """Return ΔM and ΔD since the base weights, or since the first recorded step."""
    return _changes(paths, pairs, kind, modules, work, axis)


def last_base(paths: Paths, *, modules: Sequence[str] | None = None, work: Work | None = None) -> pd.DataFrame:
    """Return ΔM and ΔD since the base weights at each run's last step."""
    runs = _moved(paths)
    options: dict[str, Any] = {"modules": modules, "progress": True, "work": work or HERE}
    return told(joined([changes_table([run], _from_base(run.steps[-1:]), **options) for run in runs]), runs)


def last_spectra(paths: Paths, *, modules: Sequence[str] | None = None, work: Work | None = None) -> pd.DataFrame:
    """Return ranks at each run's last step, with Dual LoRA's groups."""
    runs = open_runs(paths)
    return told(table(runs, "spectra", steps="last", modules=modules, progress=True, work=work or HERE), runs)


def spectra(
    paths: Paths, *, kind: Kind = None, modules: Names = None, at_most: int = 40, work: Work | None = None
) -> pd.DataFrame:
    """Return ranks over training."""
    return _over_training(paths, spectra_table, kind, modules, at_most, work)


def singular_values(
    paths: Paths, *, kind: Kind = None, modules: Names = None, at_most: int = 40, work: Work | None = None
) -> pd.DataFrame:
    """Return the singular values of ΔW over training."""
    return _over_training(paths, values_table, kind, modules, at_most, work)


def growth(
    paths: Paths, *, kind: Kind = None, modules: Names = None, at_most: int = 40, work: Work | None = None
) -> pd.DataFrame:
    """Return how the spectrum of ΔW grows over training."""
    return _over_training(paths, spectral_growth, kind, modules, at_most, work)


def agreement(
    paths: Paths, *, kind: str | None = None, modules: Sequence[str] | None = None, work: Work | None = None
) -> pd.DataFrame:
    """Return how far the updates of every two runs agree, at each run's last step."""
    runs = _moved(paths)
    having = [set(run.modules) for run in runs]
    chosen = [name for name in modules_of_kind(runs[0], kind, modules) if all(name in names for names in having)]
    frame = update_agreement(runs, modules=chosen or None, k=0, progress=True, work=work or HERE)
    return told(frame, runs)


def amplification(
    paths: Paths,
    *,
    kind: Kind = None,
    modules: Names = None,
    at_most: int = 40,
    rank: int = 4,
    work: Work | None = None,
) -> pd.DataFrame:
    """Return amplification factors over training."""
    return _over_training(paths, amplification_table, kind, modules, at_most, work, ranks=(rank,))


def intruders(
    paths: Paths, *, kind: Kind = None, modules: Names = None, at_most: int = 40, k: int = 10, work: Work | None = None
) -> pd.DataFrame:
    """Return intruder dimensions over training."""
    return _over_training(paths, intruder_table, kind, modules, at_most, work, k=k)


def similarity(
    paths: Paths, *, kind: Kind = None, modules: Names = None, at_most: int = 40, work: Work | None = None
) -> pd.DataFrame:
    """Return weight similarity over training."""
    return _over_training(paths, similarity_table, kind, modules, at_most, work)


def rotation(
    paths: Paths, *, kind: Kind = None, modules: Names = None, at_most: int = 40, k: int = 16, work: Work | None = None
) -> pd.DataFrame:
    """Return the rotation of W₀'s leading subspaces over training."""
    return _over_training(paths, geometry_table, kind, modules, at_most, work, k=k, measures=("rotation",))


def off_principal(
    paths: Paths, *, kind: Kind = None, modules: Names = None, at_most: int = 40, k: int = 16, work: Work | None = None
) -> pd.DataFrame:
    """Return the off-principal share over training."""
    return _over_training(paths, geometry_table, kind, modules, at_most, work, k=k, measures=("off_principal",))


def visible(
    paths: Paths,
    *,
    kind: Kind = None,
    modules: Names = None,
    at_most: int = 40,
    rule: str = "bfloat16",
    work: Work | None = None,
) -> pd.DataFrame:
    """Return the share of visible changes over training."""
    return _over_training(paths, geometry_table, kind, modules, at_most, work, measures=("visible",), visible=(rule,))


def vectors(
    paths: Paths,
    *,
    kind: str | None = None,
    modules: Sequence[str] | None = None,
    axis: Axis = "column",
    quantile: float = 0.5,
    at_most: int = 40,
    work: Work | None = None,
) -> pd.DataFrame:
    """Return the quantiles of ΔM and ΔD over the vectors since the base weights, over training."""
    quantiles = sorted({*QUANTILES, quantile})
    frames, runs = [], _moved(paths)
    for run in runs:
        pairs, chosen = _from_base(moved_steps(run, at_most)), modules_of_kind(run, kind, modules)
        options: dict[str, Any] = {"modules": chosen, "progress": True, "work": work or HERE}
        frames.append(vector_changes([run], pairs, (axis,), quantiles=quantiles, **options))
    return told(joined(frames), runs)


def heads(
    paths: Paths,
    *,
    kind: str | None = None,
    modules: Sequence[str] | None = None,
    step: int | None = None,
    heads: Heads = None,
    work: Work | None = None,
) -> pd.DataFrame:
    """Return ΔM and ΔD of every attention head since the base weights, at each run's last step or a given one."""
    frames, runs = [], _moved(paths)
    for run in runs:
        chosen = modules_of_kind(run, kind, modules)
        options: dict[str, Any] = {"modules": chosen, "progress": True, "work": work or HERE}
        frames.append(head_changes([run], [(None, run.steps[-1] if step is None else step)], heads=heads, **options))
    found = joined(frames)
    if found.empty:
        raise OptionError("; ".join(notes_of(found, "no_rows")))
    return told(found, runs)


def blocks(
    paths: Paths, *, modules: Sequence[str] | None = None, axis: Axis = "column", work: Work | None = None
) -> pd.DataFrame:
    """Return ‖ΔW‖, ‖W₀‖, ΔM and ΔD of every matrix at each run's last step, with its block."""
    runs = _moved(paths)
    options: dict[str, Any] = {"modules": modules, "progress": True, "work": work or HERE}
    return told(joined([block_table([run], axis=axis, **options) for run in runs]), runs)


def overlap(
    paths: Paths,
    *,
    kind: str | None = None,
    modules: Sequence[str] | None = None,
    pair: Sequence[int] = (),
    rank: int = 8,
    side: Side = "right",
    work: Work | None = None,
) -> pd.DataFrame:
    """Return φ(i, j) of two runs, or of two steps of one run, for i and j up to ``rank``."""
    first, second, at = _pair(paths, pair)
    frame = subspace_overlap(
        first,
        second,
        step_first=at[0],
        step_second=at[1],
        modules=_shared(first, second, kind, modules),
        ranks=range(1, rank + 1),
        side=side,
        progress=True,
        work=work or HERE,
    )
    return told(frame, [first, second])


def angles(
    paths: Paths,
    *,
    kind: str | None = None,
    modules: Sequence[str] | None = None,
    pair: Sequence[int] = (),
    rank: int = 8,
    side: Side = "right",
    work: Work | None = None,
) -> pd.DataFrame:
    """Return the principal angles of two runs, or of two steps of one run, between the first ``rank`` directions."""
    first, second, at = _pair(paths, pair)
    frame = subspace_angles(
        first,
        second,
        step_first=at[0],
        step_second=at[1],
        modules=_shared(first, second, kind, modules),
        rank=rank,
        side=side,
        progress=True,
        work=work or HERE,
    )
    return told(frame, [first, second])


class Updates(dict[str, "np.ndarray[Any, Any]"]):
    """Updates ΔW (out, in) by title, and what they are of.

    Arguments:
        modules, steps: Of each.
        spacing: That of the checkpoints, see `deltaw.analysis.tables.spacing.spacing`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.modules: list[str] = []
        self.steps: list[int] = []
        self.spacing = ""


def updates(paths: Paths, *, module: str | None = None, step: int | None = None) -> Updates:
    """Return ΔW of one module by run, at its last step or a given one.

    Arguments:
        module: Its name, or a pattern that fits one; ``None`` for the first query.
        step: ``None`` for each run's last.

    Raises:
        OptionError: No module of a run fits, or several do.
    """
    runs = open_runs(paths)
    titles = [display_name(run.method) for run in runs]
    found = Updates()
    found.spacing = spacing([run.steps for run in runs])
    for run, title in zip(runs, titles, strict=True):
        name = f"{title}\n{run.name}" if titles.count(title) > 1 else title
        one, at = _module(run, module), run.steps[-1] if step is None else step
        found[name] = run.update(one, at).numpy()
        found.modules.append(one)
        found.steps.append(at)
    return found


def _changes(
    paths: Paths,
    pairs: Any,
    kind: str | None,
    modules: Sequence[str] | None,
    work: Work | None,
    axis: Axis | None = None,
) -> pd.DataFrame:
    runs, axes = open_runs(paths), AXES if axis is None or axis in AXES else (axis,)
    if pairs in ("consecutive", "initial") and all(len(run.steps) < 2 for run in runs):
        raise OptionError(
            f"{runs[0].path}: has {len(runs[0].steps)} recorded step, and this figure compares two; choose one of"
            " changes since the base weights: layers, cloud, blocks, heads"
        )
    options: dict[str, Any] = {"progress": True, "work": work or HERE}
    frames = [changes_table([run], pairs, axes, modules=modules_of_kind(run, kind, modules), **options) for run in runs]
    return told(joined(frames), runs)


def _from_base(steps: Sequence[int]) -> list[tuple[Step, int]]:
    return [(None, step) for step in steps]


def _over_training(
    paths: Paths,
    make: Callable[..., pd.DataFrame],
    kind: str | None,
    modules: Sequence[str] | None,
    at_most: int,
    work: Work | None,
    **options: Any,
) -> pd.DataFrame:
    """Return a table over the steps where something has moved, run by run, as runs differ in steps and modules."""
    frames, runs = [], _moved(paths)
    for run in runs:
        steps, chosen = moved_steps(run, at_most), modules_of_kind(run, kind, modules)
        frames.append(make([run], steps=steps, modules=chosen, progress=True, work=work or HERE, **options))
    return told(joined(frames), runs)


def _moved(paths: Paths) -> list[Trajectory]:
    """Open the runs; each must have a step."""
    runs = open_runs(paths)
    for run in runs:
        if not run.steps:
            raise OptionError(f"{run.path}: no step was recorded")
    return runs


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
    return [name for name in modules_of_kind(first, kind, patterns) if name in set(second.modules)] or None
