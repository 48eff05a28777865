"""The geometry of every update against W₀: rotation, spectral drift, off-principal share, visible changes."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, Unpack

import pandas as pd
import torch
from torch import Tensor

from deltaw.adapters.errors import OptionError
from deltaw.analysis.measures.drift import spectral_drift
from deltaw.analysis.measures.matrix import finite
from deltaw.analysis.measures.off_principal_share import Outside, outside, outside_of_factors
from deltaw.analysis.measures.principal import Count, Principal, checked_count
from deltaw.analysis.measures.principal_rotation import Rotation, rotation, rotation_of_form
from deltaw.analysis.measures.random_update import (
    expected_off_principal,
    expected_rotation,
    rotation_rate,
    turned_by,
)
from deltaw.analysis.measures.threads import one_thread
from deltaw.analysis.measures.visible import PATH_NOT_TAKEN, visible_share
from deltaw.analysis.tables.run import LABELS, Run, Steps
from deltaw.analysis.tables.stop import Stop
from deltaw.analysis.tables.walk import Walk, at_steps
from deltaw.analysis.tables.work import How, work_from

COLUMNS = {
    "rotation": (
        "rotation_left",
        "rotation_right",
        "rotation_expected",
        "rotation_random",
        "rotation_error",
        "block_change",
        "gap",
        "route",
    ),
    "drift": ("drift",),
    "off_principal": (
        "off_principal",
        "off_principal_expected",
        "off_principal_left",
        "off_principal_left_expected",
        "off_principal_right",
        "off_principal_right_expected",
    ),
    "visible": (),  # one of each rule
}
MEASURES = tuple(COLUMNS)
RULES: dict[str, dict[str, Any]] = {
    "bfloat16": {"dtype": torch.bfloat16},
    "float16": {"dtype": torch.float16},
    "float32": {"dtype": torch.float32},
    "path-not-taken": {"tolerance": PATH_NOT_TAKEN},
}
_SIDES = {"off_principal": "both", "off_principal_left": "left", "off_principal_right": "right"}


def geometry_table(
    runs: Sequence[Run],
    steps: Steps = None,
    modules: Sequence[str] | None = None,
    *,
    k: Count = 16,
    measures: Sequence[str] | None = None,
    visible: Sequence[str] = ("bfloat16",),
    progress: bool = False,
    **work: Unpack[How],
) -> pd.DataFrame:
    """Return how every update stands to W₀: how far it turns and moves its spectrum, where it lies, what is seen of it.

    W₀'s directions are found once a module. Off-principal shares come from factors where the method has them; rotation
    of large matrices from products of W' with thin ones, without building W' where the method tells it as
    diag(ρ)(W₀ + U V)diag(γ). The drift needs all singular values of W' at every step, which takes many times longer, so
    leave it out of ``measures`` where it is not needed.

    Arguments:
        runs: Opened runs.
        steps: The steps; "last" for each run's last, ``None`` for all that are recorded.
        modules: Glob patterns over the recorded modules; ``None`` for all.
        k: How many leading directions; of a matrix that has fewer, all. Or, as a number between 0 and 1, as many as
            hold this share of Σσ² of W₀.
        measures: Of "rotation", "drift", "off_principal" and "visible"; ``None`` for all.
        visible: The dtypes in which changes are to be visible, of "bfloat16", "float16" and "float32"; also
            "path-not-taken", the rule of that paper with η = 1e-3 on the weights as they are.
        progress: Show a progress bar.
        device, jobs, engine, address, cache: As in `Work`, the last ``False`` by default; or ``work``, one of those.

    Returns:
        One row each: run, method, module, layer, kind, step, k, then of the measures

        - rotation_left, rotation_right (degrees, see `rotation`), rotation_expected (of two random subspaces, in the
          smaller of the two spaces), rotation_random (of W₀ under a random update of the same norm; NaN where first
          order does not tell), rotation_error (degrees), block_change, gap, route (of the rotation: "krylov", "gram",
          "svd", or "same" where nothing moved);
        - drift, see `spectral_drift`;
        - off_principal, off_principal_expected, and the same for the left and the right subspace alone; see
          `off_principal`;
        - visible_bfloat16, visible_float16, visible_float32, visible_path_not_taken, see `visible_share`.

        NaN where ΔW is zero and so lies nowhere, or W₀ has no such subspace. ``attrs["left_out"]`` says which modules
        are left out, as their W₀ is not known.

    Raises:
        NonFiniteError: A weight holds NaN or infinity; names module and step.
        OptionError: No such module, step, measure or dtype, or ``k`` is out of its range.
    """
    checked_count(k, 2**62)
    wanted = _several("measures", measures, MEASURES)
    rules = _several("visible", visible, tuple(RULES)) if "visible" in wanted else []
    walk = Walk(runs, "geometry", at_steps(steps), modules, progress=progress, work=work_from(work))
    rows = walk.rows(partial(_of_step, k=k, wanted=wanted, rules=rules))
    columns = [column for name in wanted for column in COLUMNS[name]] + [_visible(rule) for rule in rules]
    return walk.frame(rows, [*LABELS, "step", "k", *columns])


def _several(name: str, given: Sequence[str] | None, known: tuple[str, ...]) -> list[str]:
    """Return the names that were given, in the table's order."""
    if given is None:
        return list(known)
    listed = [given] if isinstance(given, str) else given
    if not isinstance(listed, Sequence) or not listed or not all(one in known for one in listed):
        raise OptionError(f"{name} is {given!r}; choose of {', '.join(known)}")
    return [one for one in known if one in listed]


