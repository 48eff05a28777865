"""``deltaw doctor``: what this machine has, and what each verb still needs."""

import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import click

from deltaw.cli.commands import Command
from deltaw.cli.options import json_option
from deltaw.cli.output import emit, emit_json, in_columns
from deltaw.cli.waiting import POLICIES

# What needs more than deltaw itself: the extra that has it. Whoever develops deltaw has all of them.
NEEDS = {
    "train cola, reproduce": "train",
    "train cola --method galore": "galore",
    "train cola --base nf4": "quant",
    "train vl": "vl",
    "changes --engine dask": "cluster",
    "LightningRecorder": "lightning",
    "runs at s3://, hf://, https://": "remote",
    "notebooks": "notebook",
}
NUMBERS = ("torch", "numpy", "pandas", "numba", "safetensors", "matplotlib", "transformers", "peft")


@click.command("doctor", cls=Command)
@json_option
def command(as_json: bool) -> None:
    """Print versions, threads, GPUs, caches, and what each verb still needs.

    \b
    Example:
      deltaw doctor
    """
    found = examined()
    if as_json:
        emit_json(found)
        return
    verbs = found.pop("verbs")
    emit(in_columns([{"": name, " ": text} for name, text in _lines(found)], tablefmt="plain"))
    emit("")
    emit(in_columns(verbs))


def examined() -> dict[str, Any]:
    """Return what this machine has, as plain values."""
    import torch

    from deltaw.adapters.compiled.loops import on_torch_threads
    from deltaw.analysis.tables.kept.files import cache_folder

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    chosen = {name: os.environ[name] for name in ("OMP_NUM_THREADS", *POLICIES) if name in os.environ}
    return {
        "deltaw": version("deltaw"),
        "python": f"{platform.python_version()}, {platform.system()} {platform.machine()}",
        "libraries": {name: found for name in NUMBERS if (found := _version(name)) is not None},
        "cores": cores,
        "threads": torch.get_num_threads(),
        "set": chosen,
        "compiled loops": "on torch's threads" if on_torch_threads() else "on one thread, as OpenMP was not found",
        "compiled code kept": _writable(_numba_folder()),
        "gpu": gpus or (["mps"] if torch.backends.mps.is_available() else []),
        "kept tables": _writable(cache_folder()),
        "verbs": [_verb(verb, extra) for verb, extra in NEEDS.items()],
    }


def _lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in found.items():
        if isinstance(value, dict):
            text = ", ".join(f"{key} {entry}" for key, entry in value.items())
        elif isinstance(value, list):
            text = ", ".join(map(str, value))
        else:
            text = str(value)
        yield name, text or "none"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _verb(verb: str, extra: str) -> dict[str, str]:
    """What a verb needs: the libraries of its extra that are not here, or are too old."""
    from packaging.requirements import Requirement

    missing = []
    for requirement in map(Requirement, requires("deltaw") or []):
        if requirement.marker is None or not requirement.marker.evaluate({"extra": extra}):
            continue
        there = _version(requirement.name)
        if there is None:
            missing.append(requirement.name)
        elif not requirement.specifier.contains(there, prereleases=True):
            missing.append(f"{requirement.name} {requirement.specifier} (here {there})")
    state = f"pip install 'deltaw[{extra}]': lacks {', '.join(missing)}" if missing else "ready"
    return {"what": verb, "state": state}


def _numba_folder() -> Path:
    import deltaw.adapters.compiled.sums as loops

    beside = Path(loops.__file__).parent / "__pycache__"
    return Path(os.environ.get("NUMBA_CACHE_DIR", beside if os.access(beside.parent, os.W_OK) else _user_cache()))


def _user_cache() -> Path:
    return Path.home() / (".cache" if sys.platform != "darwin" else "Library/Caches")


def _writable(folder: Path) -> str:
    there = next((place for place in (folder, *folder.parents) if place.exists()), folder)
    return str(folder) if os.access(there, os.W_OK) else f"{folder} cannot be written: nothing is kept"
