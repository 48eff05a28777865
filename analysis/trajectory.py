"""A trajectory: one run's checkpoints in order, with the base weights. Its tables are made in `tables`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from deltaw.adapters.checks import public, whole_number
from deltaw.adapters.errors import OptionError, RecordError
from deltaw.adapters.method import Method
from deltaw.analysis.measures.change import AXES, Axis
from deltaw.analysis.names import name_reader
from deltaw.analysis.printable import html_table, printable
from deltaw.analysis.records.foreign.base import BaseLike
from deltaw.analysis.records.open import Opening
from deltaw.analysis.records.run_folder.format import MANIFEST, Manifest
from deltaw.analysis.records.source import Source
from deltaw.analysis.tables.run import PairKind, Pairs, Step, Steps
from deltaw.analysis.tables.run_tables import RunTables
from deltaw.analysis.tables.work import chosen_work

if TYPE_CHECKING:  # tables are made with pandas, weights are read without
    import pandas as pd

logger = logging.getLogger(__name__)


class Trajectory(RunTables):
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
        if not isinstance(source, Source):
            raise OptionError(f"source is {source!r}; open a run with Trajectory.open(path)")
        self.source = source
        self.path = Path(source.where)
        self.steps = list(source.steps)
        self.name = self.path.resolve().name  # in tables; to be changed where two runs have the same
        self._pattern, self._names = pattern, name_reader(pattern)
        self._opening: Opening | None = None

    @classmethod
    @public
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

        Of a run that is still being recorded, what is there is read, and the log says up to which step.

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
        run = cls._opened(Opening(_path("path", path), base=base, modules=modules, split=split), pattern)
        if run.steps and run.source.unfinished():
            where, last = printable(run.source.where), run.steps[-1]
            logger.warning("%s: is still being recorded, or its recorder was killed; read up to step %d", where, last)
        return run

    @classmethod
    @public
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
        pair = Opening(_path("after", after), _path("before", before), modules=modules, split=split)
        return cls._opened(pair, pattern)

    @classmethod
    def _opened(cls, opening: Opening, pattern: str | None) -> Self:
        run = cls(opening.source(), pattern)
        run._opening = opening
        return run

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle how it was opened, and no open file; a source that was given goes along as it is."""
        opened = self.source if self._opening is None else self._opening
        return _opened_again, (type(self), opened, self._pattern, self.name, self.steps)

    def __repr__(self) -> str:
        where = self.source.where
        return f"Trajectory({where!r}, {self.method}, {len(self.modules)} modules, {len(self.steps)} steps)"

    def _repr_html_(self) -> str:
        steps = f"{len(self.steps)}, from {self.steps[0]} to {self.steps[-1]}" if len(self.steps) > 1 else "1"
        if not self.steps:
            steps = "none"
        shapes = sorted({f"{rows}×{columns}" for rows, columns in self.source.shapes.values()})
        listed = ", ".join(self.modules[:3]) + (", …" if len(self.modules) > 3 else "")
        rows = {
            "method": self.method,
            "format": self.source.format,
            "steps": steps,
            "modules": f"{len(self.modules)}: {listed}",
            "shapes": ", ".join(shapes[:4]) + (", …" if len(shapes) > 4 else ""),
            "W₀": self.base_from or "not known",
        }
        return html_table(f"Trajectory {self.source.where}", rows.items())

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
        """Plain values that were recorded with the run, or that its files say of it."""
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
        self._check(module)
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
        self._check(module)
        return self.source.base(module)

    def state(self, module: str, step: int) -> dict[str, Tensor]:
        """Return what was recorded of a module at a step: the method's tensors, or {"weight": the matrix}."""
        self._check(module, step)
        return self.source.state(module, step)

    @public
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
        self._check(module, step)
        if step is None:
            base = self.base(module)
            return base if dtype is None else base.to(dtype)
        return self.source.weight(module, step, dtype)

    @public
    def update(self, module: str, step: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return ΔW = W_t − W₀ (out, in), by default in float64: the exact update of the recorded parameters.

        Raises:
            OptionError: There is no such module or step.
            RecordError: The file is damaged, or ΔW depends on W₀, which was not given.
        """
        self._check(module, step)
        return self.source.update(module, step, dtype)

    @public
    def factors(self, module: str, step: int, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor] | None:
        """Return U (out, r) and V (r, in) with ΔW = U V exactly, or ``None`` where the method has no such form."""
        self._check(module, step)
        return self.source.factors(module, step, dtype)

    def scalars(self) -> pd.DataFrame:
        """Return the scalar log: a row a line, a column a name."""
        import pandas as pd

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
        from deltaw.analysis.tables.walk import chosen_pairs

        return chosen_pairs(self, pairs)

    @public
    def changes(
        self,
        pairs: Pairs | Sequence[PairKind] = None,
        axes: Sequence[Axis] = AXES,
        modules: Sequence[str] | None = None,
        *,
        heads: int | Mapping[str, int] | None = None,
        allow_nonfinite: bool = False,
        progress: bool = False,
        device: str | None = None,
        jobs: int = 1,
        engine: str | None = None,
        address: str | None = None,
        cache: bool = True,
    ) -> pd.DataFrame:
        """Return ΔM and ΔD of every module, pair of steps and axis.

        Arguments:
            pairs: "consecutive" (t−1, t), "initial" (first recorded step, t), "base" (W₀, t), or a list of pairs.
                ``None`` for consecutive ones, and for base where the run has one checkpoint. Several kinds, as
                ("consecutive", "base"), are made in one pass, and the table has a column pairs.
            axes: "row", "column", "matrix", "head", "expert", "entry" (of convolutions), or several.
            modules: Glob patterns over the recorded modules; ``None`` for all.
            heads: The number of attention heads, or numbers as {"num_attention_heads": 8, "num_key_value_heads": 2},
                where the run's configuration does not say them.
            allow_nonfinite: Go on where a weight holds NaN or infinity.
            progress: Show a progress bar.
            device, jobs, engine, address, cache: Where and how it is done, see `deltaw.analysis.tables.work.Work`;
                ``None`` for the processor. No choice changes a digit.

        Returns:
            See `deltaw.analysis.tables.changes.changes_table`.

        Raises:
            NonFiniteError: A weight holds NaN or infinity; names the module and the steps.
            OptionError: Unknown pairs, axis, module or step.
        """
        from deltaw.analysis.tables.changes import changes_table

        work = chosen_work(device, jobs, engine, address, cache)
        return changes_table(
            [self], pairs, axes, modules, heads=heads, allow_nonfinite=allow_nonfinite, progress=progress, work=work
        )

    @public
    def spectra(
        self,
        steps: Steps = None,
        modules: Sequence[str] | None = None,
        *,
        measures: Sequence[str] | None = None,
        groups: bool = False,
        approximate: float | None = None,
        progress: bool = False,
        device: str | None = None,
        jobs: int = 1,
        engine: str | None = None,
        address: str | None = None,
        cache: bool = True,
    ) -> pd.DataFrame:
        """Return the rank and the spectrum of the update of every module at every step.

        Arguments:
            steps: The steps; "last" for the last, ``None`` for all that are recorded.
            modules: Glob patterns over the recorded modules; ``None`` for all.
            measures: The columns that are wanted, as ("frobenius", "stable_rank"); ``None`` for all. Where the largest
                singular values suffice, large matrices are many times faster.
            groups: Also the groups that a method's update is made of, as Dual LoRA's two.
            approximate: The share of ‖ΔW‖_F² that singular values may leave out, as 0.01; then a column ``error``.
            progress: Show a progress bar.
            device, jobs, engine, address, cache: As in `changes`.

        Returns:
            See `deltaw.analysis.tables.spectra.spectra_table`.

        Raises:
            NonFiniteError: A weight holds NaN or infinity; names module and step.
            OptionError: No such module or step.
        """
        from deltaw.analysis.tables.spectra import spectra_table

        work = chosen_work(device, jobs, engine, address, cache)
        return spectra_table(
            [self],
            steps,
            modules,
            measures=measures,
            groups=groups,
            approximate=approximate,
            progress=progress,
            work=work,
        )

    def _check(self, module: str, step: Step = None) -> None:
        """Raise where it is no name or no step at all; whether there is one, the source says."""
        if not isinstance(module, str):
            raise OptionError(f"module is {module!r}; pass a name of run.modules, as {self.modules[0]!r}")
        self.source.check(module)
        if step is not None:
            whole_number("step", step, 0, also="None")


def _opened_again(
    cls: type[Trajectory], opened: Opening | Source, pattern: str | None, name: str, steps: list[int]
) -> Trajectory:
    """Open a run in another process, with the steps that there were, as it may still be recorded."""
    run = cls._opened(opened, pattern) if isinstance(opened, Opening) else cls(opened, pattern)
    run.name, run.steps = name, steps
    return run


def _path(name: str, value: object) -> str | Path:
    if not isinstance(value, str | Path):
        raise OptionError(f"{name} is {value!r}; pass a folder, a file or an address, as a text or a Path")
    return value
