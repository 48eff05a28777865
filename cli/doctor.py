"""``deltaw doctor``: what this machine has, and what each verb still needs."""

import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from deltaw.cli.commands import Command
from deltaw.cli.layout import terminal
from deltaw.cli.options import json_option
from deltaw.cli.output import emit, emit_json, in_columns
from deltaw.cli.waiting import POLICIES

if TYPE_CHECKING:
    from packaging.requirements import Requirement


class Need(NamedTuple):
    """What something needs: an extra of deltaw, other libraries, or one of several.

    Arguments:
        what: Verbs and options, or what is done in Python.
        extra: Of deltaw; empty for deltaw as it is.
        more: Libraries besides.
        one_of: Libraries of which one is enough.
    """

    what: str
    extra: str = ""
    more: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()


# Whoever develops deltaw has all of them.
NEEDS = (
    Need("inspect, repair, changes, rank, geometry, report, compare, advise, resize, plot, claims, packs"),
    Need("train cola, reproduce", "train"),
    Need("train vl, reproduce dora|all", "vl"),
    Need("params", more=("transformers",)),
    Need("train vl --vision timm/…, open_clip/…", "vision"),
    Need("train --method galore", "galore"),
    Need("train --base nf4", "quant"),
    Need("-o FILE.parquet", one_of=("pyarrow", "fastparquet")),
    Need("--engine dask", "cluster"),
    Need("runs at https://", "remote"),
    Need("runs at s3://", "remote", ("s3fs",)),
    Need("runs at hf://", "remote", ("huggingface_hub",)),
    Need("RecorderCallback", more=("transformers",)),
    Need("LightningRecorder", "lightning"),
    Need("notebooks", "notebook"),
)
NUMBERS = (
    *("torch", "numpy", "pandas", "numba", "safetensors", "matplotlib", "transformers", "peft"),
    *("wandb", "trackio", "tensorboard"),
)
MODULES = {  # names to import where they are not the distribution's
    "accelerate": "accelerate",
    "galore-torch": "galore_torch",
    "google-re2": "re2",
    "open-clip-torch": "open_clip",
    "pillow": "PIL",
    "scikit-learn": "sklearn",
}


