"""The content of a run's folder, whether it is whole, and whether it is sound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from deltaw.adapters.checks import public
from deltaw.adapters.errors import OptionError
from deltaw.adapters.peft.names import RECORD
from deltaw.analysis.names import kind_of, layer_of
from deltaw.analysis.records.foreign.base import BaseLike
from deltaw.analysis.records.open import glance, is_own
from deltaw.analysis.records.run_folder.format import ModuleEntry
from deltaw.analysis.records.source import Source

if TYPE_CHECKING:
    from deltaw.analysis.measures.survival import Stored


class OpenedRun(Protocol):
    """A run that is open already, as a ``Trajectory``."""

    @property
    def source(self) -> Source:
        """Where its weights come from."""


@public
def inspect_run(
    run: str | Path | OpenedRun,
    *,
    base: BaseLike = None,
    modules: Sequence[str] | None = None,
    verify: bool = False,
    check: bool = True,
    dtypes: Sequence[Stored] | None = None,
    merge_into: BaseLike = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Return what a run holds and what is wrong with it, as plain values.

    Arguments:
        run: A folder, a file or an address, or a run that is open.
        modules: See ``Trajectory.open``.
        base: The same; of a run of deltaw, which keeps its own, a model that this should be of.
        verify: Read every file and compare its checksum where there is one, and check every step, not only the first
            and the last two.
        check: Read weights and check that the run is sound; see ``soundness``. Without it, names and sizes alone are
            looked at, and a run of deltaw is inspected without loading torch.
        dtypes: See ``soundness``; by default bfloat16 and float16, and with ``merge_into`` "nf4".
        merge_into: The same.
        progress: Show a progress bar.

    Returns:
        path, format, method, base (where W₀ comes from, or None), base_named (what an adapter's own configuration
        calls it, or None), modules (module, layer, kind, shape, method), steps, steps_known (whether the files say
        the steps; if not, steps holds a label), unfinished (whether the run is still being recorded, or its recorder
        was killed), info; left_out (of a whole model what is not shown, by sort: sort,
        tensors, entries, share of ‖ΔW‖² where the base is known and ``check`` is set, unknown: how many the base has
        not); verified (number of files read, or None); checked (the steps
        that were looked at), findings (level, check, module, step, message), broken (whether one of them is),
        precision (module, layer, kind, step, dtype, entries, error), merges (module, layer, kind, step, distance,
        error). Of a run that deltaw recorded also version,
        options, run_id, created, and bytes (base, checkpoints).

    Raises:
        RecordError: Nothing readable is there, or something in it is damaged; names the file.
        OptionError: ``run`` is nothing of that kind.
    """
    source, own = _opened(run, base, modules)
    found: dict[str, Any] = {"path": source.where, "format": source.format, "method": source.method}
    if source.manifest is not None:
        manifest = source.manifest
        found |= {
            "version": manifest.version,
            "options": {entry.method: _options(entry) for entry in manifest.modules.values() if entry.method},
            "run_id": manifest.run_id,
            "created": manifest.created,
            "bytes": {"base": manifest.base.bytes, "checkpoints": source.checkpoint_bytes()},
        }
    found |= {
        "base": source.base_from,
        "base_named": _base_named(source),
        "modules": [_module(source, name) for name in source.shapes],
        "steps": list(source.steps),
        "steps_known": source.steps_known,
        "unfinished": source.unfinished(),
        "info": source.info,
        "left_out": [asdict(sort) for sort in source.left_out(list(source.shapes), shares=check)],
        "verified": source.verify() if verify and source.manifest is not None else None,
    }
    if check:
        # Checks read weights, which takes torch; names and sizes do not.
        from deltaw.analysis.inspection.soundness import DTYPES, soundness
        from deltaw.analysis.trajectory import Trajectory

        source.check_methods()
        given = base if own else None
        stored = dtypes or (*DTYPES, *(() if merge_into is None else ("nf4",)))
        sound = soundness(
            Trajectory(source),
            base=given,
            every_step=verify,
            dtypes=stored,
            merge_into=merge_into,
            progress=progress,
        )
        found |= {
            "checked": sound.steps,
            "findings": [asdict(finding) for finding in sound.findings],
            "broken": sound.broken,
            "precision": sound.survivals,
            "merges": sound.merges,
        }
    return found


def _opened(run: str | Path | OpenedRun, base: BaseLike, modules: Sequence[str] | None) -> tuple[Source, bool]:
    """The source, and whether it keeps a base of its own beside the one that was given."""
    if isinstance(run, (str, Path)):
        own = base is not None and is_own(run)
        return glance(run, base=None if own else base, modules=modules), own
    source = getattr(run, "source", None)
    if not isinstance(source, Source):
        raise OptionError(f"run is a {type(run).__name__}; give the run's folder, a file, an address or an opened run")
    if modules is not None or (base is not None and not source.keeps_base):
        raise OptionError("an opened run has its base and its modules; leave base and modules out, or give its folder")
    return source, base is not None


def _options(entry: ModuleEntry) -> dict[str, Any]:
    """A method's options; of one of PEFT's types its settings that are plain values."""
    settings = entry.options.get("settings")
    if not str(entry.method).startswith(RECORD) or not isinstance(settings, dict):
        return entry.options
    return {key: value for key, value in settings.items() if isinstance(value, str | int | float)}


def _base_named(source: Source) -> str | None:
    settings = source.info.get("peft") or source.info.get("settings_beside") or {}
    name, revision = settings.get("base_model_name_or_path") or settings.get("model"), settings.get("revision")
    if not isinstance(name, str) or not name:
        return None
    return f"{name} at {revision}" if isinstance(revision, str) and revision else name


def _module(source: Source, name: str) -> dict[str, Any]:
    method = source.label(name) if source.rebuilt(name) else "whole matrix"
    shown = {"module": name, "layer": layer_of(name), "kind": kind_of(name), "shape": list(source.shapes[name])}
    return shown | {"method": method}
