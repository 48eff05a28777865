"""The recorder: writes a model's weights as they move, and changes nothing in the training."""

import contextlib
import json
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from filelock import FileLock, Timeout
from safetensors.torch import save_file
from torch import Tensor, nn

from deltaw.adapters import AdaptedLayer, RecordError, TargetError, base_weight, effective_weight
from deltaw.adapters.inject import is_peft, linear_modules, matching, repeated
from deltaw.analysis.files import append_line, disk_errors, write_text, written_aside
from deltaw.analysis.record import (
    BASE,
    CHECKPOINTS,
    INDEX,
    MANIFEST,
    SCALARS,
    CheckpointEntry,
    FileEntry,
    Manifest,
    ModuleEntry,
    check_sum,
    checkpoint_path,
    complete_lines,
    digest,
    finite_or_none,
    read_index,
    read_manifest,
    read_tensors,
)
from deltaw.trainers.schedules import Schedule, every

LOCK = ".recording.lock"


class Recorder:
    """Record checkpoints of a model's linear layers into a run folder.

    Entering stores W₀ once; ``step`` writes a checkpoint where the schedule says so. Layers of ``deltaw.adapters`` are
    recorded as their own parameters, a few kilobytes, and W' is rebuilt from them when read; any other layer is
    recorded as its whole effective weight. A checkpoint appears whole or not at all, whenever the process dies.

    Nothing in the training changes: no random number is drawn, no gradient touched, weights are copied.

    Arguments:
        model: The model, with its method already injected.
        path: The run folder. It must not hold a run, unless ``resume``; other files in it are left alone.
        modules: Glob patterns over module names; ``None`` records every adapted layer, or, where there is none, every
            PEFT layer, or else every linear layer.
        when: Which steps to record; default every step.
        method: The method's name in the record; by default the adapters' own, ``ft`` for plain layers.
        info: Plain values to keep with the run, for example the command line.
        resume: Go on with the run in ``path``: its modules and, below adapters, its W₀ must be this model's.
            Checkpoints at or after the first step given now are dropped, because training has gone back behind them.

    Raises:
        RecordError: The folder holds a run, or another one, or is being recorded to.
        WriteError: It cannot be written.
        TargetError: A pattern matches nothing.

    Example:
        >>> import tempfile, torch
        >>> from deltaw.adapters import LoRA, inject
        >>> from deltaw.trainers import Recorder, every
        >>> model = inject(torch.nn.Sequential(torch.nn.Linear(6, 4)), LoRA(rank=2), targets=["0"])
        >>> with tempfile.TemporaryDirectory() as folder, Recorder(model, folder, when=every(10)) as recorder:
        ...     for step in range(31):
        ...         recorder.step(step, loss=0.5)
        ...     recorder.steps
        [0, 10, 20, 30]
    """

    def __init__(
        self,
        model: nn.Module,
        path: str | Path,
        modules: Sequence[str] | None = None,
        when: Schedule | None = None,
        *,
        method: str | None = None,
        info: dict[str, Any] | None = None,
        resume: bool = False,
    ) -> None:
        self.path = Path(path)
        self.when = when or every(1)
        self.modules = _recorded_modules(model, modules)
        self.steps: list[int] = []
        self._method = method or _method_name(self.modules.values())
        self._info = dict(info or {})
        self._resume = resume
        self._entries: list[CheckpointEntry] = []
        self._constants: set[str] = set()  # what the base's file holds and no checkpoint
        self._rewind = False
        self._lock: FileLock | None = None

    def __enter__(self) -> Self:
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(str(self.path / LOCK))
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise RecordError(f"{self.path}: another process is recording to it; choose another folder") from None
        self._lock = lock
        try:
            if (self.path / MANIFEST).exists():
                self._continue()
            else:
                self._begin()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the folder. What was recorded is already on the disk."""
        if self._lock is not None:
            self._lock.release()
            with contextlib.suppress(OSError):
                (self.path / LOCK).unlink()
            self._lock = None

    def step(self, step: int, **scalars: float) -> None:
        """Log the scalars of a step, and record a checkpoint where the schedule says so.

        Arguments:
            step: The number of optimizer steps taken so far; must rise from call to call that records.
            scalars: For example ``loss=…, learning_rate=…``.

        Raises:
            RecordError: The step does not rise.
            WriteError: The disk is full; everything recorded before stays.
        """
        if scalars:
            self.log(step, **scalars)
        if self.when(step):
            self.record(step)

    def log(self, step: int, **scalars: float) -> None:
        """Append a line of scalars to the record."""
        self._require_open()
        self._go_back_behind(step)
        line = {"step": step} | {name: finite_or_none(float(value)) for name, value in scalars.items()}
        append_line(self.path / SCALARS, json.dumps(line) + "\n", durable=False)

    def record(self, step: int) -> None:
        """Record a checkpoint now, whatever the schedule says; a step already recorded is left as it is."""
        self._require_open()
        self._go_back_behind(step)
        if self.steps and step == self.steps[-1]:
            return
        if step < 0 or (self.steps and step < self.steps[-1]):
            last = f"after step {self.steps[-1]}" if self.steps else "as the first"
            raise RecordError(f"{self.path}: step {step} {last}; steps must rise from 0 on")
        tensors = {f"{name}.{key}": value for name, m in self.modules.items() for key, value in _state(m).items()}
        tensors = {name: value for name, value in tensors.items() if name not in self._constants}
        entry = CheckpointEntry(step, _write_tensors(checkpoint_path(self.path, step), tensors))
        append_line(self.path / INDEX, entry.to_json(), durable=True)
        self._entries.append(entry)
        self.steps.append(step)

    def _begin(self) -> None:
        with disk_errors(self.path):
            (self.path / CHECKPOINTS).mkdir(exist_ok=True)
        base = {name: base_weight(module) for name, module in self.modules.items()}
        constants = _constants(self.modules)
        same = repeated(constants)
        manifest = Manifest(
            run_id=uuid.uuid4().hex,
            method=self._method,
            modules={name: _entry(module, base[name]) for name, module in self.modules.items()},
            base=_write_tensors(self.path / BASE, base | {k: v for k, v in constants.items() if k not in same}),
            constants={name: same.get(name, name) for name in constants},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            deltaw=_version(),
            info=self._info,
        )
        write_text(self.path / MANIFEST, manifest.to_json())
        self._constants = set(manifest.constants)

    def _continue(self) -> None:
        manifest = read_manifest(self.path)
        if not self._resume:
            raise RecordError(
                f"{self.path}: already holds a run (method {manifest.method}); resume it, or choose another folder"
            )
        base = {name: base_weight(module) for name, module in self.modules.items()}
        wanted = {name: _entry(module, base[name]) for name, module in self.modules.items()}
        if wanted.keys() != manifest.modules.keys():
            odd = sorted(wanted.keys() ^ manifest.modules.keys())[0]
            raise RecordError(f"{self.path}: cannot be resumed, its modules are others (for example {odd!r})")
        for name, entry in wanted.items():
            if entry != manifest.modules[name]:
                raise RecordError(
                    f"{self.path}: cannot be resumed, {name!r} was recorded as {manifest.modules[name]}, not {entry}"
                )
        check_sum(self.path / BASE, manifest.base)
        # A plain layer has no base of its own to compare: what it holds now has moved away from W₀.
        frozen = {name: name for name, m in self.modules.items() if isinstance(m, AdaptedLayer) or is_peft(m)}
        here = base | _constants(self.modules)
        for name, there in read_tensors(self.path / BASE, frozen | manifest.constants).items():
            if name not in here or not torch.equal(there, here[name].detach().cpu()):
                raise RecordError(f"{self.path}: cannot be resumed, its base of {name!r} is not this model's")
        for log in (INDEX, SCALARS):
            self._drop_cut_line(self.path / log)
        self._constants = set(manifest.constants)
        self._entries = read_index(self.path)
        self.steps = [entry.step for entry in self._entries]
        self._rewind = True

    def _go_back_behind(self, step: int) -> None:
        """On the first step of a resumed run, drop what was recorded from there on: training has gone back."""
        if not self._rewind:
            return
        self._rewind = False
        dropped = [entry for entry in self._entries if entry.step >= step]
        if dropped:
            self._entries = [entry for entry in self._entries if entry.step < step]
            self.steps = [entry.step for entry in self._entries]
            write_text(self.path / INDEX, "".join(entry.to_json() for entry in self._entries))
            for entry in dropped:
                checkpoint_path(self.path, entry.step).unlink(missing_ok=True)
        lines = [line for _, line in complete_lines(self.path / SCALARS)]
        kept = [line for line in lines if json.loads(line).get("step", 0) < step]
        if len(kept) < len(lines):
            write_text(self.path / SCALARS, "".join(line + "\n" for line in kept))

    def _drop_cut_line(self, path: Path) -> None:
        whole = "".join(line + "\n" for _, line in complete_lines(path))
        if path.exists() and path.stat().st_size != len(whole.encode()):
            write_text(path, whole)

    def _require_open(self) -> None:
        if self._lock is None:
            raise RecordError(f"{self.path}: the recorder is not open; use it in a with statement")


def _recorded_modules(model: nn.Module, patterns: Sequence[str] | None) -> dict[str, nn.Module]:
    layers = dict(linear_modules(model))
    if patterns is not None:
        chosen = matching(layers, [patterns] if isinstance(patterns, str) else patterns, "module")
        return {name: layers[name] for name in chosen}
    own: dict[str, nn.Module] = {name: module for name, module in layers.items() if isinstance(module, AdaptedLayer)}
    if own:
        return own
    peft = {name: module for name, module in layers.items() if is_peft(module)}
    found = peft or layers
    if not found:
        raise TargetError("the model has no linear layer to record")
    return found


def _method_name(modules: Any) -> str:
    names = {m.method.name if isinstance(m, AdaptedLayer) else _foreign_name(m) for m in modules}
    return "+".join(sorted(names))


def _foreign_name(module: nn.Module) -> str:
    return "peft" if is_peft(module) else "ft"


def _entry(module: nn.Module, base: Tensor) -> ModuleEntry:
    rows, columns = base.shape
    dtype = str(base.dtype).removeprefix("torch.")
    if isinstance(module, AdaptedLayer):
        # Through JSON, so that it compares equal to what is read back.
        options = json.loads(json.dumps(module.method.options()))
        return ModuleEntry((rows, columns), dtype, module.method.name, options)
    return ModuleEntry((rows, columns), dtype)


def _state(module: nn.Module) -> dict[str, Tensor]:
    if isinstance(module, AdaptedLayer):
        module.method.observe(module)
        return module.state()
    return {"weight": effective_weight(module)}


def _constants(modules: dict[str, nn.Module]) -> dict[str, Tensor]:
    """What the methods of the modules draw once and never change."""
    layers = {name: module for name, module in modules.items() if isinstance(module, AdaptedLayer)}
    return {f"{name}.{key}": layer.tensor(key) for name, layer in layers.items() for key in layer.constants()}


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> FileEntry:
    # Copied one by one: tied or transposed weights share storage, which the format does not allow.
    copies = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
    with written_aside(path) as aside:
        aside.touch()
        mode = aside.stat().st_mode  # the user's own default; save_file makes its files private
        save_file(copies, str(aside))
        aside.chmod(mode)
        return FileEntry(aside.stat().st_size, digest(aside))


def _version() -> str:
    try:
        return version("deltaw")
    except PackageNotFoundError:
        return "unknown"