def _visible(rule: str) -> str:
    return f"visible_{rule.replace('-', '_')}"


def _of_step(stop: Stop, k: Count, wanted: Sequence[str], rules: Sequence[str]) -> list[dict[str, Any]]:
    run, module, step = stop.run, stop.module, stop.step
    rows, columns = run.shape(module)
    size = k if isinstance(k, float) else min(k, rows, columns)
    base: Principal = stop.once("principal", lambda: Principal(run.base(module), size))
    row = stop.labels | {"step": step, "k": base.k}
    weight = cache(lambda: finite("after", run.weight(module, step, torch.float64)))
    trained = cache(lambda: Principal(weight(), base.k, "after"))
    if {"rotation", "off_principal"} & set(wanted):
        found = _outside(stop, base, weight)
    if "rotation" in wanted:
        turned = _rotation(stop, base, trained)
        rate: float = stop.once("rate", lambda: rotation_rate(base.values.numpy(), rows, columns, base.k))
        expected = [expected_rotation(base.k, n) for n in (rows, columns) if n > base.k]
        row |= {
            "rotation_left": turned.left,
            "rotation_right": turned.right,
            "rotation_expected": min(expected, default=0.0),
            "rotation_random": turned_by(rate * found.norm),
            "rotation_error": turned.error,
            "block_change": turned.block_change,
            "gap": turned.gap,
            "route": turned.route,
        }
    if "drift" in wanted:
        row["drift"] = float(spectral_drift(base, trained()))
    if "off_principal" in wanted:
        for column, side in _SIDES.items():
            row[column] = getattr(found, side)
            row[f"{column}_expected"] = expected_off_principal(base.k, rows, columns, side)
    for rule in rules:
        row[_visible(rule)] = visible_share(base.matrix, weight(), **RULES[rule])
    return [row]


def _rotation(stop: Stop, base: Principal, trained: Callable[[], Principal]) -> Rotation:
    """Return the rotation, without W' where the method tells it as ρ, γ, U and V and the matrix is large."""
    source = stop.run.source
    if base.block is not None and source.rebuilt(stop.module):
        form = source.scaled_low_rank(stop.module, stop.step, base.matrix)
        if form is not None:
            return rotation_of_form(base, form)
    return rotation(base, trained())


def _outside(stop: Stop, base: Principal, weight: Callable[[], Tensor]) -> Outside:
    """Return where the update lies: from factors as they are stored, else from ΔW."""
    source, module, step = stop.run.source, stop.module, stop.step
    with one_thread():  # factors are small, and threads that wait for each other take longer than one alone
        factors = source.scaled_factors(module, step)
    if factors is not None:
        return outside_of_factors(base, factors.U, factors.V, factors.scaling)
    update = stop.run.update(module, step) if source.rebuilt(module) else weight() - base.matrix
    return outside(base, update)
