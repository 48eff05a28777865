"""The content of a report: plain values, and columns of numbers, from opened runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deltaw.analysis.claims.claim import claims_json
from deltaw.analysis.claims.collect import gather
from deltaw.analysis.claims.papers import PAPERS, claims
from deltaw.analysis.names import stack_of
from deltaw.analysis.printable import printable
from deltaw.analysis.report.about import about, base_named
from deltaw.analysis.report.between import PART as BETWEEN
from deltaw.analysis.report.between import RANKS, between
from deltaw.analysis.report.colors import run_styles
from deltaw.analysis.report.matrices import (
    BINS,
    LEADING,
    MOST,
    Details,
    Matrices,
    detailed_steps,
    geometry_steps,
    principal_count,
)
from deltaw.analysis.report.pack import Column, exact
from deltaw.analysis.report.parts import Notes
from deltaw.analysis.tables.walk import PAIRS, chosen_modules
from deltaw.analysis.tables.work import HERE, Work
from deltaw.analysis.trajectory import Trajectory

MOST_SCALARS = 2000  # lines of the log that are kept of a run


@dataclass(frozen=True)
class Content:
    """All that a report shows.

    Arguments:
        about: Plain values: runs, modules, claims, notes.
        columns: The numbers, by name; those of a run begin with its number and a full stop.
    """

    about: dict[str, Any]
    columns: Mapping[str, Column]


def collect(
    runs: Sequence[Trajectory],
    *,
    modules: Sequence[str] | None = None,
    details: Details = None,
    geometry: bool | None = None,
    check: bool = True,
    progress: bool = False,
    work: Work = HERE,
) -> Content:
    """Measure in some runs what a report shows; what fails in one part is noted there, and the others go on.

    Arguments:
        runs: Opened runs, each with a name of its own.
        modules: Glob patterns over the modules; ``None`` for all.
        details: See ``detailed_steps``.
        geometry: See ``geometry_steps``.
        check: Look for what is wrong with the runs, and hold the papers' claims against them.
        progress: Show progress bars.
        work: Where and how it is measured.

    Raises:
        TargetError: A pattern fits no module of a run.
        OptionError: ``details`` is none of what it can be.
    """
    notes = Notes(runs)
    chosen = [chosen_modules(run.modules, modules) for run in runs]
    every = list(dict.fromkeys(name for names in chosen for name in names))
    place = {name: number for number, name in enumerate(every)}
    styles = run_styles([run.method for run in runs])
    principal = principal_count(
        run.shape(name) for run, names in zip(runs, chosen, strict=True) if run.base_from is not None for name in names
    )
    columns: dict[str, Column] = {}
    entries = []
    for number, (run, names, (color, line)) in enumerate(zip(runs, chosen, styles, strict=True)):
        entry = about(run, names, notes, check=check, progress=progress)
        steps = detailed_steps(run, names, details, len(runs))
        turns = geometry_steps(run, names, steps, geometry) if run.base_from is not None else []
        matrices = Matrices(run, names, steps, turns, notes, work, principal=principal, progress=progress)
        measured = _measure(run, matrices, notes)
        columns |= {f"{number}.{name}": column for name, column in (measured | _scalars(run, notes)).items()}
        entries.append(
            entry
            | {"color": color, "line": line, "modules": [place[name] for name in names], "details": matrices.details}
            | {"geometry": matrices.turns}
            | {"since_first": [place[name] for name in matrices.since_first]}
        )
    if len(runs) > 1:
        with notes.part(BETWEEN):
            columns |= between(runs, every, notes, progress=progress)
    found: dict[str, Any] = {
        "runs": entries,
        "modules": _labelled([_module(runs, chosen, name) for name in every]),
        "pairs": list(PAIRS),
        "sizes": {"ranks": RANKS, "bins": BINS, "leading": LEADING, "most": MOST, "principal": principal},
        "claims": _claims(runs, notes, progress, work) if check else [],
    }
    return Content(found | {"notes": notes.by_part}, columns)


def _measure(run: Trajectory, matrices: Matrices, notes: Notes) -> dict[str, Column]:
    begin = f"{run.name}: "
    if not run.steps:
        notes.add("changes", f"{begin}no checkpoint was recorded yet")
        return {}
    if run.base_from is None:
        notes.add(
            "base",
            f"{begin}W₀ is not known, so what is measured against it is left out: ΔM and ΔD since W₀, the size of the "
            f"update relative to it, its rotation; add --base {base_named(run) or 'MODEL'} (in Python base=)",
        )
    elif not matrices.turns:
        notes.add("geometry", f"{begin}not measured; --geometry, or geometry=True, measures it however long it takes")
    for part, measure in (
        ("changes", matrices.measure_changes),
        ("distributions", matrices.measure_distributions),
        ("spectra", matrices.measure_spectra),
        ("base", matrices.measure_norms if run.base_from is not None else None),
        ("geometry", matrices.measure_geometry if matrices.turns else None),
    ):
        if measure is not None:
            with notes.part(part, begin):
                measure()
    return matrices.columns()


def _scalars(run: Trajectory, notes: Notes) -> dict[str, Column]:
    """The log: for every name its steps and its values, thinned evenly where there are many."""
    found: dict[str, Column] = {}
    with notes.part("scalars", f"{run.name}: "):
        by_name: dict[str, list[tuple[float, float]]] = {}
        for line in run.source.scalars():
            step = line.get("step")
            for name, value in line.items():
                if name != "step" and isinstance(step, int | float) and isinstance(value, int | float):
                    by_name.setdefault(name, []).append((float(step), float(value)))
        for name, points in by_name.items():
            kept = np.unique(np.linspace(0, len(points) - 1, min(len(points), MOST_SCALARS)).round().astype(int))
            found[f"scalar.{printable(name)}"] = exact(np.asarray(points)[kept].T)
    return found


def _module(runs: Sequence[Trajectory], chosen: Sequence[Sequence[str]], name: str) -> dict[str, Any]:
    run = next(run for run, names in zip(runs, chosen, strict=True) if name in names)
    labels = run.labels(name)
    return {
        "name": printable(name),
        "layer": labels["layer"],
        "kind": printable(labels["kind"]),
        "stack": stack_of(name),
        "shape": list(run.shape(name)),
    }


def _labelled(modules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give each module a short name of its own: layer and kind, with encoder or decoder where that takes it."""

    def short(module: dict[str, Any]) -> str:
        return module["kind"] if module["layer"] is None else f"{module['layer']} · {module['kind']}"

    with_stack = {id(module): f"{module['stack']} {short(module)}".strip() for module in modules}
    for name in (short, lambda module: with_stack[id(module)], lambda module: module["name"]):
        labels = [name(module) for module in modules]
        if len(set(labels)) == len(labels):
            break
    return [
        {key: value for key, value in module.items() if key != "stack"} | {"label": label}
        for module, label in zip(modules, labels, strict=True)
    ]


def _claims(runs: Sequence[Trajectory], notes: Notes, progress: bool, work: Work) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    with notes.part("claims"):
        found += claims_json(claims(gather(runs, list(PAPERS), progress=progress, work=work)))
    return found