@click.command("doctor", cls=Command)
@json_option
def command(as_json: bool) -> int:
    """Print versions, threads, GPUs, caches, and what each verb still needs.

    Exit code 1 where deltaw itself cannot work: a library that it needs is missing, too old, or cannot be loaded.

    \b
    Example:
      deltaw doctor
    """
    found = examined()
    broken = bool(found["broken"]) or found["verbs"][0]["state"] != "ready"
    if as_json:
        emit_json(found)
        return int(broken)
    verbs = found.pop("verbs")
    room = terminal()[0] - 2
    about = [{"": name, " ": text} for name, text in _lines(found)]
    emit(in_columns(about, tablefmt="plain", maxcolwidths=[None, room - max(len(row[""]) for row in about)]))
    emit("")
    emit(in_columns(verbs, maxcolwidths=[room // 2 - 4, room - room // 2 + 4]))
    return int(broken)


def examined() -> dict[str, Any]:
    """Return what this machine has, as plain values."""
    broken: dict[str, str] = {}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found: dict[str, Any] = {
        "deltaw": version("deltaw"),
        "python": f"{platform.python_version()}, {platform.system()} {platform.machine()}",
        "libraries": {name: there for name in NUMBERS if (there := _version(name)) is not None},
        "cores": cores,
        "threads": None,
        "set": {name: os.environ[name] for name in ("OMP_NUM_THREADS", *POLICIES) if name in os.environ},
        "compiled loops": None,
        "compiled code kept": None,
        "gpu": [],
        "kept tables": None,
        "broken": broken,
    }
    # Each apart: a library that is installed and cannot be loaded is what a doctor is asked about.
    for name, look in (("torch", _torch), ("numba", _loops), ("pandas", _tables)):
        try:
            found |= look()
        except Exception as error:
            broken[name] = f"{type(error).__name__}: {error}"
    return found | {"verbs": [_verb(need) for need in NEEDS]}


def _torch() -> dict[str, Any]:
    import torch

    gpus = []
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        gpus.append(f"{about.name}, {about.total_memory / 2**30:.0f} GiB")
    return {
        "threads": torch.get_num_threads(),
        "gpu": gpus or (["mps"] if torch.backends.mps.is_available() else []),
    }


def _loops() -> dict[str, Any]:
    from deltaw.adapters.compiled.loops import on_torch_threads

    threads = "on torch's threads" if on_torch_threads() else "on one thread, as OpenMP was not found"
    return {"compiled loops": threads, "compiled code kept": _writable(_numba_folder())}


def _tables() -> dict[str, Any]:
    from deltaw.analysis.tables.kept.files import cache_folder

    folder = cache_folder()
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    held = f", {sum(sizes) / 1e6:.1f} MB; it may be deleted at any time" if sizes else ""
    return {"kept tables": _writable(folder) + held}


def _lines(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in found.items():
        if isinstance(value, dict):
            text = ", ".join(f"{key} {entry}" for key, entry in value.items())
        elif isinstance(value, list):
            text = ", ".join(map(str, value))
        else:
            text = "not known" if value is None else str(value)
        if text or name == "gpu":
            yield name, text or "none"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _verb(need: Need) -> dict[str, str]:
    """What a verb needs: the libraries that are not here, are too old, or cannot be found by Python."""
    if need.extra and need.extra not in (metadata("deltaw").get_all("Provides-Extra") or []):
        return {"what": need.what, "state": f"install deltaw anew: this install is older than its extra {need.extra}"}
    lacks = list(dict.fromkeys([*_missing("deltaw", need.extra, set()), *filter(None, map(_lack, need.more))]))
    wanted = [f"'deltaw[{need.extra}]'"] if need.extra and _missing("deltaw", need.extra, set()) else []
    wanted += [name for name in need.more if _lack(name)]
    if need.one_of and all(map(_lack, need.one_of)):
        lacks, wanted = [*lacks, " or ".join(need.one_of)], [*wanted, need.one_of[0]]
    state = f"pip install {' '.join(wanted) or 'deltaw'}: lacks {', '.join(lacks)}" if lacks else "ready"
    return {"what": need.what, "state": state}


def _missing(name: str, extra: str, seen: set[tuple[str, str]]) -> list[str]:
    """Return what a distribution lacks of what it, or one of its extras, brings."""
    if (name, extra) in seen:
        return []
    seen.add((name, extra))
    found = []
    for requirement in _requirements(name):
        marker = requirement.marker
        wanted = (marker is None and not extra) or (marker is not None and bool(marker.evaluate({"extra": extra})))
        if not wanted or (extra and marker is not None and marker.evaluate({"extra": ""})):
            continue
        if requirement.name != "deltaw" and (lack := _lack(requirement.name, requirement)):
            found.append(lack)
        for more in sorted(requirement.extras):
            found += _missing(requirement.name, more, seen)
    return found


def _requirements(name: str) -> "list[Requirement]":
    from packaging.requirements import Requirement

    try:
        return list(map(Requirement, requires(name) or []))
    except PackageNotFoundError:
        return []


def _lack(name: str, requirement: "Requirement | None" = None) -> str | None:
    """What is wrong with a library; ``None`` where it is here, new enough and found by Python."""
    there = _version(name)
    if there is None:
        return name
    if requirement is not None and not requirement.specifier.contains(there, prereleases=True):
        return f"{name} {requirement.specifier} (here {there})"
    module = MODULES.get(name.lower(), name.lower().replace("-", "_"))
    if name not in sys.modules and _nowhere(module):
        return f"{name} (installed, and cannot be imported)"
    return None


def _nowhere(module: str) -> bool:
    try:
        return find_spec(module) is None
    except (ImportError, ValueError):
        return True


def _numba_folder() -> Path:
    import deltaw.adapters.compiled.sums as loops

    beside = Path(loops.__file__).parent / "__pycache__"
    return Path(os.environ.get("NUMBA_CACHE_DIR", beside if os.access(beside.parent, os.W_OK) else _user_cache()))


def _user_cache() -> Path:
    return Path.home() / (".cache" if sys.platform != "darwin" else "Library/Caches")


def _writable(folder: Path) -> str:
    there = next((place for place in (folder, *folder.parents) if place.exists()), folder)
    return str(folder) if os.access(there, os.W_OK) else f"{folder} cannot be written: nothing is kept"
