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

from deltaw.adapters.errors import NonFiniteError, OptionError, RecordError
from deltaw.adapters.injection import matching
from deltaw.adapters.method import Method
from deltaw.analysis.measures.change import AXES, Axis, changes
from deltaw.analysis.measures.spectrum import Spectrum, spectrum
from deltaw.analysis.names import name_reader
from deltaw.analysis.records.base import BaseLike
from deltaw.analysis.records.format import MANIFEST, Manifest
from deltaw.analysis.records.open import open_pair, open_source
from deltaw.analysis.records.source import Source

Step = int | None  # None: the base weights, before any step
Pairs = Literal["consecutive", "initial", "base"] | Sequence[tuple[Step, int]]


class Trajectory:
    """One run's checkpoints, read from what deltaw recorded or from what others saved.

    Weights are read when they are asked for, one matrix at a time. W' of an adapter is rebuilt from its parameters by
    the method's definition.

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

    def __init__(self, source: Source, pattern: str | None = None) -> None:
        self.source = source
        self.path = Path(source.where)
        self.steps = list(source.steps)
        self.name = self.path.resolve().name  # in tables; to be changed where two runs have the same
        self._names = name_reader(pattern)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        base: BaseLike = None,
        modules: Sequence[str] | None = None,
        split: bool | None = None,
        pattern: str | None = None,
    ) -> Self:
        """Open a run, whoever wrote it; every checkpoint is looked at, no weight is read.

        Arguments:
            path: A run of deltaw; an output folder of Hugging Face's Trainer or of PEFT, with its ``checkpoint-*/``;
                the folder of one model or adapter; a folder of torch.distributed.checkpoint; safetensors files whose
                names hold a step. Or the address of one, as ``s3://…``, ``hf://…``, ``https://…``, which fsspec reads.
            base: W₀, where the run does not hold it: a folder, a name in Hugging Face's cache, a model, a state dict.
            modules: Glob patterns over module names; ``None`` for all linear layers (embeddings and heads over a
                vocabulary only where a pattern names them).
            split: Show query, key and value of a fused matrix (``c_attn``, ``qkv_proj``, …), and gate and up, as
                modules of their own. By default in all but deltaw's own runs, which show what was recorded.
            pattern: A regular expression with a group ``layer`` or ``kind``, for names that are not recognised.

        Raises:
            RecordError: Nothing readable is there, it is damaged or of a newer format, or a checkpoint is missing or
                cut.
            OptionError: An option does not go with what is there.
            TargetError: A pattern of ``modules`` matches nothing.
        """
        return cls(open_source(path, base=base, modules=modules, split=split), pattern)

    @classmethod
    def from_pair(
        cls,
        before: str | Path,
        after: str | Path,
        *,
        modules: Sequence[str] | None = None,
        split: bool | None = None,
        pattern: str | None = None,
    ) -> Self:
        """Open two models, each a file or a folder, as one run: ``before`` is W₀ and step 0, ``after`` is step 1.

        Raises:
            RecordError: One of them is no model, or they are not of one model.

        Example:
            >>> import tempfile, torch
            >>> from safetensors.torch import save_file
            >>> folder = Path(tempfile.mkdtemp())
            >>> for k in range(2):
            ...     save_file({"0.weight": torch.full((2, 2), 1.0 + k)}, folder / f"{k}.safetensors")
            >>> Trajectory.from_pair(folder / "0.safetensors", folder / "1.safetensors").update("0", 1).tolist()
            [[1.0, 1.0], [1.0, 1.0]]
        """
        return cls(open_pair(before, after, modules=modules, split=split), pattern)

    def __repr__(self) -> str:
        where = self.source.where
        return f"Trajectory({where!r}, {self.method}, {len(self.modules)} modules, {len(self.steps)} steps)"

    @property
    def method(self) -> str:
        """The method's name; "ft" where whole models were saved."""
        return self.source.method

    @property
    def modules(self) -> list[str]:
        """The names of the modules."""
        return list(self.source.shapes)

    @property
    def info(self) -> dict[str, Any]:
        """What the recorder was given to keep with the run, or what else its files say of it."""
        return self.source.info

    @property
    def manifest(self) -> Manifest:
        """The manifest of a run that deltaw recorded.

        Raises:
            RecordError: Something else wrote this run.
        """
        if self.source.manifest is None:
            raise RecordError(f"{self.source.where}: is a {self.source.format} folder, which has no {MANIFEST}")
        return self.source.manifest

    def shape(self, module: str) -> tuple[int, int]:
        """Return (out, in) of a module."""
        self.source.check(module)
        return self.source.shapes[module]

    def method_of(self, module: str) -> Method | None:
        """Return the method of a module, or ``None`` where its matrix itself is recorded, or others saved it."""
        return self.source.method_of(module)

    def labels(self, module: str) -> dict[str, Any]:
        """Return the first columns of every table: run, method, module, layer, kind."""
        layer, kind = self._names(module)
        method = self.source.label(module)
        return {"run": self.name, "method": method, "module": module, "layer": layer, "kind": kind}

    @property
    def base_from(self) -> str | None:
        """Where W₀ comes from, or ``None`` where it is not known."""
        return self.source.base_from

    def base(self, module: str) -> Tensor:
        """Return W₀ (out, in), in the dtype it was recorded in.

        Raises:
            RecordError: The run holds no base, and none was given to ``open``.
        """
        return self.source.base(module)

    def state(self, module: str, step: int) -> dict[str, Tensor]:
        """Return what was recorded of a module at a step: the method's tensors, or {"weight": the matrix}."""
        return self.source.state(module, step)

    def weight(self, module: str, step: Step, dtype: torch.dtype | None = None) -> Tensor:
        """Return W' (out, in) at a step; ``None`` is the base.

        Arguments:
            module: A name of ``modules``.
            step: A step of ``steps``, or ``None`` for W₀.
            dtype: Rebuild W' in this dtype, for example float64, where the recorded parameters are widened first.
                By default in their own, which gives the bits that the model in training had.

        Raises:
            OptionError: There is no such module or step.
            RecordError: The file is damaged, or W₀ is needed and was not given.
        """
        if step is None:
            base = self.base(module)
            return base if dtype is None else base.to(dtype)
        return self.source.weight(module, step, dtype)

    def update(self, module: str, step: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return ΔW = W_t − W₀ (out, in), by default in float64: the exact update of the recorded parameters.

        Raises:
            OptionError: There is no such module or step.
            RecordError: The file is damaged, or ΔW depends on W₀, which was not given.
        """
        return self.source.update(module, step, dtype)

    def factors(self, module: str, step: int, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor] | None:
        """Return U (out, r) and V (r, in) with ΔW = U V exactly, or ``None`` where the method has no such form."""
        return self.source.factors(module, step, dtype)

    def scalars(self) -> pd.DataFrame:
        """Return the scalar log: a row a line, a column a name."""
        return pd.DataFrame(self.source.scalars())

    def verify(self) -> int:
        """Read every file and compare its checksum; return the number of files.

        Raises:
            RecordError: A file is missing, was cut or was changed.
        """
        return self.source.verify()

    def pairs(self, pairs: Pairs) -> list[tuple[Step, int]]:
        """Return the pairs of steps that a name stands for; ``None`` is the base.

        Raises:
            OptionError: There are no such pairs.
        """
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
        chosen, steps = chosen_modules(self.modules, modules), self.pairs(pairs)
        rows: list[dict[str, Any]] = []
        for module, step_from, step_to, cache in self._walk(chosen, steps, progress):
            try:
                found = changes(cache[step_from], cache[step_to], axes, allow_nonfinite=allow_nonfinite)
            except NonFiniteError as error:
                where = "the base" if step_from is None else f"step {step_from}"
                raise NonFiniteError(f"{self.path}: {module}, from {where} to step {step_to}: {error}") from None
            for axis, change in found.items():
                rows.append(
                    self.labels(module)
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
        chosen = chosen_modules(self.modules, modules)
        wanted = self.steps if steps is None else list(steps)
        rows = []
        work = [(module, step) for module in chosen for step in wanted]
        for module, step in tqdm(work, desc=f"spectra of {self.name}", unit="matrix", disable=not progress):
            for group, found in self._spectra_of(module, step, groups):
                rows.append(
                    self.labels(module)
                    | {"step": step, "group": group, "full_rank": min(self.shape(module))}
                    | {name: getattr(found, name) for name in _SPECTRUM}
                    | {"energy_rank_90": found.energy_rank(0.90), "energy_rank_99": found.energy_rank(0.99)}
                )
        head = ["run", "method", "module", "layer", "kind", "step", "group", "rank", "full_rank"]
        tail = [name for name in _SPECTRUM if name != "rank"]
        frame = pd.DataFrame(rows, columns=[*head, *tail[:4], "energy_rank_90", "energy_rank_99", *tail[4:]])
        return frame.astype({"layer": "Int64", "step": "Int64"})

    def _spectra_of(self, module: str, step: int, groups: bool) -> Iterator[tuple[str, Spectrum]]:
        method, source = self.method_of(module), self.source
        try:
            factors = source.factors(module, step, torch.float64)
            if factors is not None:
                yield "update", spectrum(factors=factors)
            else:
                stored = source.rounding(module, step)
                weight = None if stored is None else source.weight(module, step, torch.float64)
                yield "update", spectrum(source.update(module, step), stored=stored, weight=weight)
            if groups and method is not None:
                state = {k: v.double() if v.is_floating_point() else v for k, v in self.state(module, step).items()}
                for group, matrix in method.groups(state).items():
                    yield group, spectrum(matrix)
        except NonFiniteError as error:
            raise NonFiniteError(f"{self.path}: {module} {self.shape(module)} at step {step}: {error}") from None

    def _walk(
        self, modules: list[str], pairs: list[tuple[Step, int]], progress: bool
    ) -> Iterator[tuple[str, Step, int, dict[Step, Tensor]]]:
        """Yield module and pair with both weights in hand, each read once where the order of the pairs allows it."""
        bar = tqdm(total=len(modules) * len(pairs), desc=f"changes of {self.name}", unit="pair", disable=not progress)
        with bar:
            for module in modules:
                # float64 where W' is rebuilt, so that its rounding does not stand in for a change.
                dtype = torch.float64 if self.source.rebuilt(module) else None
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


def chosen_modules(modules: list[str], patterns: Sequence[str] | None) -> list[str]:
    """Return the modules that fit one of the glob patterns; ``None`` for all.

    Raises:
        TargetError: A pattern fits none.
    """
    if patterns is None:
        return modules
    return matching(modules, [patterns] if isinstance(patterns, str) else patterns, "module")


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
