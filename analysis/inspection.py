"""What is recorded in a folder, and whether it is whole."""

from pathlib import Path
from typing import Any

from deltaw.analysis.names import kind_of, layer_of
from deltaw.analysis.record import FORMAT, VERSION, read_index
from deltaw.analysis.trajectory import Trajectory


def inspect_run(path: str | Path, *, verify: bool = False) -> dict[str, Any]:
    """Return what is recorded in a run folder, as plain values.

    Arguments:
        path: The run folder.
        verify: Also read every file and compare its checksum.

    Returns:
        path, format, version, method, options, run_id, created, modules (name, layer, kind, shape, dtype, method),
        steps, bytes (base, checkpoints), verified (number of files read, or None).

    Raises:
        RecordError: The folder is no run, or something in it is damaged; names the file.
    """
    run = Trajectory.open(path)
    manifest = run.manifest
    options = {entry.method: entry.options for entry in manifest.modules.values() if entry.method}
    checkpoints = read_index(run.path)
    return {
        "path": str(path),
        "format": FORMAT,
        "version": VERSION,
        "method": run.method,
        "options": options,
        "run_id": manifest.run_id,
        "created": manifest.created,
        "modules": [
            {
                "module": name,
                "layer": layer_of(name),
                "kind": kind_of(name),
                "shape": list(entry.shape),
                "dtype": entry.dtype,
                "method": entry.method or "whole matrix",
            }
            for name, entry in manifest.modules.items()
        ],
        "steps": run.steps,
        "bytes": {"base": manifest.base.bytes, "checkpoints": sum(entry.file.bytes for entry in checkpoints)},
        "verified": run.verify() if verify else None,
    }
