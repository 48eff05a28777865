"""What is in a run's folder, whether it is whole, and whether it is sound."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from deltaw.analysis.inspection.soundness import soundness
from deltaw.analysis.records.base import BaseLike
from deltaw.analysis.records.format import VERSION
from deltaw.analysis.records.open import is_own
from deltaw.analysis.records.recorded import Recorded
from deltaw.analysis.records.storage import without_secrets
from deltaw.analysis.trajectory import Trajectory


def inspect_run(
    path: str | Path,
    *,
    base: BaseLike = None,
    modules: Sequence[str] | None = None,
    verify: bool = False,
    check: bool = True,
    dtypes: Sequence[torch.dtype] = (torch.bfloat16, torch.float16),
    progress: bool = False,
) -> dict[str, Any]:
    """Return what a run holds and what is wrong with it, as plain values.

    Arguments:
        path, modules: See ``Trajectory.open``.
        base: The same; of a run of deltaw, which keeps its own, a model that this should be of.
        verify: Read every file and compare its checksum where there is one, and check every step, not only the first
            and the last two.
        check: Read weights and check that the run is sound; see ``soundness``.
        dtypes: See ``soundness``.
        progress: Show a progress bar.

    Returns:
        path, format, method, base (where W₀ comes from, or None), base_named (what an adapter's own configuration
        calls it, or None), modules (module, layer, kind, shape, method), steps,
        info; verified (number of files read, or None); checked (the steps that were looked at), findings (level, check,
        module, step, message), broken (whether one of them is), precision (module, layer, kind, step, dtype, entries,
        error). Of a run that deltaw recorded also version, options, run_id, created, and bytes (base, checkpoints).

    Raises:
        RecordError: Nothing readable is there, or something in it is damaged; names the file.
    """
    own = base is not None and is_own(path)
    run = Trajectory.open(path, base=None if own else base, modules=modules)
    found: dict[str, Any] = {"path": without_secrets(str(path)), "format": run.source.format, "method": run.method}
    if isinstance(run.source, Recorded):
        manifest = run.source.manifest
        checkpoints = sum(entry.file.bytes for entry in run.source.entries)
        found |= {
            "version": VERSION,
            "options": {entry.method: entry.options for entry in manifest.modules.values() if entry.method},
            "run_id": manifest.run_id,
            "created": manifest.created,
            "bytes": {"base": manifest.base.bytes, "checkpoints": checkpoints},
        }
    found |= {
        "base": run.base_from,
        "base_named": _base_named(run),
        "modules": [_module(run, name) for name in run.modules],
        "steps": run.steps,
        "info": run.info,
        "verified": run.verify() if verify and isinstance(run.source, Recorded) else None,
    }
    if check:
        sound = soundness(run, base=base if own else None, every_step=verify, dtypes=dtypes, progress=progress)
        found |= {
            "checked": sound.steps,
            "findings": [asdict(finding) for finding in sound.findings],
            "broken": sound.broken,
            "precision": sound.precision.to_dict(orient="records"),
        }
    return found


def _base_named(run: Trajectory) -> str | None:
    settings = run.info.get("peft")
    name, revision = (settings.get(k) for k in ("base_model_name_or_path", "revision")) if settings else (None, None)
    if not isinstance(name, str) or not name:
        return None
    return f"{name} at {revision}" if isinstance(revision, str) and revision else name


def _module(run: Trajectory, name: str) -> dict[str, Any]:
    labels = run.labels(name)
    method = labels["method"] if run.source.rebuilt(name) else "whole matrix"
    shown = {"module": name, "layer": labels["layer"], "kind": labels["kind"], "shape": list(run.shape(name))}
    return shown | {"method": method}
