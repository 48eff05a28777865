"""Tidy tables over recorded runs: the measures that look at singular vectors, at whole weights, at single vectors."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from deltaw.adapters.errors import NonFiniteError, OptionError, ShapeError
from deltaw.analysis.measures.amplification import Amplification, amplification
from deltaw.analysis.measures.change import AXES, Axis, changes
from deltaw.analysis.measures.intruders import intruders
from deltaw.analysis.measures.similarity import Examples, dissimilarity
from deltaw.analysis.measures.spectrum import spectrum
from deltaw.analysis.measures.subspace import SIDES, Directions, Side, directions, overlap, principal_angles
from deltaw.analysis.trajectory import Pairs, Trajectory, chosen_modules

Steps = Sequence[int] | Literal["last"] | None

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_LABELS = ["run", "method", "module", "layer", "kind"]
_WHOLE = ["layer", "step", "step_from", "step_to", "step_first", "step_second", "step_other"]  # may be missing


def singular_values(
    runs: Sequence[Trajectory],
    *,
    steps: Steps = None,
    modules: Sequence[str] | None = None,
    top: int | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Return the singular values of ΔW of every module at every step: its spectrum over training.

    From factors where the method has them, else by a float64 SVD of ΔW.

    Arguments:
        runs: Opened runs.
        steps: These steps, "last" for each run's last, ``None`` for all.
        modules: Glob patterns over the recorded modules; ``None`` for all.
        top: How many, largest first; ``None`` for all there are, that is min(out, in), or min(out, in, r) from factors.
        progress: Show a progress bar.

    Returns:
        One row each: run, method, module, layer, kind, step, index (from 1), singular_value, share (σ²/Σσ², of all of
        them; 0 where there is no update), tolerance (the σ up to which one counts as zero).

    Raises:
        OptionError: No run, no such step, or ``top`` below 1.
        NonFiniteError: A weight holds NaN or infinity; names module and step.

    Example:
        >>> import tempfile
        >>> from deltaw.adapters import LoRA, inject
        >>> from deltaw.trainers import Recorder
        >>> model = inject(torch.nn.Sequential(torch.nn.Linear(6, 4)), LoRA(rank=2), targets=["0"])
        >>> folder = tempfile.mkdtemp()
        >>> with Recorder(model, folder) as recorder:
        ...     recorder.step(0)
        >>> singular_values([Trajectory.open(folder)])[["module", "step", "index", "singular_value"]].values.tolist()
        [['0', 0, 1, 0.0], ['0', 0, 2, 0.0]]
    """
    if top is not None and (isinstance(top, bool) or not isinstance(top, int) or top < 1):
        raise OptionError(f"top is {top!r}; choose a whole number of at least 1, or None for all")
    blocks = []
    for run, module, step in _walk(runs, modules, steps, "singular values", progress):
        with _located(run, module, f"at step {step}"):
            found = spectrum(**_update(run, module, step))
        values = found.singular_values
        relative = (values / (found.spectral or 1.0)).square()
        share = relative / (relative.sum() if found.spectral > 0 else 1.0)
        wanted = slice(top)
        blocks.append(
            run.labels(module)
            | {"step": step, "index": np.arange(1, len(values[wanted]) + 1)}
            | {"singular_value": values[wanted].numpy(), "share": share[wanted].numpy(), "tolerance": found.tolerance}
        )
    return _frame(blocks, [*_LABELS, "step", "index", "singular_value", "share", "tolerance"])


