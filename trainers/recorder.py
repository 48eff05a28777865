"""The recorder: writes a model's weights as they move, and changes nothing in the training."""

import logging
import os
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import closing
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from deltaw.adapters.checks import public, whole_number
from deltaw.adapters.errors import OptionError, RecordError
from deltaw.adapters.sharded import full
from deltaw.adapters.state_file import repeated
from deltaw.analysis.records.run_folder.format import checkpoint_path, finite_or_none
from deltaw.analysis.records.run_folder.run_writer import RunWriter
from deltaw.trainers.arguments import check_options, checked_numbers, checked_path, checked_patterns, number
from deltaw.trainers.base_guard import BaseGuard
from deltaw.trainers.budget import Budget, amount, file_bytes, planned
from deltaw.trainers.distributed import is_writer, local, reshard, together
from deltaw.trainers.gathering import Gathering, has_parts
from deltaw.trainers.live import LiveNumbers, Log, Numbers
from deltaw.trainers.recorded_layers import (
    architecture,
    base_and_constants,
    checkpoint_tensors,
    is_frozen,
    method_name,
    module_entry,
    recorded_layers,
    unwrapped,
)
from deltaw.trainers.schedules import Schedule, checked_schedule
from deltaw.trainers.thinning import Thinning
from deltaw.trainers.writer import Writer

logger = logging.getLogger(__name__)


