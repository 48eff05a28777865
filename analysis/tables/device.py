"""Measuring on a device: a run whose matrices come there, read and copied while the one before is measured.

What a method recorded is copied as its few small tensors, and W' is made of them on the device; a matrix that was
saved itself is copied in its own dtype and widened there. Measures compute where their matrices are, in float64.

On the device are at a time the matrices that the walk keeps, at most four, the one that comes next, and what a measure
makes of one: ``MATRICES`` in all, in float64.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import RLock
from typing import Any

import torch
from torch import Tensor

from deltaw.adapters.errors import DeltawWarning, OptionError
from deltaw.adapters.layer import WIDENED
from deltaw.adapters.method import Method, ScaledFactors, ScaledLowRank
from deltaw.analysis.records.source import Source, State
from deltaw.analysis.tables.run import Run, Step

CPU = "cpu"
MATRICES = 12  # of float64 that are on the device at most, by the sizes of the largest module


def checked_device(name: object) -> str:
    """Return the name of a device that is here and has float64.

    On Apple's GPUs (mps) there is no float64; there the processor measures, which is said.

    Raises:
        OptionError: There is no such device here.

    Example:
        >>> checked_device("cpu")
        'cpu'
        >>> checked_device("gpu")
        Traceback (most recent call last):
        deltaw.adapters.errors.OptionError: device is 'gpu'; choose cpu, the only device that torch finds here
    """
    there = devices()
    try:
        found = torch.device(name) if isinstance(name, str) else None
    except RuntimeError:
        found = None
    if found is not None and found.type == CPU and found.index in (None, 0):
        return CPU
    if found is not None and found.type in {torch.device(one).type for one in there}:
        if found.type == "mps":
            warnings.warn(
                "device is 'mps', which has no float64; the processor measures instead, to the same digits",
                DeltawWarning,
                stacklevel=2,
            )
            return CPU
        if str(found) in there or found.index is None:
            return str(numbered(found))
    only = f"{CPU}, the only device that torch finds here" if len(there) == 1 else f"one of {', '.join(there)}"
    raise OptionError(f"device is {name!r}; choose {only}{_why(found)}")


def numbered(device: torch.device) -> torch.device:
    """Return a device with its number, so that two names of one are equal."""
    if device.type == CPU or ":" in str(device):
        return device
    return torch.device(device.type, torch.accelerator.current_device_index())


def _why(found: torch.device | None) -> str:
    """Why a device that one would expect is not there."""
    if found is None or found.type != "cuda":
        return ""
    if torch.version.cuda is None:
        return f" (torch {torch.__version__} is built without CUDA)"
    return " (see nvidia-smi)"


def devices() -> list[str]:
    """Return the devices that torch finds here, the processor first."""
    found = [CPU]
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None:
        found += [f"{accelerator.type}:{index}" for index in range(torch.accelerator.device_count())]
    return found


def placed(run: Run, device: str, module: str | None = None, steps: Sequence[Step] = ()) -> Run:
    """Return the run with its matrices on a device; as it is for the processor.

    Arguments:
        run: Opened.
        device: As `checked_device` returns it.
        module, steps: What will be asked for, in this order, to be read ahead.
    """
    return run if device == CPU else OnDevice(run, numbered(torch.device(device)), module, steps)


@functools.cache
def _reader() -> ThreadPoolExecutor:
    """The thread of this process that reads ahead."""
    return ThreadPoolExecutor(1, "deltaw-ahead")


def copied(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device, copied from memory that the device reads by itself while others compute."""
    if tensor.device == device:
        return tensor
    source = tensor.contiguous()
    if device.type == "cuda":
        source = source.pin_memory()
    return source.to(device, non_blocking=True)


@contextlib.contextmanager
def named_memory(where: str, module: str, shape: tuple[int, int]) -> Iterator[None]:
    """Say which matrix a device had not the memory for, what it takes, and what else can be done.

    Raises:
        OptionError: So it was.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        needed = MATRICES * 8 * shape[0] * shape[1]
        raise OptionError(
            f"{where}: {module} of shape {shape}: the device has not the memory for it, up to {needed / 1e9:.2g} GB; "
            "free some, or measure with device='cpu' (at the command line --device cpu)"
        ) from None


class Lane:
    """The stream of a device on which copies run beside the computing, where it has such streams."""

    def __init__(self, device: torch.device) -> None:
        module = torch.get_device_module(device) if device.type != CPU else None
        self._streams: Any = module if hasattr(module, "Stream") and hasattr(module, "current_stream") else None
        self._stream = None if self._streams is None else self._streams.Stream(device)
        self._device = device

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        """Run copies on the stream."""
        with contextlib.nullcontext() if self._stream is None else self._streams.stream(self._stream):
            yield

    def mark(self) -> Any:
        """Return an event that stands behind the copies so far."""
        return None if self._stream is None else self._stream.record_event()

    def wait(self, event: Any, tensors: Sequence[Tensor]) -> None:
        """Let what is computed from now on wait for an event; tell the memory's keeper who uses the tensors now."""
        if event is None:
            return
        current = self._streams.current_stream(self._device)
        current.wait_event(event)
        for tensor in tensors:
            tensor.record_stream(current)


