"""A trajectory: one run's checkpoints in order, with the base weights, and the tables made from them."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from deltaw.adapters import DualLoRA, Method, NonFiniteError, OptionError, RecordError, create
from deltaw.adapters.inject import matching
from deltaw.adapters.layer import WIDENED
from deltaw.analysis.change import AXES, Axis, changes
from deltaw.analysis.names import kind_of, layer_of
from deltaw.analysis.record import (
    BASE,
    Manifest,
    ModuleEntry,
    check_size,
    check_sum,
    checkpoint_path,
    read_index,
    read_manifest,
    read_scalars,
    read_tensors,
)
from deltaw.analysis.spectrum import Spectrum, spectrum

Pairs = Literal["consecutive", "initial", "base"] | list[tuple[int, int]]
Step = int | None  # None: the base weights, before any step


class Trajectory:
    """A recorded run.

    Weights are read when they are asked for, one matrix at a time. W' is rebuilt from the recorded parameters by the
    method's own definition.

    Example:
        >>> import tempfile, torch
        >>> from deltaw.adapters import LoRA, inject
        >>> from deltaw.trainers import Recorder
        >>> model = inject(torch.nn.Sequential(torch.nn.Linear(6, 4)), LoRA(rank=2), targets=["0"])
        >>> folder = tempfile.mkdtemp()
        >>> with Recorder(model, folder) as recorder:
        ...     recorder.step(0)
        >>> run = Trajectory.open(folder)
        >>> run.method, run.modules, run.steps
        ('lora', ['0'], [0])
        >>> torch.equal(run.weight("0", 0), run.base("0"))
        True
    """

    def __init__(self, path: Path, manifest: Manifest, steps: Sequence[int]) -> None:
        self.path = path
        self.manifest = manifest
        self.steps = list(steps)
        self.name = path.resolve().name  # in tables; to be changed where two runs have the same
        self._methods: dict[str, Method | None] = {}

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a run folder; every announced checkpoint is looked at, none is read.

        Raises:
            RecordError: The folder is no run, is damaged or of a newer format, or a checkpoint is missing or cut.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        entries = read_index(folder)
        check_size(folder / BASE, manifest.base)
        for entry in entries:
            check_size(checkpoint_path(folder, entry.step), entry.file)
        run = cls(folder, manifest, [entry.step for entry in entries])
        for name in run.modules:
            run.method_of(name)  # an unknown method is an error now, not in the middle of a table
        return run

    def __repr__(self) -> str:
        return f"Trajectory({str(self.path)!r}, {self.method}, {len(self.modules)} modules, {len(self.steps)} steps)"

    @property
    def method(self) -> str:
        """The method's name."""
        return self.manifest.method

    @property
    def modules(self) -> list[str]:
        """The names of the recorded modules."""
        return list(self.manifest.modules)

    @property
    def info(self) -> dict[str, Any]:
        """What the recorder was given to keep with the run."""
        return self.manifest.info

    def method_of(self, module: str) -> Method | None:
        """Return the method of a module, or ``None`` where its matrix itself is recorded."""
        if module not in self._methods:
            entry = self._entry(module)
            try:
                self._methods[module] = None if entry.method is None else create(entry.method, **entry.options)
            except (OptionError, TypeError) as error:
                raise RecordError(f"{self.path}: {module}: {error}") from None
        return self._methods[module]

    def base(self, module: str) -> Tensor:
        """Return W₀ (out, in), in the dtype it was recorded in."""
        entry = self._entry(module)
        tensor = read_tensors(self.path / BASE, {"base": module})["base"]
        if tuple(tensor.shape) != entry.shape:
            raise RecordError(f"{self.path / BASE}: {module} is {tuple(tensor.shape)}, the manifest says {entry.shape}")
        return tensor

    def state(self, module: str, step: int) -> dict[str, Tensor]:
        """Return what was recorded of a module at a step: the method's tensors, or {"weight": the matrix}."""
        method, shape = self.method_of(module), self._entry(module).shape
        if step not in self.steps:
            near = sorted(self.steps, key=lambda s: abs(s - step))[:3]
            raise OptionError(f"{self.path}: step {step} was not recorded; near it there are {sorted(near)}")
        path = checkpoint_path(self.path, step)
        wanted = {"weight": shape} if method is None else method.shapes(*shape) | method.frozen_shapes(*shape)
        constants = self.manifest.constants
        once = {key: constants[f"{module}.{key}"] for key in wanted if f"{module}.{key}" in constants}
        state = read_tensors(self.path / BASE, once) if once else {}
        state |= read_tensors(path, {key: f"{module}.{key}" for key in wanted if key not in once})
        for key, value in state.items():
            if tuple(value.shape) != tuple(wanted[key]):
                raise RecordError(f"{path}: {module}.{key} is {tuple(value.shape)}, it should be {tuple(wanted[key])}")
        return state

    def weight(self, module: str, step: Step, dtype: torch.dtype | None = None) -> Tensor:
        """Return W' (out, in) at a step; ``None`` is the base.

        Arguments:
            module: A name of ``modules``.
            step: A step of ``steps``, or ``None`` for W₀.
            dtype: Rebuild W' in this dtype, for example float64, where the recorded parameters are widened first.
                By default in their own, which gives the bits that the model in training had.

        Raises:
            OptionError: There is no such module or step.
            RecordError: The file is damaged.
        """
        if step is None:
            base = self.base(module)
            return base if dtype is None else base.to(dtype)
        method, state = self.method_of(module), self.state(module, step)
        if method is None:
            return state["weight"] if dtype is None else state["weight"].to(dtype)
        return method.weight(*self._wide(module, state, dtype))

    def update(self, module: str, step: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return ΔW = W_t − W₀ (out, in), by default in float64: the exact update of the recorded parameters."""
        method, state = self.method_of(module), self.state(module, step)
        if method is None:
            return state["weight"].to(dtype) - self.base(module).to(dtype)
        return method.update(*self._wide(module, state, dtype))

    def factors(self, module: str, step: int, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor] | None:
        """Return U (out, r) and V (r, in) with ΔW = U V exactly, or ``None`` where the method has no such form."""
        method = self.method_of(module)
        return None if method is None else method.factors(*self._wide(module, self.state(module, step), dtype))

    def scalars(self) -> pd.DataFrame:
        """Return the scalar log: a row a line, a column a name."""
        return pd.DataFrame(read_scalars(self.path))

    def verify(self) -> int:
        """Read every file and compare its checksum; return the number of files.

        Raises:
            RecordError: A file is missing, was cut or was changed.
        """
        check_sum(self.path / BASE, self.manifest.base)
        entries = read_index(self.path)
        for entry in entries:
            check_sum(checkpoint_path(self.path, entry.step), entry.file)
        return 1 + len(entries)

    def changes(
        self,
        pairs: Pairs = "consecutive",
        axes: Sequence[Axis] = AXES,
        modules: Sequence[str] | None = None,
        *,
        allow_nonfinite: bool = False,
        progress: bool = False,
    ) -> pd.DataFrame:
        """Return ΔM and ΔD of every module, pair of steps and axis.

        Arguments:
            pairs: "consecutive" (t−1, t), "initial" (first recorded step, t), "base" (W₀, t), or a list of pairs.
            axes: "row", "column" or both.
            modules: Glob patterns over the recorded modules; ``None`` for all.
            allow_nonfinite: Go on where a weight holds NaN or infinity.
            progress: Show a progress bar.

        Returns:
            One row each, with the columns run, method, module, layer, kind, axis, step_from (missing for the base),
            step_to, delta_m (in units of the weights), delta_d, undefined (vectors zero at exactly one of the steps).

        Raises:
            NonFiniteError: A weight holds NaN or infinity; names the module and the steps.
            OptionError: Unknown pairs, axis, module or step.
        """
        chosen, steps = self._chosen(modules), self._pairs(pairs)
        rows: list[dict[str, Any]] = []
        for module, step_from, step_to, cache in self._walk(chosen, steps, progress):
            try:
                found = changes(cache[step_from], cache[step_to], axes, allow_nonfinite=allow_nonfinite)
            except NonFiniteError as error:
                where = "the base" if step_from is None else f"step {step_from}"
                raise NonFiniteError(f"{self.path}: {module}, from {where} to step {step_to}: {error}") from None
            for axis, change in found.items():
                rows.append(
                    self._labels(module)
                    | {"axis": axis, "step_from": step_from, "step_to": step_to}
                    | {"delta_m": change.delta_m, "delta_d": change.delta_d, "undefined": change.undefined}
                )
        columns = ["run", "method", "module", "layer", "kind", "axis", "step_from", "step_to"]
        frame = pd.DataFrame(rows, columns=[*columns, "delta_m", "delta_d", "undefined"])
        return frame.astype({"layer": "Int64", "step_from": "Int64", "step_to": "Int64"})

    def spectra(
        self,
        steps: Sequence[int] | None = None,
        modules: Sequence[str] | None = None,
        *,
        groups: bool = False,
        progress: bool = False,
    ) -> pd.DataFrame:
        """Return the rank and the spectrum of the update of every module at every step.

        From factors where the method has them, else from the update in float64. Where whole matrices were recorded, or
        magnitudes that multiply W₀ (DoRA, BoRA), the rounding of their dtype counts as noise floor.

        Arguments:
            steps: The steps; ``None`` for all that are recorded.
            modules: Glob patterns over the recorded modules; ``None`` for all.
            groups: For Dual LoRA, also the magnitude group ReLU(B A) and the direction group Sign(D C), told apart by
                the column ``group`` ("update", "magnitude", "direction").
            progress: Show a progress bar.

        Returns:
            One row each: run, method, module, layer, kind, step, group, rank, full_rank (min(out, in)), tolerance,
            stable_rank, effective_rank, participation_ratio, energy_rank_90, energy_rank_99, nuclear, frobenius,
            spectral, zero_rows, zero_columns.
        """
        chosen = self._chosen(modules)
        wanted = self.steps if steps is None else list(steps)
        rows = []
        work = [(module, step) for module in chosen for step in wanted]
        for module, step in tqdm(work, desc=f"spectra of {self.name}", unit="matrix", disable=not progress):
            for group, found in self._spectra_of(module, step, groups):
                rows.append(
                    self._labels(module)
                    | {"step": step, "group": group, "full_rank": min(self._entry(module).shape)}
                    | {name: getattr(found, name) for name in _SPECTRUM}
                    | {"energy_rank_90": found.energy_rank(0.90), "energy_rank_99": found.energy_rank(0.99)}
                )
        head = ["run", "method", "module", "layer", "kind", "step", "group", "rank", "full_rank"]
        tail = [name for name in _SPECTRUM if name != "rank"]
        frame = pd.DataFrame(rows, columns=[*head, *tail[:4], "energy_rank_90", "energy_rank_99", *tail[4:]])
        return frame.astype({"layer": "Int64", "step": "Int64"})

    def _spectra_of(self, module: str, step: int, groups: bool) -> Iterator[tuple[str, Spectrum]]:
        method, shape = self.method_of(module), self._entry(module).shape
        try:
            factors = self.factors(module, step, torch.float64)
            if factors is not None:
                yield "update", spectrum(factors=factors)
            elif method is None:
                weight = self.weight(module, step)
                yield "update", spectrum(self.update(module, step), stored=weight.dtype, weight=weight)
            elif method.scales_base:
                # Their magnitudes are as large as W₀: the rounding of these counts, as in a merged weight.
                stored = next(v.dtype for v in self.state(module, step).values() if v.is_floating_point())
                weight = self.weight(module, step, torch.float64)
                yield "update", spectrum(self.update(module, step), stored=stored, weight=weight)
            else:
                yield "update", spectrum(self.update(module, step))
            if groups and isinstance(method, DualLoRA):
                _, state = self._wide(module, self.state(module, step), torch.float64)
                yield "magnitude", spectrum(method.magnitude_group(state))
                yield "direction", spectrum(method.direction_group(state))
        except NonFiniteError as error:
            raise NonFiniteError(f"{self.path}: {module} {shape} at step {step}: {error}") from None

    def _walk(
        self, modules: list[str], pairs: list[tuple[Step, int]], progress: bool
    ) -> Iterator[tuple[str, Step, int, dict[Step, Tensor]]]:
        """Yield module and pair with both weights in hand, each read once where the order of the pairs allows it."""
        bar = tqdm(total=len(modules) * len(pairs), desc=f"changes of {self.name}", unit="pair", disable=not progress)
        with bar:
            for module in modules:
                # float64 where W' is rebuilt, so that its rounding does not stand in for a change.
                dtype = None if self.method_of(module) is None else torch.float64
                cache: OrderedDict[Step, Tensor] = OrderedDict()
                for step_from, step_to in pairs:
                    for step in (step_from, step_to):
                        if step not in cache:
                            cache[step] = self.weight(module, step, dtype)
                        cache.move_to_end(step)
                    while len(cache) > 2:
                        cache.popitem(last=False)
                    yield module, step_from, step_to, cache
                    bar.update()

    def _pairs(self, pairs: Pairs) -> list[tuple[Step, int]]:
        first, *rest = self.steps or [0]
        named: dict[str, list[tuple[Step, int]]] = {
            "consecutive": list(pairwise(self.steps)),
            "initial": [(first, step) for step in rest],
            "base": [(None, step) for step in self.steps],
        }
        if not isinstance(pairs, str):
            return [(step_from, step_to) for step_from, step_to in pairs]
        if pairs not in named:
            raise OptionError(f"pairs is {pairs!r}; choose one of {', '.join(named)}, or give a list of steps")
        return named[pairs]

    def _chosen(self, patterns: Sequence[str] | None) -> list[str]:
        if patterns is None:
            return self.modules
        return matching(self.modules, [patterns] if isinstance(patterns, str) else patterns, "module")

    def _labels(self, module: str) -> dict[str, Any]:
        method = self.method_of(module)
        return {
            "run": self.name,
            "method": self.method if method is None else method.name,
            "module": module,
            "layer": layer_of(module),
            "kind": kind_of(module),
        }

    def _entry(self, module: str) -> ModuleEntry:
        if module not in self.manifest.modules:
            raise OptionError(f"{self.path}: module {module!r} was not recorded; there are {', '.join(self.modules)}")
        return self.manifest.modules[module]

    def _wide(
        self, module: str, state: dict[str, Tensor], dtype: torch.dtype | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """W₀ and the method's tensors in one dtype; by default the one the layer computes its weight in."""
        base = self.base(module)
        base = base.to(dtype or WIDENED.get(base.dtype, base.dtype))
        if dtype is not None:
            state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
        return base, state


_SPECTRUM = [
    "rank",
    "tolerance",
    "stable_rank",
    "effective_rank",
    "participation_ratio",
    "nuclear",
    "frobenius",
    "spectral",
    "zero_rows",
    "zero_columns",
]
