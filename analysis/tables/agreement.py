"""Runs against runs: how far the updates of several runs agree, module by module and over the whole model."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import Any, Unpack

import pandas as pd
import torch
from torch import Tensor

from deltaw.adapters.checks import public, whole_number
from deltaw.adapters.errors import OptionError, ShapeError
from deltaw.analysis.measures.chance import cosine_spread, sign_spread
from deltaw.analysis.measures.energy import energy_in
from deltaw.analysis.measures.inner import Operand, cosine_of
from deltaw.analysis.measures.masks import mask_agreement
from deltaw.analysis.measures.signs import signs
from deltaw.analysis.measures.subspace import Directions
from deltaw.analysis.measures.visible import visible_changes
from deltaw.analysis.records.foreign.base import BaseError
from deltaw.analysis.tables.device import placed
from deltaw.analysis.tables.run import Run, Steps
from deltaw.analysis.tables.stop import Stop, located
from deltaw.analysis.tables.updates import update_at
from deltaw.analysis.tables.walk import Walk, chosen_modules, chosen_steps, some
from deltaw.analysis.tables.work import How, work_from

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
PAIR = ["run_first", "run_second", "step_first", "step_second"]
COSINE = ["norm_first", "norm_second", "cosine", "cosine_chance"]
_SIGNS = ["sign_agreement", "sign_expected", "sign_chance"]
ENDS = ("left", "right")
_ENERGY = ["directions", *(f"energy_{side}{end}" for side in ENDS for end in ("", "_reverse", "_expected"))]
_MASKS = ["jaccard", "jaccard_expected", "jaccard_expected_rows", "jaccard_expected_columns"]
_MASKS += ["visible_first", "visible_second"]


@public
def update_agreement(
    runs: Sequence[Run],
    *,
    steps: Steps = "last",
    modules: Sequence[str] | None = None,
    k: int = 8,
    signs: bool = True,
    visible: str | None = "bfloat16",
    progress: bool = False,
    **work: Unpack[How],
) -> pd.DataFrame:
    """Return how far the updates of every two of some runs agree, for every module that all of them have.

    From factors without dense matrices, but for signs, which need a few rows at a time, and visible changes, which need
    W'. Where updates are dense, those of all runs of one module are held at once.

    Arguments:
        runs: Opened runs, two or more, each with a name of its own.
        steps: "last" for each run's last, ``None`` for the steps that all recorded, or these.
        modules: Glob patterns over the modules that all runs have; ``None`` for all.
        k: How many leading directions the energy is looked for in; 0 for no energy.
        signs: Whether signs are compared.
        visible: The dtype in which changes are to be visible: "bfloat16", "float16", "float32", or ``None`` for none.
        progress: Show a progress bar.
        device, jobs, engine, address, cache: As in `Work`, the last ``False`` by default; or ``work``, one of those.

    Returns:
        One row a module, pair of runs and step: module, layer, kind, entries (out·in), run_first, run_second,
        step_first, step_second; norm_first, norm_second (‖ΔW‖), cosine, cosine_chance (its spread about 0, see
        `update_cosine`); sign_agreement, sign_expected, sign_chance (its spread, see `sign_agreement`); directions (k,
        or as many as both have), energy_left (the share of the second's energy in the first's leading left
        directions), energy_left_reverse (of the first's in the second's), energy_left_expected, and the same for right;
        jaccard, jaccard_expected, jaccard_expected_rows, jaccard_expected_columns, visible_first, visible_second, see
        `mask_agreement`. NaN where an update is zero, or W₀ is needed and not known.
        ``attrs["not_common"]`` lists the modules that not all runs have.

    Raises:
        OptionError: Fewer than two runs, two of one name, no module in common, no such step or dtype.
        ShapeError: A module has another shape in another run.
        NonFiniteError: A weight holds NaN or infinity; names module and step.

    Source:
        "Weight-Space Geometry of Offline Reasoning Training" (arXiv 2606.23740) for cosines of updates between methods;
        "The Path Not Taken" (arXiv 2511.08567) for the agreement of visible changes between runs.
    """
    whole_number("k", k, 0)
    if visible is not None and visible not in DTYPES:
        raise OptionError(f"visible is {visible!r}; choose one of {', '.join(DTYPES)}, or None for none")
    first, *others = several(runs)
    chosen, missing = _common(runs, modules)
    at = _steps_of_all(runs, steps)
    walk = Walk(
        [first],
        f"agreement with {len(others)} other runs" if len(others) > 1 else f"agreement with {others[0].name}",
        lambda _: [(None, of_all[0]) for of_all in at],
        lambda _: chosen,
        progress=progress,
        work=work_from(work),
    )
    beside = {str(of_all[0]): list(of_all) for of_all in at}
    measure = partial(
        _of_module, others=others, beside=beside, k=k, with_signs=signs, visible=visible, device=walk.work.device
    )
    columns = [*COSINE, *(_SIGNS if signs else []), *(_ENERGY if k else []), *(_MASKS if visible else [])]
    frame = walk.frame(walk.rows(measure), ["module", "layer", "kind", "entries", *PAIR, *columns])
    if missing:
        frame.attrs["not_common"] = missing
    return frame


def several(runs: Sequence[Run]) -> list[Run]:
    """Return two or more runs with names of their own.

    Raises:
        OptionError: They are not.
    """
    listed = list(some(runs))
    names = [run.name for run in listed]
    if len(listed) < 2:
        raise OptionError("one run is given, and runs are held against each other; pass two or more")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise OptionError(f"two runs have the name {twice!r}; open them with open_runs, or set run.name")
    return listed


def _common(runs: Sequence[Run], patterns: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Return the modules that all runs have, and those that only some have."""
    every = list(dict.fromkeys(module for run in runs for module in run.modules))
    having = [set(run.modules) for run in runs]
    common = [module for module in every if all(module in names for names in having)]
    if not common:
        listed = "; ".join(f"{run.source.where} has {', '.join(run.modules[:3])}, …" for run in runs)
        raise OptionError(
            f"the runs have no module in common: {listed}; pass runs that adapt the same modules of one model"
        )
    chosen = chosen_modules(common, patterns)
    for module in chosen:
        for run in runs[1:]:
            if run.shape(module) != runs[0].shape(module):
                one, two = (f"{found.shape(module)} in {found.source.where}" for found in (runs[0], run))
                raise ShapeError(f"{module} is {one} and {two}; pass runs that adapt the same modules of one model")
    return chosen, [module for module in every if module not in common]


