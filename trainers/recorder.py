"""The recorder: writes a model's weights as they move, and changes nothing in the training."""

import contextlib
import json
import logging
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deltaw.adapters.errors import OptionError, RecordError
from deltaw.adapters.injection import repeated
from deltaw.adapters.sharded import full, is_spread
from deltaw.analysis.records.atomic import append_line, atomic_write, disk_errors, write_text
from deltaw.analysis.records.format import (
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
from deltaw.trainers.budget import Budget, amount, file_bytes, planned, stride
from deltaw.trainers.distributed import is_writer, local, reshard, share
from deltaw.trainers.live import Log, Numbers, live_changes
from deltaw.trainers.recorded_layers import Layer, is_frozen, method_name, parts, recorded_layers, start, unwrapped
from deltaw.trainers.schedules import Schedule, every
from deltaw.trainers.writer import Writer

LOCK = ".recording.lock"
NARROWER = (torch.float32, torch.bfloat16, torch.float16)
logger = logging.getLogger(__name__)


class Recorder:
    """Record checkpoints of a model's linear layers into a run folder.

    Entering stores W₀ once; ``step`` writes a checkpoint where the schedule says so. Layers of ``deltaw.adapters`` and
    PEFT's LoRA, rsLoRA, DoRA, PiSSA and OLoRA are recorded as their own parameters, a few kilobytes, and W' is rebuilt
    from them when read; any other layer is recorded as its whole effective weight. A checkpoint appears whole or not
    at all, whenever the process dies.

    Nothing in the training changes: no random number is drawn, no gradient touched, weights are copied.

    In several processes each makes the same calls. Rank 0 writes. Where weights are spread over processes (FSDP2,
    tensor parallelism), entering and recording are collective, and the recorded matrices are gathered one at a time.

    Arguments:
        model: The model, with its method already injected; wrapped (DDP, ``torch.compile``, Accelerate) or not.
        path: The run folder. It must not hold a run, unless ``resume``; other files in it are left alone.
        modules: Glob patterns over module names; ``None`` records every adapted layer, or, where there is none, every
            PEFT layer, or else every linear layer.
        when: Which steps to record; default every step.
        method: The method's name in the record; by default the adapters' own, ``ft`` for plain layers.
        info: Plain values to keep with the run, for example the command line.
        resume: Go on with the run in ``path``: its modules and, below adapters, its W₀ must be this model's.
            Checkpoints at or after the first step given now are dropped, because training has gone back behind them.
        dtype: Record whole matrices, and their W₀, in float32, bfloat16 or float16 where they are wider. The rounding
            is the noise floor of their spectra. The tensors of a method are never rounded.
        scalars: Glob patterns over the names of the scalars to keep; ``None`` keeps all.
        keep: Keep at most so many checkpoints of the schedule. When there are more, every second one is dropped, and
            from there on only every second is recorded. Those of ``record`` come on top.
        total_steps: The last step of the training, where it is known; for the plan.
        max_bytes: Refuse to start where the plan is larger. Needs ``total_steps`` or ``keep``.
        background: How many checkpoints may wait to be written by a thread while training goes on; 0 writes each
            before ``step`` returns. Each that waits takes its size in memory.
        live: Compute ΔM and ΔD of each recorded step; ``step`` returns them.
        log: Is called with them and the step: ``wandb.log``, ``trackio.log``, ``accelerator.log``. Sets ``live``.

    Raises:
        RecordError: The folder holds a run, or another one, or is being recorded to, or the plan is too large.
        OptionError: An option is out of its range.
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
        dtype: torch.dtype | None = None,
        scalars: Sequence[str] | None = None,
        keep: int | None = None,
        total_steps: int | None = None,
        max_bytes: int | None = None,
        background: int = 0,
        live: bool = False,
        log: Log | None = None,
    ) -> None:
        _check_options(dtype, keep, total_steps, max_bytes, background)
        self.path = Path(path)
        self.when = when or every(1)
        self.model = unwrapped(model)
        self.layers = recorded_layers(self.model, modules)
        self.steps: list[int] = []
        self.last_changes: Numbers = {}
        self.budget: Budget | None = None
        self._method = method or method_name(self.layers)
        self._info = dict(info or {})
        self._resume = resume
        self._dtype, self._scalars, self._keep = dtype, scalars, keep
        self._total_steps, self._max_bytes = total_steps, max_bytes
        self._live, self._log = live or log is not None, log
        self._writer = Writer(background)
        self._whole = {key for name, of in self.layers.items() if of.method is None for key in (name, f"{name}.weight")}
        self._open = False
        self._writes, self._spread = True, False  # settled on entering
        self._entries: list[CheckpointEntry] = []
        self._constants: dict[str, str] = {}  # what the base's file holds and no checkpoint
        self._before: dict[str, Tensor] | None = None  # the last checkpoint, for the live numbers
        self._hits: dict[int, int] = {}  # step -> how many steps of the schedule lie before it
        self._counted = (0, 0)  # up to which step they are counted, and how many there were
        self._rewind = False
        self._lock: FileLock | None = None

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The recorded modules by name."""
        return {name: layer.module for name, layer in self.layers.items()}

    def __enter__(self) -> Self:
        reshard(self.model)
        self._writes = is_writer()
        self._spread = any(is_spread(p) for module in self.modules.values() for p in module.parameters())
        if self._writes or self._spread:
            base, constants = self._start()
            self._plan(base | constants)
            try:
                self._rewind = self._together(self._take)
                copies = self._copied((base | constants).items())
                self.steps = self._together(lambda: self._continue(copies) if self._rewind else self._begin(copies))
            except BaseException:
                self.close()
                raise
        self._open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Exception as late:
            if error is None:
                raise
            error.add_note(f"Besides, the record is not whole: {late}")

    def close(self) -> None:
        """Wait until everything is written, and release the folder.

        Raises:
            WriteError: A checkpoint that waited could not be written, and no ``step`` has said so.
        """
        self._open = False
        try:
            self._writer.close()
        finally:
            if self._lock is not None:
                with contextlib.suppress(OSError):
                    (self.path / LOCK).unlink()  # while it is held: after that it could be another's
                self._lock.release()
                self._lock = None

    def step(self, step: int, **scalars: float) -> Numbers | None:
        """Log the scalars of a step, and record a checkpoint where the schedule says so.

        Arguments:
            step: The number of optimizer steps taken so far; must rise from call to call that records.
            scalars: For example ``loss=…, learning_rate=…``.

        Returns:
            The live numbers, where they are wanted and the step was recorded: the mean ΔM and ΔD of the modules of
            each kind, against the checkpoint before and against W₀, {"delta_m/consecutive/query/row": …}.

        Raises:
            RecordError: The step does not rise.
            WriteError: The disk is full; everything recorded before stays. With ``background`` it comes with the next
                step after the one that could not be written.
        """
        self._require_open()
        self._writer.check()
        if scalars:
            self.log(step, **scalars)
        if self.when(step) and self._stays(step):
            return self.record(step)
        return None

    def log(self, step: int, **scalars: float) -> None:
        """Append a line of scalars to the record."""
        self._require_open()
        self._go_back_behind(step)
        kept = {name: value for name, value in scalars.items() if self._is_kept(name)}
        if self._writes and kept:
            line = {"step": step} | {name: finite_or_none(float(value)) for name, value in kept.items()}
            append_line(self.path / SCALARS, json.dumps(line) + "\n", durable=False)

    def record(self, step: int) -> Numbers | None:
        """Record a checkpoint now, whatever the schedule says; a step already recorded is left as it is.

        Returns, raises:
            As ``step``.
        """
        self._require_open()
        if not (self._writes or self._spread):
            return None
        self._together(self._writer.wait_for_room)
        self._go_back_behind(step)
        if self.steps and step == self.steps[-1]:
            return None
        if step < 0 or (self.steps and step < self.steps[-1]):
            last = f"after step {self.steps[-1]}" if self.steps else "as the first"
            raise RecordError(f"{self.path}: step {step} {last}; steps must rise from 0 on")
        if self._spread:
            reshard(self.model)
        before = self._checkpoint_before() if self._live and self._writes else None
        copies = self._copied(self._parts())
        dropped = self._thinned(step)
        if self._writes:
            self._writer.submit(lambda: self._write(step, copies, dropped))
        self.steps = [*(s for s in self.steps if s not in dropped), step]
        if not (self._live and self._writes):
            return None
        self._before = copies
        methods = {name: layer.method for name, layer in self.layers.items()}
        self.last_changes = live_changes(methods, self._base_of, before, copies)
        logger.info("step %d: %s", step, ", ".join(f"{name} {value:.3g}" for name, value in self.last_changes.items()))
        if self._log is not None:
            self._log(self.last_changes, step)
        return self.last_changes

    def flush(self) -> None:
        """Wait until every checkpoint recorded so far is on the disk.

        Raises:
            WriteError: As ``step``.
        """
        self._writer.flush()

    def _start(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """W₀ by module, and by MODULE.NAME what never changes, each once."""
        base: dict[str, Tensor] = {}
        constants: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            base[name], own = start(layer)
            constants |= {f"{name}.{key}": value for key, value in own.items()}
        same = repeated({name: local(value) for name, value in constants.items()})
        self._constants = {name: same.get(name, name) for name in constants}
        return base, {name: value for name, value in constants.items() if name not in same}

    def _parts(self) -> Iterator[tuple[str, Tensor]]:
        """What a checkpoint holds, a layer at a time, so that no more is put together at once."""
        for name, layer in self.layers.items():
            for key, value in parts(layer).items():
                if f"{name}.{key}" not in self._constants:
                    yield f"{name}.{key}", value

    def _copied(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Copies on the CPU, which training cannot overwrite; collective where weights are spread."""
        copies = {}
        for name, value in tensors:
            whole = full(value.detach())
            dtype = self._stored(name, whole.dtype)
            if dtype == torch.float16 != whole.dtype and bool((whole.abs() > torch.finfo(dtype).max).any()):
                raise RecordError(f"{self.path}: {name} has entries beyond float16; record in bfloat16")
            if self._writes:
                copies[name] = whole.to("cpu", dtype, copy=True, memory_format=torch.contiguous_format)
        return copies

    def _stored(self, name: str, dtype: torch.dtype) -> torch.dtype:
        narrower = self._dtype is not None and name in self._whole and self._dtype.itemsize < dtype.itemsize
        return self._dtype if narrower and self._dtype is not None else dtype

    def _plan(self, first: Mapping[str, Tensor]) -> None:
        """Say what the record will take, and refuse what is too large; nothing is written yet."""
        base, checkpoint = (
            file_bytes({name: (value.shape, self._stored(name, value.dtype)) for name, value in tensors})
            for tensors in (first.items(), self._parts())
        )
        self.budget = Budget(base, checkpoint, planned(self.when, self._total_steps, self._keep))
        total = self.budget.total
        if self._max_bytes is not None and total is not None and total > self._max_bytes:
            raise RecordError(
                f"{self.path}: the record would take {total} bytes ({self.budget}), and max_bytes is "
                f"{self._max_bytes} ({amount(self._max_bytes)}); record less often, fewer modules, or set keep or dtype"
            )
        if self._writes:
            logger.info("%s: %s", self.path, self.budget)

    def _together(self, job: Callable[[], Any]) -> Any:
        """Have it done by the process that writes; where weights are spread, all get what came of it."""
        result, error = None, None
        if self._writes:
            try:
                result = job()
            except Exception as caught:
                error = caught
        if self._spread:
            # A process that went on alone would wait for the others in the next gathering.
            text, result = share((None if error is None else str(error), result))
            if error is None and text is not None:
                raise RecordError(text)
        if error is not None:
            raise error
        return result

    def _take(self) -> bool:
        """Take the folder; whether it holds a run to go on with."""
        with disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(str(self.path / LOCK))
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise RecordError(f"{self.path}: another process is recording to it; choose another folder") from None
        self._lock = lock
        if not (self.path / MANIFEST).exists():
            return False
        if not self._resume:
            manifest = read_manifest(self.path)
            raise RecordError(
                f"{self.path}: already holds a run (method {manifest.method}); resume it, or choose another folder"
            )
        return True

    def _begin(self, first: dict[str, Tensor]) -> list[int]:
        with disk_errors(self.path):
            (self.path / CHECKPOINTS).mkdir(exist_ok=True)
        manifest = Manifest(
            run_id=uuid.uuid4().hex,
            method=self._method,
            modules={name: _entry(layer, first[name]) for name, layer in self.layers.items()},
            base=_write_tensors(self.path / BASE, first),
            constants=self._constants,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            deltaw=_version(),
            info=self._info,
        )
        write_text(self.path / MANIFEST, manifest.to_json())
        return []

    def _continue(self, here: dict[str, Tensor]) -> list[int]:
        manifest = read_manifest(self.path)
        wanted = {name: _entry(layer, here[name]) for name, layer in self.layers.items()}
        if wanted.keys() != manifest.modules.keys():
            odd = sorted(wanted.keys() ^ manifest.modules.keys())[0]
            raise RecordError(f"{self.path}: cannot be resumed, its modules are others (for example {odd!r})")
        for name, entry in wanted.items():
            if entry != manifest.modules[name]:
                raise RecordError(
                    f"{self.path}: cannot be resumed, {name!r} was recorded as {manifest.modules[name]}, not {entry}"
                )
        check_sum(self.path / BASE, manifest.base)
        frozen = {name for name, layer in self.layers.items() if is_frozen(layer)}
        fixed = {name: kept for name, kept in manifest.constants.items() if _owner(name) in frozen}
        own = {name: name for name in frozen} | self._constants
        for name, there in read_tensors(self.path / BASE, {name: name for name in frozen} | fixed).items():
            if name not in own or not torch.equal(there, here[own[name]]):
                raise RecordError(f"{self.path}: cannot be resumed, its base of {name!r} is not this model's")
        for log in (INDEX, SCALARS):
            self._drop_cut_line(self.path / log)
        self._constants = manifest.constants
        self._entries = read_index(self.path)
        return [entry.step for entry in self._entries]

    def _write(self, step: int, tensors: dict[str, Tensor], dropped: Collection[int]) -> None:
        """The part of ``record`` that the background does."""
        self._drop(dropped)
        entry = CheckpointEntry(step, _write_tensors(checkpoint_path(self.path, step), tensors))
        append_line(self.path / INDEX, entry.to_json(), durable=True)
        self._entries.append(entry)

    def _drop(self, steps: Collection[int]) -> None:
        """Take checkpoints back: first out of the index."""
        if not steps:
            return
        self._entries = [entry for entry in self._entries if entry.step not in steps]
        write_text(self.path / INDEX, "".join(entry.to_json() for entry in self._entries))
        for step in steps:
            checkpoint_path(self.path, step).unlink(missing_ok=True)

    def _go_back_behind(self, step: int) -> None:
        """On the first step of a resumed run, drop what was recorded from there on: training has gone back."""
        if not self._rewind:
            return
        self._rewind = False
        dropped = {s for s in self.steps if s >= step}
        self.steps = [s for s in self.steps if s < step]
        if not self._writes:
            return
        self._drop(dropped)
        lines = [line for _, line in complete_lines(self.path / SCALARS)]
        kept = [line for line in lines if json.loads(line).get("step", 0) < step]
        if len(kept) < len(lines):
            write_text(self.path / SCALARS, "".join(line + "\n" for line in kept))

    def _drop_cut_line(self, path: Path) -> None:
        whole = "".join(line + "\n" for _, line in complete_lines(path))
        if path.exists() and path.stat().st_size != len(whole.encode()):
            write_text(path, whole)

    def _stays(self, step: int) -> bool:
        """Whether a step of the schedule is one of those to keep."""
        return self._keep is None or self._hit(step) % stride(self._hit(step), self._keep) == 0

    def _thinned(self, step: int) -> set[int]:
        """The steps that make room for this one."""
        if self._keep is None or not self.when(step):
            return set()
        apart = stride(self._hit(step), self._keep)
        return {s for s in self.steps if self.when(s) and self._hit(s) % apart}

    def _hit(self, step: int) -> int:
        if step not in self._hits:
            reached, count = self._counted if self._counted[0] <= step else (0, 0)
            self._counted = (step, count + sum(1 for s in range(reached, step) if self.when(s)))
            self._hits[step] = self._counted[1]
        return self._hits[step]

    def _is_kept(self, scalar: str) -> bool:
        return self._scalars is None or any(fnmatchcase(scalar, pattern) for pattern in self._scalars)

    def _checkpoint_before(self) -> Mapping[str, Tensor] | None:
        """The last checkpoint; after a resume it is read."""
        if not self.steps:
            return None
        if self._before is None:
            self._before = load_file(checkpoint_path(self.path, self.steps[-1]))
        return self._before

    def _base_of(self, module: str) -> dict[str, Tensor]:
        """W₀ under "", and what never changes; from the file, so that no copy of all of it stays in memory."""
        fixed = {key.rpartition(".")[2]: kept for key, kept in self._constants.items() if _owner(key) == module}
        return read_tensors(self.path / BASE, {"": module} | fixed)

    def _require_open(self) -> None:
        if not self._open:
            raise RecordError(f"{self.path}: the recorder is not open; use it in a with statement")


def _check_options(
    dtype: torch.dtype | None, keep: int | None, total_steps: int | None, max_bytes: int | None, background: int
) -> None:
    if dtype is not None and dtype not in NARROWER:
        raise OptionError(f"dtype must be one of {', '.join(map(str, NARROWER))}, not {dtype!r}")
    for name, value, least in (
        ("keep", keep, 2),
        ("total_steps", total_steps, 0),
        ("max_bytes", max_bytes, 1),
        ("background", background, 0),
    ):
        if value is not None and (not isinstance(value, int) or value < least):
            raise OptionError(f"{name} must be a whole number of at least {least}, not {value!r}")
    if max_bytes is not None and total_steps is None and keep is None:
        raise OptionError("max_bytes needs to know how many checkpoints there will be; pass total_steps or keep")


def _owner(key: str) -> str:
    return key.rpartition(".")[0]


def _entry(layer: Layer, base: Tensor) -> ModuleEntry:
    rows, columns = base.shape
    dtype = str(base.dtype).removeprefix("torch.")
    if layer.method is None:
        return ModuleEntry((rows, columns), dtype)
    # Through JSON, so that it compares equal to what is read back.
    return ModuleEntry((rows, columns), dtype, layer.method.name, json.loads(json.dumps(layer.method.options())))


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> FileEntry:
    with atomic_write(path) as aside:
        aside.touch()
        mode = aside.stat().st_mode  # the user's own default; save_file makes its files private
        save_file(tensors, str(aside))
        aside.chmod(mode)
        return FileEntry(aside.stat().st_size, digest(aside))


def _version() -> str:
    try:
        return version("deltaw")
    except PackageNotFoundError:
        return "unknown"