def subspace_overlap(
    first: Trajectory,
    second: Trajectory,
    *,
    step_first: int | None = None,
    step_second: int | None = None,
    modules: Sequence[str] | None = None,
    ranks: Sequence[int] = range(1, 9),
    ranks_second: Sequence[int] | None = None,
    side: Side = "right",
    progress: bool = False,
) -> pd.DataFrame:
    """Return φ(i, j) of the updates of two runs, or of two steps of one run, for every module that both have.

    Arguments:
        first, second: Opened runs; the same one for two of its steps.
        step_first, step_second: The steps; ``None`` for the last.
        modules: Glob patterns over the modules of both; ``None`` for all.
        ranks: The numbers i of directions of the first.
        ranks_second: The numbers j of the second; ``None`` for ``ranks``.
        side: "right" for directions in the input space, as in LoRA's figures, "left" for the output space.
        progress: Show a progress bar.

    Returns:
        One row each: run_first, run_second, step_first, step_second, module, layer, kind, side, i, j, overlap,
        expected (what random directions have on average, max(i, j)/n). The overlap is NaN where an update has fewer
        than i or j directions, as an update of zeros has none.

    Raises:
        OptionError: The runs have no module in common; no such side or step; a rank below 1 or above the matrix' size.
        ShapeError: A module has another shape in the other run.
        NonFiniteError: A weight holds NaN or infinity; names module and step.

    Source:
        Hu et al. 2022 (LoRA), section 7.2, equation 4, figures 3 and 4. See `deltaw.analysis.overlap`.
    """
    seconds = ranks if ranks_second is None else ranks_second
    blocks = []
    for labels, one, two in _both(first, second, step_first, step_second, modules, side, progress):
        i, j = (_ranks(given, found, labels["module"]) for given, found in ((ranks, one), (seconds, two)))
        table = torch.full((max(i), max(j)), torch.nan, dtype=torch.float64)
        a, b = (found.basis(side)[:, : max(wanted)] for found, wanted in ((one, i), (two, j)))
        if a.shape[1] and b.shape[1]:
            table[: a.shape[1], : b.shape[1]] = overlap(a, b)
        rows, columns = (grid.ravel() for grid in np.meshgrid(i, j, indexing="ij"))
        blocks.append(
            labels
            | {"i": rows, "j": columns, "overlap": table.numpy()[rows - 1, columns - 1]}
            | {"expected": np.maximum(rows, columns) / len(a)}
        )
    return _frame(blocks, [*_PAIR, "i", "j", "overlap", "expected"])


def subspace_angles(
    first: Trajectory,
    second: Trajectory,
    *,
    step_first: int | None = None,
    step_second: int | None = None,
    modules: Sequence[str] | None = None,
    rank: int | None = None,
    side: Side = "right",
    progress: bool = False,
) -> pd.DataFrame:
    """Return the principal angles between the directions of two updates, for every module that both runs have.

    Arguments:
        rank: How many directions of each; ``None`` for all that each has.
        first, second, step_first, step_second, modules, side, progress: As in `subspace_overlap`.

    Returns:
        One row each: run_first, run_second, step_first, step_second, module, layer, kind, side, index (from 1),
        angle (radians, in [0, π/2], smallest first). For every module as many as the smaller span has, or ``rank``,
        with NaN for those an update has no directions for. An update without any direction gives one row of NaN.

    Raises:
        As `subspace_overlap`.

    Source:
        Björck, Golub 1973. See `deltaw.analysis.principal_angles`.
    """
    blocks = []
    for labels, one, two in _both(first, second, step_first, step_second, modules, side, progress):
        if rank is not None:
            _ranks([rank], one, labels["module"])
        a, b = (found.basis(side)[:, :rank] for found in (one, two))
        count = min(a.shape[1], b.shape[1])
        angles = np.full(max(count, 1) if rank is None else rank, np.nan)
        if count:
            angles[:count] = principal_angles(a, b).numpy()
        blocks.append(labels | {"index": np.arange(1, len(angles) + 1), "angle": angles})
    return _frame(blocks, [*_PAIR, "index", "angle"])


