"""The straight line between two runs' weights: each point of it is a run of its own, to be measured or written."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor
from typing_extensions import override

from deltaw.adapters.checks import public, whole_number
from deltaw.adapters.errors import OptionError, ShapeError
from deltaw.adapters.peft.names import CONFIG, PREFIX, WEIGHTS
from deltaw.analysis.records.foreign.base import BaseError, BaseLike
from deltaw.analysis.records.source import Shape, Source, State
from deltaw.analysis.records.storage.atomic import atomic_write, make_folder, write_text
from deltaw.analysis.tables.run import Steps
from deltaw.analysis.tables.walk import chosen_steps
from deltaw.analysis.tables.work import How, work_from
from deltaw.analysis.trajectory import Trajectory

if TYPE_CHECKING:  # tables are made with pandas, weights are read without
    import pandas as pd


class InterpolatedSource(Source):
    """W'(t) = (1 − t) W_a + t W_b of two runs, in float64, with factors where both have them.

    Arguments:
        first, second: The runs a and b.
        t: From 0 to 1; beyond, the line goes on.
        steps: By the step of the line, those of the two runs.

    Raises:
        OptionError: The runs have no module in common.
        ShapeError: A module has another shape in the other run.
    """

    format = "interpolated"

    def __init__(self, first: Trajectory, second: Trajectory, t: float, steps: dict[int, tuple[int, int]]) -> None:
        self.ends, self.t, self._at = (first, second), t, steps
        self.where = f"{first.source.where}~{second.name}@{t:g}"
        self.steps = sorted(steps)
        there = set(second.modules)
        self.shapes: dict[str, Shape] = {name: first.shape(name) for name in first.modules if name in there}
        if not self.shapes:
            listed = " and ".join(f"{run.source.where} has {', '.join(run.modules[:3])}, …" for run in self.ends)
            raise OptionError(
                f"the runs have no module in common: {listed}; pass runs that adapt the same modules of one model"
            )
        for name, shape in self.shapes.items():
            if second.shape(name) != shape:
                raise ShapeError(
                    f"{name} is {shape} and {second.shape(name)}; pass runs that adapt the same modules of one model"
                )
        self.method = _either(first.method, second.method)
        self.info = {"first": first.source.where, "second": second.source.where, "t": t}
        self.config = first.source.config
        self.steps_known = first.source.steps_known and second.source.steps_known
        self.opened = max(run.source.opened for run in self.ends)
        self._same: dict[str, bool] = {}

    def _of_both(self, module: str, step: int) -> tuple[tuple[Trajectory, int, float], ...]:
        """The runs that have a part in it, each with its step and its share: one alone at an end."""
        self.check(module, step)
        self._check_base(module)
        shares = (1.0 - self.t, self.t)
        return tuple(
            (run, at, share) for run, at, share in zip(self.ends, self._at[step], shares, strict=True) if share != 0
        )

    def _check_base(self, module: str) -> None:
        """Raise where the two runs started from other weights, as far as these are known."""
        if module in self._same:
            return
        bases = []
        for run in self.ends:
            try:
                bases.append(run.base(module).double())
            except BaseError:  # two adapters without their base: their factors are all there is
                return
        if not torch.equal(*bases):
            apart = float((bases[0] - bases[1]).abs().max())
            raise OptionError(
                f"{self.where}: {module}: the two runs started from other weights, up to {apart:.2g} apart; pass runs "
                "of one base, or give both the one that they share by base="
            )
        self._same[module] = True

    @override
    def weight(self, module: str, step: int, dtype: torch.dtype | None = None) -> Tensor:
        parts = [
            share * run.weight(module, at, torch.float64 if run.source.rebuilt(module) else None).double()
            for run, at, share in self._of_both(module, step)
        ]
        return sum(parts[1:], start=parts[0]).to(dtype or torch.float64)

    @override
    def update(self, module: str, step: int, dtype: torch.dtype | None = None) -> Tensor:
        parts = [share * run.update(module, at) for run, at, share in self._of_both(module, step)]
        return sum(parts[1:], start=parts[0]).to(dtype or torch.float64)

    @override
    def factors(self, module: str, step: int, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor] | None:
        lefts, rights = [], []
        for run, at, share in self._of_both(module, step):
            found = run.source.scaled_factors(module, at)
            if found is None:
                return None
            lefts.append(share * found.scaling * found.U.double())
            rights.append(found.V.double())
        to = dtype or torch.float64
        return torch.cat(lefts, 1).to(to), torch.cat(rights, 0).to(to)

    @override
    def base(self, module: str) -> Tensor:
        self._check_base(module)
        try:
            return self.ends[0].base(module)
        except BaseError:
            return self.ends[1].base(module)

    @property
    @override
    def base_from(self) -> str | None:
        return self.ends[0].base_from or self.ends[1].base_from

    @override
    def state(self, module: str, step: int) -> State:
        return {"weight": self.weight(module, step)}

    @override
    def label(self, module: str) -> str:
        return _either(*(run.source.label(module) for run in self.ends))

    @override
    def rebuilt(self, module: str) -> bool:
        return True

    @override
    def rounding(self, module: str, step: int) -> torch.dtype | None:
        found = [run.source.rounding(module, at) for run, at, _ in self._of_both(module, step)]
        coarse = [dtype for dtype in found if dtype is not None]
        return max(coarse, key=lambda dtype: torch.finfo(dtype).eps, default=None)


def _either(first: str, second: str) -> str:
    return first if first == second else f"{first}+{second}"


@public
def interpolated(
    first: str | Path | Trajectory,
    second: str | Path | Trajectory,
    t: float,
    *,
    steps: Steps = None,
    base: BaseLike = None,
) -> Trajectory:
    r"""Return the point t of the straight line between two runs' weights, as a run.

        W'(t) = (1 − t) W_a + t W_b = W₀ + (1 − t) ΔW_a + t ΔW_b

    in float64. Where both runs have factors, it has them: U = [(1 − t) U_a, t U_b] and V = [V_a; V_b], so its spectrum
    needs no dense matrix. At t = 0 and t = 1 it is that run alone. `changes`, `spectra` and every other table take it
    like any run.

    Both runs must have started from the same W₀, value by value, which is looked at for each module when it is read.
    Two adapters of which neither knows its base can be mixed as far as factors go.

    Arguments:
        first, second: a and b: opened runs, or what ``deltaw.open`` takes.
        t: 0 for a, 1 for b; outside of that the line is continued.
        steps: ``None`` for the steps that both recorded; "last" for each one's last, under the larger number; or these.
        base: W₀, where the runs do not hold it.

    Returns:
        A `Trajectory` of the modules that both have, named "A~B@t".

    Raises:
        OptionError: t is no number, the runs have no module or step in common; or, when a module is read, they started
            from other weights.
        ShapeError: A module has another shape in the other run.

    Source:
        Frankle et al. 2020, "Linear Mode Connectivity and the Lottery Ticket Hypothesis", section 2; between training
        methods "Weight-Space Geometry of Offline Reasoning Training" (arXiv 2606.23740).

    Example:
        >>> import tempfile
        >>> from safetensors.torch import save_file
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name, value in (("base", 0.0), ("a", 1.0), ("b", 3.0)):
        ...     save_file({"0.weight": torch.full((2, 2), value)}, folder / f"{name}.safetensors")
        >>> a, b = (Trajectory.from_pair(folder / "base.safetensors", folder / f"{n}.safetensors") for n in "ab")
        >>> interpolated(a, b, 0.25).update("0", 1).tolist()
        [[1.5, 1.5], [1.5, 1.5]]
    """
    if isinstance(t, bool) or not isinstance(t, int | float) or not math.isfinite(t):
        raise OptionError(f"t is {t!r}; pass a number, from 0 for the first run to 1 for the second")
    runs = [run if isinstance(run, Trajectory) else Trajectory.open(run, base=base) for run in (first, second)]
    a, b = runs
    if steps is None:
        common = [step for step in a.steps if step in set(b.steps)]
        if not common:
            raise OptionError(
                f"{a.source.where} and {b.source.where} have no step in common; name the steps, or say steps='last'"
            )
        at = {step: (step, step) for step in common}
    else:
        at = {max(pair): pair for pair in zip(chosen_steps(a, steps), chosen_steps(b, steps), strict=True)}
    run = Trajectory(InterpolatedSource(a, b, float(t), at), a._pattern)
    run.name = f"{a.name}~{b.name}@{t:g}"
    return run


@public
def interpolation_table(
    first: str | Path | Trajectory,
    second: str | Path | Trajectory,
    ts: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    *,
    steps: Steps = "last",
    modules: Sequence[str] | None = None,
    measures: Sequence[str] | None = ("frobenius", "spectral", "stable_rank", "effective_rank"),
    base: BaseLike = None,
    **work: Unpack[How],
) -> pd.DataFrame:
    """Return the norms and ranks of the update along the straight line between two runs.

    Where the two updates have nothing in common, ‖ΔW(t)‖² = (1 − t)²‖A‖² + t²‖B‖², so at ½ it is 0.71 of theirs, and
    the ranks add; where they are parallel, both go straight from one end to the other.

    Arguments:
        first, second, steps, base: As in `interpolated`; of steps the last of each by default.
        ts: The points.
        modules: Glob patterns over the modules that both have; ``None`` for all.
        measures: As in `Trajectory.spectra`.
        device, …: As in `singular_values`.

    Returns:
        One row a point, module and step: t, and the columns of ``Trajectory.spectra``.

    Raises:
        As `interpolated`; OptionError: No such measure, or no point.
    """
    import pandas as pd

    given: object = ts
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise OptionError(f"ts is {ts!r}; pass a list of numbers, as [0, 0.5, 1]")
    runs = [run if isinstance(run, Trajectory) else Trajectory.open(run, base=base) for run in (first, second)]
    frames, how = [], vars(work_from(work))
    for t in ts:
        between = interpolated(runs[0], runs[1], t, steps=steps)
        frame = between.spectra(modules=modules, measures=measures, **how)
        frame.insert(0, "t", float(t))
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


@public
def loss_barrier(ts: Sequence[float], losses: Sequence[float]) -> float:
    r"""Return how high the loss rises along the straight line between two models, above the line between their losses.

        barrier = max_t [ L(t) − ((1 − t) L(0) + t L(1)) ],    t from 0 to 1

    0 where the loss never rises above: the two lie in one linearly connected valley.

    Arguments:
        ts: The points, 0 and 1 among them.
        losses: L at each.

    Returns:
        At least 0, in the losses' unit.

    Raises:
        OptionError: The two differ in length, 0 or 1 is missing, or a number is not finite.

    Source:
        Frankle et al. 2020, section 2, with the mean of the two ends, which here follows the line (Entezari et al.
        2022, definition 1).

    Example:
        >>> loss_barrier([0, 0.5, 1], [1.0, 3.0, 2.0])
        1.5
    """
    if len(ts) != len(losses):
        raise OptionError(f"ts are {len(ts)} and losses {len(losses)}; pass a loss for each point")
    at = {float(t): float(loss) for t, loss in zip(ts, losses, strict=True)}
    if 0.0 not in at or 1.0 not in at or not all(math.isfinite(x) for pair in at.items() for x in pair):
        raise OptionError(f"ts are {list(ts)!r}; pass finite numbers with 0 and 1 among them, and finite losses")
    return max(loss - ((1 - t) * at[0.0] + t * at[1.0]) for t, loss in at.items() if 0 <= t <= 1)


@public
def save_weights(
    run: Trajectory, path: str | Path, *, step: int | None = None, dtype: torch.dtype | None = None
) -> Path:
    """Write the weights of a run at a step, as an interpolated one: an adapter where it has factors, else matrices.

    Where every module has factors and ``path`` does not end in .safetensors, a folder that PEFT loads as LoRA on W₀:
    A = V, B = U, alpha = r. Else one .safetensors file with W' (out, in) of every module as MODULE.weight, which
    ``model.load_state_dict(tensors, strict=False)`` takes; what the run does not record, as norms and embeddings, is
    not in it, and a layer that stores its weight as (in, out), as GPT-2's, wants it transposed. Written whole or not at
    all.

    Arguments:
        run: Opened, or what `interpolated` returns.
        path: A folder, made if it is not there, or a file that ends in .safetensors.
        step: ``None`` for the last.
        dtype: Of what is written; ``None`` for float32.

    Returns:
        The path.

    Raises:
        OptionError: There is no such step; a folder is named, and a module has no factors.
        WriteError: The disk is full or cannot be written to.
    """
    if not run.steps:
        raise OptionError(f"{run.source.where}: no step was recorded")
    at = run.steps[-1] if step is None else whole_number("step", step, 0)
    to = dtype or torch.float32
    where = Path(path)
    if where.suffix == ".safetensors":
        tensors = {f"{name}.weight": run.weight(name, at, torch.float64).to(to).contiguous() for name in run.modules}
        make_folder(where.parent)
        _write(tensors, where)
        return where
    tensors, ranks = {}, {}
    for name in run.modules:
        found = run.factors(name, at, torch.float64)
        if found is None:
            raise OptionError(
                f"{run.source.where}: {name} has no factors, and so is no adapter; name a file that ends in "
                ".safetensors to write whole matrices"
            )
        ranks[name] = found[0].shape[1]
        tensors[f"{PREFIX}{name}.lora_A.weight"] = found[1].to(to).contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = found[0].to(to).contiguous()
    rank = max(ranks.values())
    others = {name: r for name, r in ranks.items() if r != rank}
    config: dict[str, Any] = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": sorted(ranks)}
    config |= {"rank_pattern": others, "alpha_pattern": others, "inference_mode": True, "bias": "none"}
    make_folder(where)
    _write(tensors, where / WEIGHTS)
    write_text(where / CONFIG, json.dumps(config, indent=2))
    return where


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    with atomic_write(path) as temporary:
        save_file(tensors, temporary)