class Recorder:
    """Record checkpoints of a model's linear layers and convolutions into a run folder.

    Entering stores W₀ once; ``step`` writes a checkpoint where the schedule says so. Layers of ``deltaw.adapters`` and
    PEFT's LoRA, rsLoRA, DoRA, PiSSA and OLoRA are recorded as their own parameters, a few kilobytes, and W' is rebuilt
    from them when read; any other layer is recorded as its whole effective weight. A checkpoint appears whole or not
    at all, whenever the process dies.

    Nothing in the training changes: no random number is drawn, no gradient touched, weights are copied.

    In several processes each makes the same calls. Rank 0 writes. Where weights are sharded over processes (FSDP,
    ZeRO-3, tensor parallelism), all of them are collective, and one layer's weights are gathered at a time.

    Arguments:
        model: The model, with its method already injected; wrapped (DDP, ``torch.compile``, Accelerate) or not.
        path: The run folder. It must not hold a run, unless ``resume``; other files in it are left alone.
        modules: Glob patterns over module names; ``None`` records every adapted layer, or, where there is none, every
            PEFT layer, or else every linear layer. Convolutions are recorded where a pattern matches them.
        when: Which steps to record; default every step.
        method: The method's name in the record; by default the adapters' own, ``ft`` for plain layers.
        info: Plain values to keep with the run, for example the command line.
        resume: Go on with the run in ``path``: its modules and, below adapters, its W₀ must be this model's.
            Checkpoints at or after the first step given now are dropped: training has gone back behind them.
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
        OptionError: An argument is of another type or out of its range.
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

    @public
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
        if not isinstance(model, nn.Module):
            raise OptionError(f"model must be a torch.nn.Module with its method injected, not {model!r}")
        self.path = checked_path(path)
        self.when = checked_schedule(when)
        keep, total_steps, max_bytes, background = checked_numbers(keep, total_steps, max_bytes, background)
        check_options(dtype, method, info, log)
        self.model = unwrapped(model)
        self._gathering = Gathering(model)
        self.layers = recorded_layers(self.model, checked_patterns("modules", modules), self._gathering)
        self.last_changes: Numbers = {}
        self.budget: Budget | None = None
        self._method = method or method_name(self.layers)
        self._info = architecture(self.model) | dict(info or {})
        self._resume, self._dtype, self._scalars = resume, dtype, checked_patterns("scalars", scalars)
        self._keep, self._total_steps, self._max_bytes = keep, total_steps, max_bytes
        self._thinning = Thinning(self.when, keep)
        self._live, self._log, self.live_numbers = live or log is not None, log, LiveNumbers(total_steps)
        self._writer, self._run = Writer(background), RunWriter(self.path)
        self._whole = {key for name, of in self.layers.items() if of.method is None for key in (name, f"{name}.weight")}
        self._process: int | None = None  # in which it is open; a child that is forked off must not write
        self._writes, self._sharded = True, False  # settled on entering
        self._steps: list[int] = []  # with those that wait to be written
        self._unsure = False  # a submission broke off: whether the step is recorded, the disk knows
        self._constants: dict[str, str] = {}  # what the base's file holds and no checkpoint
        self._before: dict[str, Tensor] | None = None  # the last checkpoint, for the live numbers
        self._rewind = False
        self._guard: BaseGuard | None = None

    def __repr__(self) -> str:
        modules, steps = len(self.layers), len(self._steps)
        return (
            f"Recorder({str(self.path)!r}, {modules} module{'s' * (modules != 1)}, "
            f"{steps} checkpoint{'s' * (steps != 1)})"
        )

    @property
    def steps(self) -> list[int]:
        """The steps recorded so far, with those that still wait to be written."""
        self._settle()
        return list(self._steps)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The recorded modules by name."""
        return {name: layer.module for name, layer in self.layers.items()}

    def __enter__(self) -> Self:
        reshard(self.model)
        self._writes = is_writer()
        self._sharded = self._gathering.cut or any(has_parts(module) for module in self.modules.values())
        if self._writes or self._sharded:
            self._plan()
            try:
                self._rewind = self._together(self._take)
                copies = self._copied(self._first_tensors())
                self._steps = self._together(lambda: self._begin(copies))
            except BaseException:
                self.close()
                raise
            self._thinning.resume(self._steps)
            self._guard = BaseGuard(self.layers, self._gathering)
        self._process = os.getpid()
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
        self._process = None
        self.live_numbers.end()
        try:
            self._writer.close()
        finally:
            self._run.close()

    def step(self, step: int, **scalars: float) -> Numbers | None:
        """Log the scalars of a step, and record a checkpoint where the schedule says so.

        Arguments:
            step: The number of optimizer steps taken so far; must rise from call to call that records.
            scalars: For example ``loss=…, learning_rate=…``.

        Returns:
            The live numbers, where they are wanted and the step was recorded: the means over the modules of each kind
            of ΔM and ΔD, from the checkpoint before and from W₀, of norms and stable rank, see `LiveNumbers`.

        Raises:
            RecordError: The step does not rise.
            OptionError: It is no whole number, or a scalar is no number.
            WriteError: The disk is full; everything recorded before stays. With ``background`` it comes with the next
                step after the one that could not be written.
        """
        step = whole_number("step", step, 0)
        self._require_open()
        self._writer.check()
        if scalars:
            self.log(step, **scalars)
        return self.record(step) if self._thinning.stays(step) else None

    def log(self, step: int, **scalars: float) -> None:
        """Append a line of scalars to the record.

        Raises:
            OptionError: As ``step``.
        """
        step = whole_number("step", step, 0)
        self._require_open()
        kept = {name: finite_or_none(number(name, value)) for name, value in scalars.items() if self._is_kept(name)}
        self._go_back_behind(step)
        if self._writes and kept:
            self._run.log({"step": step} | kept)

    def record(self, step: int) -> Numbers | None:
        """Record a checkpoint now, whatever the schedule says; a step already recorded is left as it is.

        Returns, raises:
            As ``step``.
        """
        step = whole_number("step", step, 0)
        self._require_open()
        if not (self._writes or self._sharded):
            return None
        self._together(self._make_ready)
        self._go_back_behind(step)
        if self._steps and step == self._steps[-1]:
            return None
        if self._steps and step < self._steps[-1]:
            raise RecordError(f"{self.path}: step {step} after step {self._steps[-1]}; steps must rise from 0 on")
        if self._sharded:
            reshard(self.model)
        before = self._checkpoint_before() if self._live and self._writes else None
        if self._guard is not None:
            self._guard.check(self._together, self._base_of)
        copies = self._copied(self._checkpoint_tensors())
        dropped = self._thinning.dropped(self._steps, step)
        self._unsure = self._writes
        if self._writes:
            self._writer.submit(lambda: self._write(step, copies, dropped))
        self._steps = [*(s for s in self._steps if s not in dropped), step]
        self._before = copies if self._live and self._writes else None
        self._unsure = False
        if not (self._live and self._writes):
            return None
        methods = {name: layer.method for name, layer in self.layers.items()}
        self.last_changes = self.live_numbers.measure(step, methods, self._base_of, before, copies)
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

    def _first_tensors(self) -> Generator[tuple[str, Tensor]]:
        """W₀ by module, a layer at a time, then by MODULE.NAME what never changes, each once."""
        constants: dict[str, Tensor] = {}
        for name, layer in self._gathering.walk(self.layers):
            base, own = base_and_constants(layer)
            constants |= {f"{name}.{key}": value for key, value in own.items()}
            yield name, base
        same = repeated({name: local(value) for name, value in constants.items()})
        self._constants = {name: same.get(name, name) for name in constants}
        yield from ((name, value) for name, value in constants.items() if name not in same)

    def _checkpoint_tensors(self) -> Generator[tuple[str, Tensor]]:
        """The tensors of a checkpoint, a layer at a time as well."""
        for name, layer in self._gathering.walk(self.layers):
            for key, value in checkpoint_tensors(layer).items():
                if f"{name}.{key}" not in self._constants:
                    yield f"{name}.{key}", value

    def _copied(self, tensors: Generator[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Copies on the CPU, which training cannot overwrite; collective where weights are sharded."""
        copies = {}
        with closing(tensors):
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

    def _plan(self) -> None:
        """Say what the record will take, and refuse what is too large; nothing is written yet."""
        base, checkpoint = (
            file_bytes({name: (value.shape, self._stored(name, value.dtype)) for name, value in tensors})
            for tensors in (self._first_tensors(), self._checkpoint_tensors())
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
        """Have it done by the process that writes; where weights are sharded, all get its result."""
        return together(job, here=self._writes, shared=self._sharded)

    def _take(self) -> bool:
        return self._run.open(resume=self._resume)

    def _begin(self, first: dict[str, Tensor]) -> list[int]:
        """Begin the run, or go on with the one that is there; return its steps."""
        modules = {name: module_entry(layer, first[name]) for name, layer in self.layers.items()}
        if not self._rewind:
            self._run.create(first, method=self._method, modules=modules, constants=self._constants, info=self._info)
            return []
        frozen = {name for name, layer in self.layers.items() if is_frozen(layer)}
        self._constants = self._run.resume(first, modules=modules, constants=self._constants, frozen=frozen)
        return self._run.steps

    def _write(self, step: int, tensors: dict[str, Tensor], dropped: Collection[int]) -> None:
        """The part of ``record`` that the background does."""
        self._run.append(step, tensors)
        self._run.drop(dropped)  # after it, so that the newest checkpoint is never missing

    def _make_ready(self) -> None:
        self._writer.wait_for_room()
        self._settle()

    def _settle(self) -> None:
        """Let the memory follow the disk where Ctrl-C or an error came between the two."""
        if self._unsure:
            self._writer.drain()
            self._steps, self._before, self._unsure = self._run.steps, None, False

    def _go_back_behind(self, step: int) -> None:
        """On the first step of a resumed run, drop everything recorded from there on: training has gone back."""
        if not self._rewind:
            return
        if self._writes:
            self._run.rewind(step)
        self._steps = [s for s in self._steps if s < step]
        self._rewind = False

    def _is_kept(self, scalar: str) -> bool:
        return self._scalars is None or any(fnmatchcase(scalar, pattern) for pattern in self._scalars)

    def _checkpoint_before(self) -> Mapping[str, Tensor] | None:
        """The last checkpoint; after a resume it is read."""
        if self._steps and self._before is None:
            self._before = load_file(checkpoint_path(self.path, self._steps[-1]))
        return self._before if self._steps else None

    def _base_of(self, module: str) -> dict[str, Tensor]:
        """W₀ under "", and what never changes; from the file, so that no copy of all of it stays in memory."""
        fixed = {
            key.rpartition(".")[2]: kept for key, kept in self._constants.items() if key.rpartition(".")[0] == module
        }
        return self._run.base({"": module} | fixed)

    def _require_open(self) -> None:
        if self._process != os.getpid():
            how = "use it in a with statement" if self._process is None else "it was opened in another process"
            raise RecordError(f"{self.path}: the recorder is not open; {how}")