def amplification_table(
    runs: Sequence[Trajectory],
    *,
    ranks: Sequence[int] = (4,),
    steps: Steps = "last",
    modules: Sequence[str] | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Return LoRA's amplification factor of every module, step and rank, with what it is compared with.

    Arguments:
        runs: Opened runs.
        ranks: The numbers r of directions of ΔW.
        steps, modules, progress: As in `singular_values`.

    Returns:
        One row each: run, method, module, layer, kind, step, rank, directions (how many ΔW has), weight_norm,
        update_norm, share, projected, projected_own, projected_random, amplification; see `Amplification`. The
        numbers are NaN where ΔW has fewer than r directions.

    Raises:
        OptionError: No run, no such step, or a rank below 1 or above the matrix' size.
        NonFiniteError: A weight holds NaN or infinity; names module and step.

    Source:
        Hu et al. 2022 (LoRA), section 7.3, table 7.
    """
    names = ["weight_norm", "update_norm", "share", "projected", "projected_own", "projected_random"]
    rows, at, base, own = [], None, torch.empty(0), torch.empty(0)
    for run, module, step in _walk(runs, modules, steps, "amplification", progress):
        with _located(run, module, f"at step {step}"):
            if at != (run, module):
                base = run.base(module)
                own, at = torch.linalg.svdvals(base.double()), (run, module)
            moved = directions(**_update(run, module, step))
            for rank in _ranks(ranks, moved, module):
                row = run.labels(module) | {"step": step, "rank": int(rank), "directions": moved.count}
                if rank <= moved.count:
                    found: Amplification = amplification(base, moved, int(rank), singular_values=own)
                    row |= {name: getattr(found, name) for name in names} | {"amplification": found.factor}
                else:
                    row |= dict.fromkeys([*names, "amplification"], np.nan)
                rows.append(row)
    return _frame(rows, [*_LABELS, "step", "rank", "directions", *names, "amplification"])


def intruder_table(
    runs: Sequence[Trajectory],
    *,
    k: int = 10,
    epsilon: float = 0.5,
    steps: Steps = "last",
    modules: Sequence[str] | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Return how like W₀'s the top k left singular vectors of W' are, one row a vector.

    Arguments:
        runs: Opened runs.
        k, epsilon: As in `deltaw.analysis.measures.intruders`.
        steps, modules, progress: As in `singular_values`.

    Returns:
        One row each: run, method, module, layer, kind, step, index (from 1), singular_value (of W'), similarity,
        intruder. The number of intruders: ``frame.groupby(["run", "module", "step"])["intruder"].sum()``.

    Raises:
        OptionError: No run, no such step, or ``k`` or ``epsilon`` out of its range.
        NonFiniteError: A weight holds NaN or infinity; names module and step.

    Source:
        Shuttleworth et al. 2024, definition 1 and algorithm 1.
    """
    blocks = []
    at: tuple[Trajectory, str] | None = None
    base: Directions | None = None
    for run, module, step in _walk(runs, modules, steps, "intruder dimensions", progress):
        with _located(run, module, f"at step {step}"):
            if base is None or at != (run, module):
                base, at = directions(run.base(module).double()), (run, module)
            found = intruders(base, run.weight(module, step, torch.float64), k=k, epsilon=epsilon)
        blocks.append(
            run.labels(module)
            | {"step": step, "index": np.arange(1, k + 1), "singular_value": found.singular_values.numpy()}
            | {"similarity": found.similarity.numpy(), "intruder": found.found.numpy()}
        )
    return _frame(blocks, [*_LABELS, "step", "index", "singular_value", "similarity", "intruder"])


def similarity_table(
    runs: Sequence[Trajectory],
    *,
    other: Trajectory | None = None,
    steps: Steps = None,
    modules: Sequence[str] | None = None,
    examples: Examples = "row",
    progress: bool = False,
) -> pd.DataFrame:
    """Return the CKA of W_t with W₀, or with the weights of another run at the same step.

    Arguments:
        runs: Opened runs.
        other: The run to compare with; ``None`` for each run's own W₀.
        steps: As in `singular_values`; with ``other``, ``None`` means the steps that both recorded and "last" the last
            of each.
        modules: Glob patterns over the modules (of both); ``None`` for all.
        examples: As in `deltaw.analysis.measures.similarity`.
        progress: Show a progress bar.

    Returns:
        One row each: run, method, module, layer, kind, step, other ("base" or the run's name), step_other (missing for
        the base), examples, similarity (CKA), dissimilarity (1 − CKA with all its digits). NaN where all examples of
        a matrix are the same.

    Raises:
        OptionError: No run, no such step, or nothing in common with ``other``.
        ShapeError: A module has another number of examples in the other run.
        NonFiniteError: A weight holds NaN or infinity; names module and step.

    Source:
        Kornblith et al. 2019. See `deltaw.analysis.measures.similarity`.
    """
    rows = []
    for run in _some(runs):
        chosen = chosen_modules(run.modules, modules) if other is None else _common(run, other, modules)
        pairs = _steps_of_both(run, other, steps)
        work = [(module, *pair) for module in chosen for pair in pairs]
        base, at = torch.empty(0), None
        for module, step, step_other in tqdm(work, desc=f"similarity of {run.name}", disable=not progress):
            against = "W₀" if other is None else f"{other.source.where} at step {step_other}"
            with _located(run, module, f"at step {step} against {against}"):
                if other is None and at != module:
                    base, at = run.base(module), module
                weight = run.weight(module, step, torch.float64)
                beside = base if other is None else other.weight(module, step_other, torch.float64)
                apart = dissimilarity(weight, beside, examples=examples)
            name = "base" if other is None else other.name
            rows.append(
                run.labels(module)
                | {"step": step, "other": name, "step_other": step_other, "examples": examples}
                | {"similarity": 1.0 - apart, "dissimilarity": apart}
            )
    columns = [*_LABELS, "step", "other", "step_other", "examples", "similarity", "dissimilarity"]
    return _frame(rows, columns)


def vector_changes(
    runs: Sequence[Trajectory],
    pairs: Pairs = "initial",
    axes: Sequence[Axis] = AXES,
    *,
    quantiles: Sequence[float] | None = QUANTILES,
    modules: Sequence[str] | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Return how ΔM and ΔD are spread over the rows and columns of every module: quantiles, or every single vector.

    The quantiles of the magnitude and of the direction are taken each for itself, by linear interpolation. The means
    are in ``Trajectory.changes``.

    Arguments:
        runs: Opened runs.
        pairs: "consecutive" (t−1, t), "initial" (first recorded step, t), "base" (W₀, t), or a list of pairs, with
            ``None`` for the base.
        axes: "row", "column" or both.
        quantiles: Each in [0, 1]; ``None`` for one row a vector.
        modules, progress: As in `singular_values`.

    Returns:
        One row each: run, method, module, layer, kind, axis, step_from (missing for the base), step_to, quantile,
        delta_m, delta_d, undefined (how many vectors have no direction and are left out of delta_d's quantiles). With
        ``quantiles=None`` index (from 0, the row or column of W) stands in the place of quantile, and delta_d is NaN
        for a vector without direction.

    Raises:
        OptionError: No run; unknown pairs, axis or step; a quantile outside [0, 1].
        NonFiniteError: A weight holds NaN or infinity; names module and steps.
    """
    at = None if quantiles is None else np.asarray(list(quantiles), dtype=np.float64)
    if at is not None and not (at.size and bool(((at >= 0) & (at <= 1)).all())):
        raise OptionError(f"quantiles are {quantiles!r}; choose numbers from 0 to 1, or None for every vector")
    place = "index" if at is None else "quantile"
    blocks = []
    for run in _some(runs):
        steps = run.pairs(pairs)
        work = [(module, *pair) for module in chosen_modules(run.modules, modules) for pair in steps]
        held: dict[tuple[str, int | None], Tensor] = {}
        for module, step_from, step_to in tqdm(work, desc=f"vectors of {run.name}", disable=not progress):
            # float64 where W' is rebuilt, so that its rounding does not stand in for a change.
            dtype = torch.float64 if run.source.rebuilt(module) else None
            keys = [(module, step_from), (module, step_to)]
            held = {key: held[key] if key in held else run.weight(*key, dtype) for key in keys}
            start = "the base" if step_from is None else f"step {step_from}"
            with _located(run, module, f"from {start} to step {step_to}"):
                found = changes(held[keys[0]], held[keys[1]], axes)
            for axis, change in found.items():
                vectors = {"delta_m": change.magnitude.numpy(), "delta_d": change.direction.numpy()}
                spread = vectors if at is None else {name: _quantiles(each, at) for name, each in vectors.items()}
                blocks.append(
                    run.labels(module)
                    | {"axis": axis, "step_from": step_from, "step_to": step_to}
                    | {place: np.arange(len(vectors["delta_m"])) if at is None else at}
                    | spread
                    | {"undefined": change.undefined}
                )
    columns = [*_LABELS, "axis", "step_from", "step_to", place, "delta_m", "delta_d", "undefined"]
    return _frame(blocks, columns)


_PAIR = ["run_first", "run_second", "step_first", "step_second", "module", "layer", "kind", "side"]


def _update(run: Trajectory, module: str, step: int) -> dict[str, Any]:
    """Return the update as the arguments of `spectrum`: factors where there are any, else ΔW with its noise floor."""
    factors = run.factors(module, step, torch.float64)
    if factors is not None:
        return {"factors": factors}
    stored = run.source.rounding(module, step)
    weight = None if stored is None else run.weight(module, step, torch.float64)
    return {"update": run.update(module, step), "stored": stored, "weight": weight}


def _walk(
    runs: Sequence[Trajectory], modules: Sequence[str] | None, steps: Steps, what: str, progress: bool
) -> Iterator[tuple[Trajectory, str, int]]:
    """Yield run, module and step, all steps of a module in a row."""
    for run in _some(runs):
        work = [(module, step) for module in chosen_modules(run.modules, modules) for step in _steps(run, steps)]
        for module, step in tqdm(work, desc=f"{what} of {run.name}", unit="matrix", disable=not progress):
            yield run, module, step


def _both(
    first: Trajectory,
    second: Trajectory,
    step_first: int | None,
    step_second: int | None,
    modules: Sequence[str] | None,
    side: Side,
    progress: bool,
) -> Iterator[tuple[dict[str, Any], Directions, Directions]]:
    """Yield the labels and the two updates' directions for every module that both runs have."""
    if side not in SIDES:
        raise OptionError(f"side is {side!r}; choose one of {', '.join(map(repr, SIDES))}")
    chosen = _common(first, second, modules)
    at = [
        _steps(run, "last" if step is None else [step])[0] for run, step in ((first, step_first), (second, step_second))
    ]
    for module in chosen:
        if first.shape(module) != second.shape(module):
            one, two = (f"{run.shape(module)} in {run.source.where}" for run in (first, second))
            raise ShapeError(f"{module} is {one} and {two}; pass runs of one model")
    for module in tqdm(chosen, desc=f"{first.name} and {second.name}", unit="module", disable=not progress):
        found = []
        for run, step in zip((first, second), at, strict=True):
            with _located(run, module, f"at step {step}"):
                found.append(directions(**_update(run, module, step)))
        labels = {
            "run_first": first.name,
            "run_second": second.name,
            "step_first": at[0],
            "step_second": at[1],
            **{name: value for name, value in first.labels(module).items() if name not in ("run", "method")},
            "side": side,
        }
        yield labels, found[0], found[1]


@contextmanager
def _located(run: Trajectory, module: str, where: str) -> Iterator[None]:
    """Say in an error of a measure where it happened; those of the run itself say so already."""
    try:
        yield
    except (NonFiniteError, OptionError, ShapeError) as error:
        if str(error).startswith(run.source.where):
            raise
        raise type(error)(f"{run.source.where}: {module}, {where}: {error}") from None


def _some(runs: Sequence[Trajectory]) -> Sequence[Trajectory]:
    if not runs:
        raise OptionError("no run is given; pass a list of one or more")
    return runs


def _common(first: Trajectory, second: Trajectory, patterns: Sequence[str] | None) -> list[str]:
    common = [module for module in first.modules if module in set(second.modules)]
    if not common:
        some = " and ".join(f"{run.source.where} has {', '.join(run.modules[:3])}, …" for run in (first, second))
        raise OptionError(f"the runs have no module in common: {some}; pass runs of one model")
    return chosen_modules(common, patterns)


def _steps(run: Trajectory, steps: Steps) -> list[int]:
    if isinstance(steps, str):
        if steps != "last":
            raise OptionError(f"steps is {steps!r}; give a list of steps, 'last', or None for all")
        if not run.steps:
            raise OptionError(f"{run.source.where}: no step was recorded")
        return run.steps[-1:]
    return run.steps if steps is None else list(steps)


def _steps_of_both(run: Trajectory, other: Trajectory | None, steps: Steps) -> list[tuple[int, int | None]]:
    if other is None:
        return [(step, None) for step in _steps(run, steps)]
    if steps is None:
        common = [step for step in run.steps if step in set(other.steps)]
        if not common:
            raise OptionError(
                f"{run.source.where} and {other.source.where} have no step in common; name the steps, or say 'last'"
            )
        return [(step, step) for step in common]
    return list(zip(_steps(run, steps), _steps(other, steps), strict=True))


def _ranks(ranks: Sequence[int], found: Directions, module: str) -> Any:
    """Return the ranks as an array; none may be above the size of the matrix."""
    most = min(len(found.left), len(found.right))
    if not len(ranks) or not all(isinstance(rank, int | np.integer) and 1 <= rank <= most for rank in ranks):
        raise OptionError(f"ranks are {list(ranks)}; for {module} choose whole numbers from 1 to {most}, its size")
    return np.asarray(ranks, dtype=np.int64)


def _quantiles(values: np.ndarray[Any, np.dtype[np.float64]], at: np.ndarray[Any, np.dtype[np.float64]]) -> Any:
    """Return the quantiles of those that are numbers; NaN where none is."""
    values = values[~np.isnan(values)]
    return np.quantile(values, at) if values.size else np.full(at.shape, np.nan)


def _frame(blocks: list[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    """Return one table of blocks; in a block, arrays of one length and single values that stand in all of its rows."""
    lengths = [max([1, *(len(value) for value in block.values() if isinstance(value, np.ndarray))]) for block in blocks]
    data: dict[str, Any] = {}
    for name in columns:
        values = [block[name] for block in blocks]
        if values and isinstance(values[0], np.ndarray):
            data[name] = np.concatenate(values)
        else:
            data[name] = [value for value, length in zip(values, lengths, strict=True) for _ in range(length)]
    frame = pd.DataFrame(data, columns=columns)
    return frame.astype({name: "Int64" for name in _WHOLE if name in columns})