class OnDevice:
    """A run whose matrices are on a device; every method is that of `Trajectory`.

    Arguments:
        run: The run.
        device: The device.
        module, steps: What will be asked for in this order: while one step is measured, the next is read and copied.
    """

    def __init__(self, run: Run, device: torch.device, module: str | None = None, steps: Sequence[Step] = ()) -> None:
        self._run, self._device = run, device
        self.name, self.steps = run.name, run.steps
        self.source: Source = _SourceOnDevice(run.source, self)  # type: ignore[assignment]
        self._order = [step for step in dict.fromkeys(steps) if step is not None]
        self._module, self._lane = module, Lane(device)
        self._last: tuple[str, int, State] | None = None
        self._ahead: dict[int, Future[tuple[State, Any]]] = {}
        self.reading = RLock()  # a source reads one thing at a time

    @property
    def method(self) -> str:
        """The method's name."""
        return self._run.method

    @property
    def modules(self) -> list[str]:
        """The names of the modules."""
        return self._run.modules

    def labels(self, module: str) -> dict[str, Any]:
        """Return run, method, module, layer, kind."""
        return self._run.labels(module)

    def shape(self, module: str) -> tuple[int, int]:
        """Return (out, in)."""
        return self._run.shape(module)

    def method_of(self, module: str) -> Method | None:
        """Return the method of a module, where its tensors are recorded."""
        return self._run.method_of(module)

    def base(self, module: str) -> Tensor:
        """Return W₀ (out, in)."""
        with self.reading:
            found = self._run.base(module)
        return copied(found, self._device)

    def state(self, module: str, step: int) -> State:
        """Return the recorded tensors."""
        if self.method_of(module) is not None:
            return self._saved(module, step)
        with self.reading:
            found = self._run.state(module, step)
        return {name: copied(value, self._device) for name, value in found.items()}

    def _saved(self, module: str, step: int) -> State:
        """Return what W' follows from, perhaps copied ahead: the method's tensors, or W' itself in its own dtype."""
        if self._last is not None and self._last[:2] == (module, step):
            return dict(self._last[2])  # a measure may ask for W' and for ΔW
        self._last = None
        ahead = self._ahead.pop(step, None) if module == self._module else None
        state, event = self._copied(module, step) if ahead is None else ahead.result()
        self._lane.wait(event, list(state.values()))
        self._last = module, step, state
        if module == self._module and step in self._order:
            for following in self._order[self._order.index(step) + 1 :][:1]:
                if following not in self._ahead:
                    self._ahead[following] = _reader().submit(self._copied, module, following)
        return dict(state)

    def _copied(self, module: str, step: int) -> tuple[State, Any]:
        with self.reading:
            if self.method_of(module) is None:
                found = {"weight": self._run.weight(module, step)}
            else:
                found = self._run.state(module, step)
        with self._lane.beside():
            state = {name: copied(value, self._device) for name, value in found.items()}
        return state, self._lane.mark()

    def weight(self, module: str, step: Step, dtype: torch.dtype | None = None) -> Tensor:
        """Return W' (out, in); ``None`` is the base."""
        if step is None:
            base = self.base(module)
            return base if dtype is None else base.to(dtype)
        method = self.method_of(module)
        if method is not None:
            return method.weight(*self._wide(module, self.state(module, step), dtype))
        if self.source.rebuilt(module):  # by the formulas of another library, which are computed where the files are
            with self.reading:
                return copied(self._run.weight(module, step, dtype), self._device)
        weight = self._saved(module, step)["weight"]
        return weight if dtype is None else weight.to(dtype)

    def update(self, module: str, step: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return ΔW (out, in)."""
        method = self.method_of(module)
        if method is not None:
            return method.update(*self._wide(module, self.state(module, step), dtype))
        if self.source.rebuilt(module):
            with self.reading:
                return copied(self._run.update(module, step, dtype), self._device)
        return self.weight(module, step, dtype) - self.base(module).to(dtype)

    def factors(self, module: str, step: int, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor] | None:
        """Return U and V with ΔW = U V, or ``None``; they are thin, so they are made before they are copied."""
        with self.reading:
            found = self._run.factors(module, step, dtype)
        return None if found is None else (copied(found[0], self._device), copied(found[1], self._device))

    def factors_there(self, found: ScaledFactors) -> ScaledFactors:
        """Return factors on the device."""
        return ScaledFactors(copied(found.U, self._device), copied(found.V, self._device), found.scaling)

    def _wide(self, module: str, state: State, dtype: torch.dtype | None) -> tuple[Tensor, State]:
        base = self.base(module)
        return base.to(dtype or WIDENED.get(base.dtype, base.dtype)), _widened(state, dtype)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)


class _SourceOnDevice:
    """A source whose factors, and ρ and γ, are on the device; else as it is."""

    def __init__(self, inner: Source, run: OnDevice) -> None:
        self._inner, self._on_device = inner, run

    def scaled_low_rank(self, module: str, step: int, base: Tensor) -> ScaledLowRank | None:
        """As that of the source."""
        found = self.scaled_low_ranks(module, [step], base)
        return None if found is None else found[0]

    def scaled_low_ranks(self, module: str, steps: Sequence[int], base: Tensor) -> list[ScaledLowRank] | None:
        """As that of the source."""
        method = self._inner.method_of(module)
        if method is None:
            return None
        states = [_widened(self._on_device.state(module, step), torch.float64) for step in steps]
        return method.scaled_low_ranks(base, states)

    def scaled_factors(self, module: str, step: int) -> ScaledFactors | None:
        """As that of the source."""
        method = self._inner.method_of(module)
        if method is not None:
            found = method.scaled_factors(self._inner.shapes[module], self._on_device.state(module, step))
            if found is not None:
                return found
        with self._on_device.reading:
            found = self._inner.scaled_factors(module, step)
        return None if found is None else self._on_device.factors_there(found)

    def rounding(self, module: str, step: int) -> torch.dtype | None:
        """As that of the source, which reads one thing at a time."""
        with self._on_device.reading:
            return self._inner.rounding(module, step)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def _widened(state: State, dtype: torch.dtype | None) -> State:
    return {key: value.to(dtype) if dtype and value.is_floating_point() else value for key, value in state.items()}
