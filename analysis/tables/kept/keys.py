"""What kept rows rest on, as keys: the arithmetic, and the files that were read.

The arithmetic: deltaw's version and its source text, so that no change of a formula needs a number raised; the
versions of torch, NumPy and numba and the processor, whose last digits may differ; the measure and its options; the
device.

The files: of each its size, inode and times, and what a run's index says of its checksum. The time of the last change
cannot be set back, so a file that is written to is another one, whatever its other times say.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import json
import platform
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deltaw.analysis.records.source import Source
from deltaw.analysis.tables.run import Step

_ROOMS = ("adapters", "analysis/measures", "analysis/tables", "analysis/records")  # what numbers follow from
SETTLED = 2.0  # seconds: a file that was changed so shortly before it was read may change unnoticed, at the same time


def arithmetic(measure: Callable[..., Any], device: str) -> str | None:
    """Return the key of all that decides the digits but the files, ``None`` where it cannot be told.

    Arguments:
        measure: A function of this package, perhaps with options by ``functools.partial``. What another package
            measures is not kept: nothing tells when it changes.
        device: Where it is measured.

    Example:
        >>> from functools import partial
        >>> from deltaw.analysis.tables.regions import regions_table as mine
        >>> arithmetic(partial(mine, steps=[1]), "cpu") == arithmetic(partial(mine, steps=[2]), "cpu")
        False
        >>> arithmetic(lambda stop: [], "cpu") is None
        True
    """
    options: dict[str, Any] = {}
    function: Any = measure
    while isinstance(function, functools.partial):
        if function.args:
            return None
        function, options = function.func, function.keywords | options
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"
    if not name.startswith("deltaw.") or "<" in name:
        return None
    try:
        text = json.dumps([name, {key: _plain(value) for key, value in sorted(options.items())}])
    except TypeError:  # as another run
        return None
    return digest(text, _of_device(device), *_machine())


def digest(*texts: str) -> str:
    """Return one key of several texts, each apart."""
    found = hashlib.blake2b(digest_size=16)
    for text in texts:
        data = text.encode()
        found.update(len(data).to_bytes(8, "little") + data)
    return found.hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [value.dtype.name, value.tolist()]
    if isinstance(value, list | tuple | range):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"a {type(value).__name__}")


def _of_device(device: str) -> str:
    found = torch.device(device)
    if found.type == "cuda" and torch.cuda.is_available():  # it need not be here: another machine may measure
        return f"cuda {torch.cuda.get_device_name(found)} {torch.version.cuda}"
    return found.type


def machine() -> str:
    """Return the key of what decides the last digits in this process: the versions, the code and the processor."""
    return digest(*_machine())


@functools.cache
def _machine() -> tuple[str, ...]:
    """The versions and the processor."""
    versions = [f"numpy {np.__version__}", f"torch {torch.__version__}"]
    for name in ("deltaw", "numba"):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    return *versions, _source_text(), torch.backends.cpu.get_cpu_capability(), platform.machine(), _processor()


def _source_text() -> str:
    """The checksum of the code: a few milliseconds."""
    found = hashlib.blake2b(digest_size=16)
    for room in _ROOMS:
        # The rooms stand where the packages' paths say, which differs between a checkout and a wheel.
        package, _, inner = room.partition("/")
        spec = importlib.import_module(f"deltaw.{package}")
        top = Path(str(spec.__file__)).parent / inner
        for path in sorted(top.rglob("*.py")):
            found.update(str(path.relative_to(top)).encode() + path.read_bytes())
    return found.hexdigest()


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            lines = file.read(2**13).split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part")))


class Stamps:
    """What the files of a run are at the moment, by step."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._found: dict[Step, tuple[str, float] | None] = {}

    def of(self, step: Step) -> tuple[str, float] | None:
        """Return the key of what a step is read from and the time it was last changed, ``None`` where none tells."""
        if step not in self._found:
            self._found[step] = self._looked_at(step)
        return self._found[step]

    def _looked_at(self, step: Step) -> tuple[str, float] | None:
        places = self._source.places(step)
        if places is None:
            return None
        texts, last = [], 0.0
        for storage, name in places:
            found = storage.stamps(name)
            if not found:
                return None
            texts += [f"{file} {stamp}" for file, (stamp, _) in sorted(found.items())]
            last = max(last, newest(found.values()))
        return digest(self._source.checksum(step), *texts), last


def newest(stamps: Iterable[tuple[str, float]]) -> float:
    """Return the time of the last change."""
    return max((changed for _, changed in stamps), default=0.0)