def _steps_of_all(runs: Sequence[Run], steps: Steps) -> list[list[int]]:
    """Return for each stop the step of every run."""
    if steps is None:
        common = [step for step in runs[0].steps if all(step in set(run.steps) for run in runs[1:])]
        if not common:
            raise OptionError("the runs have no step in common; name the steps, or say 'last'")
        return [[step] * len(runs) for step in common]
    return [list(of_all) for of_all in zip(*(chosen_steps(run, steps) for run in runs), strict=True)]


def _of_module(
    stop: Stop,
    others: Sequence[Run],
    beside: dict[str, list[int]],
    k: int,
    with_signs: bool,
    visible: str | None,
    device: str,
) -> list[dict[str, Any]]:
    runs = [stop.run, *(placed(other, device) for other in others)]
    steps = beside[str(stop.step)]
    shape = stop.run.shape(stop.module)
    found = [_Side(stop, run, step, k, visible) for run, step in zip(runs, steps, strict=True)]
    labels = {name: value for name, value in stop.labels.items() if name not in ("run", "method")}
    rows = []
    for i, j in combinations(range(len(runs)), 2):
        row = labels | {"entries": math.prod(shape)} | dict.fromkeys([*COSINE, *_SIGNS, *_ENERGY, *_MASKS], math.nan)
        row |= {"run_first": runs[i].name, "run_second": runs[j].name, "step_first": steps[i], "step_second": steps[j]}
        rows.append(row | _pair(found[i], found[j], with_signs))
    return rows


class _Side:
    """What of a run's update is held against the others': as far as it is known."""

    def __init__(self, stop: Stop, run: Run, step: int, k: int, visible: str | None) -> None:
        self.update: Operand | None = None
        self.directions: Directions | None = None
        self.mask: Tensor | None = None
        with located(run, stop.module, f"at step {step}"):
            try:
                update = update_at(stop, run, step)
                self.update = update.operand()
                self.directions = update.leading(k) if k else None
                if visible is not None:
                    weight = run.weight(stop.module, step, torch.float64)
                    self.mask = visible_changes(run.base(stop.module), weight, dtype=DTYPES[visible])
            except BaseError:  # the others are held against each other
                pass


def _pair(one: _Side, two: _Side, with_signs: bool) -> dict[str, Any]:
    row: dict[str, Any] = {}
    if one.update is not None and two.update is not None:
        a, b = one.update, two.update
        row |= {"norm_first": a.norm * a.scale, "norm_second": b.norm * b.scale}
        row |= {"cosine": cosine_of(a, b), "cosine_chance": cosine_spread(*a.shape)}
        if with_signs:
            table = signs(a, b)
            row |= {"sign_agreement": table.agreement, "sign_expected": table.expected}
            row |= {"sign_chance": sign_spread(*a.shape)}
        if one.directions is not None and two.directions is not None:
            row |= _energy(one.directions, two.directions, a, b)
    if one.mask is not None and two.mask is not None:
        found = mask_agreement(one.mask, two.mask)
        row |= {"jaccard": found.jaccard, "jaccard_expected": found.expected}
        row |= {"jaccard_expected_rows": found.expected_rows, "jaccard_expected_columns": found.expected_columns}
        row |= {"visible_first": found.first, "visible_second": found.second}
    return row


def _energy(one: Directions, two: Directions, first: Operand, second: Operand) -> dict[str, float]:
    count = min(one.count, two.count)
    row: dict[str, float] = {"directions": count}
    if not count:
        return row
    for end, of, update in (("", one, second), ("_reverse", two, first)):
        found = energy_in(update, of.left[:, :count], of.right[:, :count], math.nan)
        row |= {f"energy_{side}{end}": getattr(found, side) for side in ENDS}
        row |= {f"energy_{side}_expected": getattr(found, f"{side}_expected") for side in ENDS}
    return row
