"""Whole models, one a step: what ``Trainer`` and ``save_pretrained`` leave."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from deltaw.adapters.errors import RecordError
from deltaw.analysis.records.foreign.base import GIVE, Base, BaseError, BaseLike, open_base, quantised_as
from deltaw.analysis.records.foreign.foreign_adapters import refuse_factors
from deltaw.analysis.records.foreign.formats.opening import adapter_source
from deltaw.analysis.records.foreign.layout import matrices
from deltaw.analysis.records.foreign.left_out import left_out, prefixes_of
from deltaw.analysis.records.foreign.model_reader import model_reader, place_of
from deltaw.analysis.records.foreign.quantised.dequantised import dequantised
from deltaw.analysis.records.source import LeftOut, Place, Shape, Source, State, fitting
from deltaw.analysis.records.storage.file_names import adapter_file, has_model, is_sharded, weights_file
from deltaw.analysis.records.storage.files import Storage
from deltaw.analysis.records.storage.location import Location, own_step
from deltaw.analysis.records.storage.tensors import Tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor

OPEN_AT_ONCE = 1024  # models whose names are kept: a table goes through all steps of each module


class FullModelSource(Source):
    """The checkpoints of a model that was saved whole.

    Arguments:
        where: The folder, for messages.
        models: What opens the model of a step, by step.
        config: The model's ``config.json``.
        base: W₀, or ``None``.
        everything: Show embeddings and output heads too.
        log: What was logged, a mapping a line.
        info: What else is known.
        steps_known: Whether the files say the steps.
        first: The model of the first step, where it is open already.

    Raises:
        RecordError: The first checkpoint is damaged, or has no matrix of a linear layer.
    """

    format = "transformers"

    def __init__(
        self,
        where: str,
        models: Mapping[int, Callable[[], Tensors]],
        config: Mapping[str, Any],
        base: Base | None,
        *,
        everything: bool = False,
        log: list[dict[str, float]] | None = None,
        info: Mapping[str, Any] | None = None,
        steps_known: bool = True,
        first: Tensors | None = None,
    ) -> None:
        self.where, self.method, self.steps_known = where, "ft", steps_known
        self.steps, self.config, self.info = sorted(models), dict(config), dict(info or {})
        self._models, self._base, self._log = dict(models), base, log or []
        self._open: OrderedDict[int, Tensors] = OrderedDict()
        if first is not None:
            self._open[self.steps[0]] = dequantised(first, self.config)
        first = self._tensors(self.steps[0])
        refuse_factors(first.names(), first.where)
        self._matrices = matrices(first, config, everything=everything)
        if not self._matrices and not first.names():
            raise RecordError(f"{first.where}: holds no tensor at all")
        if not self._matrices:
            how = quantised_as(first, config)
            told = f"; it is quantised ({how}), open the model as it was before, or dequantised" if how else ""
            raise RecordError(f"{first.where}: holds no matrix of a linear layer in a floating dtype{told}")
        self.shapes: dict[str, Shape] = {module: stored.shape for module, stored in self._matrices.items()}
        if base is not None:
            base.expect(self.shapes)
            self.shapes = {module: base.common(module, shape) for module, shape in self.shapes.items()}
            if base.resized:
                self.info["resized"] = base.resized

    def _tensors(self, step: int) -> Tensors:
        if step not in self._open:
            self._open[step] = dequantised(self._models[step](), self.config)
            while len(self._open) > OPEN_AT_ONCE:
                self._open.popitem(last=False)
        self._open.move_to_end(step)
        return self._open[step]

    @override
    def weight(self, module: str, step: int, dtype: torch.dtype | None = None) -> Tensor:
        self.check(module, step)
        tensors, stored = self._tensors(step), self._matrices[module]
        weight = fitting(tensors.where, module, stored.read(tensors), stored.shape)[: self.shapes[module][0]]
        return weight if dtype is None else weight.to(dtype)

    @override
    def new_rows(self, module: str, step: int) -> Tensor | None:
        self.check(module, step)
        tensors, stored, rows = self._tensors(step), self._matrices[module], self.shapes[module][0]
        if stored.shape[0] == rows:
            return None
        return fitting(tensors.where, module, stored.read(tensors), stored.shape)[rows:]

    @override
    def state(self, module: str, step: int) -> State:
        return {"weight": self.weight(module, step)}

    @property
    @override
    def base_from(self) -> str | None:
        return None if self._base is None else self._base.where

    @override
    def base(self, module: str) -> Tensor:
        self.check(module)
        if self._base is None:
            raise BaseError(f"{self.where}: holds no base weights, so there is no W₀ of {module}; {GIVE}")
        return self._base.read(module, self.shapes[module])

    @override
    def kernel(self, module: str) -> tuple[int, ...]:
        return self._matrices[module].kernel

    @override
    def left_out(self, modules: Collection[str], *, shares: bool) -> list[LeftOut]:
        tensors = self._tensors(self.steps[-1])
        used = {self._matrices[module].tensor for module in modules}
        prefixes, base = ("", ""), self._base if shares else None
        for module in modules if base is not None else ():
            found = base.find(module) if base is not None else None
            if found is not None and found.expert is None:
                prefixes = prefixes_of(self._matrices[module].tensor, found.tensor)
                break
        return left_out(tensors, used, None if base is None else base.tensors, prefixes)

    @override
    def rounding(self, module: str, step: int) -> torch.dtype:
        self.check(module, step)
        return self._tensors(step).dtype(self._matrices[module].tensor)

    @override
    def places(self, step: int | None) -> list[Place] | None:
        if step is None:
            return [] if self._base is None else self._base.places
        found = place_of(self._models[step])
        return None if found is None else [found]

    @override
    def described(self, module: str) -> str:
        return f"{self._matrices[module]} {self.config}"

    @override
    def scalars(self) -> list[dict[str, float]]:
        return self._log


class DcpSource(FullModelSource):
    """The checkpoints of a model that torch.distributed.checkpoint saved, some of them at least."""

    format = "dcp"


def recognises(location: Location) -> bool:
    """Return whether whole models stand there, in folders of their steps or in the folder itself."""
    names = location.names
    return location.file is None and (bool(location.checkpoints) or has_model(names) or adapter_file(names) is not None)


def opens(location: Location, base: BaseLike, everything: bool) -> Source:
    """Open the models of a folder.

    Raises:
        RecordError: A checkpoint holds no model, or it is damaged.
    """
    storage, names, folders = location.storage, location.names, location.checkpoints
    last = folders[max(folders)] if folders else location
    step, log = trainer_log(storage if "trainer_state.json" in names or not folders else last.storage)
    readers = {at: model_reader(folder) for at, folder in folders.items()}
    if not folders:
        step = own_step(storage) if step is None else step
        readers = {step or 0: model_reader(location)}
    elif step is not None and step not in readers and weights_file(names):
        readers[step] = model_reader(location)
    config = last.storage.mapping("config.json") or storage.mapping("config.json")
    is_dcp = any(
        is_sharded(folder.names) and not weights_file(folder.names) for folder in folders.values() or (location,)
    )
    source = DcpSource if is_dcp else FullModelSource
    known = bool(folders) or step is not None
    first = readers[min(readers)]()
    places = {at: folder.storage for at, folder in folders.items()}
    adapted = adapter_source(
        storage.where, readers, first, {at: places.get(at, storage) for at in readers}, base, root=storage, log=log,
        steps_known=known,
    )  # fmt: skip
    if adapted is not None:
        return adapted
    given = open_base(base)
    return source(storage.where, readers, config, given, everything=everything, log=log, steps_known=known, first=first)


def trainer_log(storage: Storage) -> tuple[int | None, list[dict[str, float]]]:
    """Return the step and the log of a ``trainer_state.json``: step, epoch, loss, scores; nothing where there is none.

    Raises:
        RecordError: The file is damaged.
    """
    state = storage.mapping("trainer_state.json")
    step, history = state.get("global_step"), state.get("log_history", [])
    if (step is not None and type(step) is not int) or not isinstance(history, list):
        raise RecordError(f"{storage.file('trainer_state.json')}: is damaged (global_step {step!r:.40})")
    rows: dict[tuple[str, int], dict[str, float]] = {}  # of one step: its loss and, apart, its scores
    for number, line in enumerate(history):
        if not isinstance(line, dict):
            raise RecordError(f"{storage.file('trainer_state.json')}: is damaged, a line of its log is {line!r:.40}")
        numbers = {str(k): float(v) for k, v in line.items() if isinstance(v, (int, float)) and not _too_large(v)}
        at = line.get("step")
        rows.setdefault(("step", at) if type(at) is int else ("line", number), {}).update(numbers)
    return step, list(rows.values())


def _too_large(value: float) -> bool:
    return isinstance(value, bool) or (isinstance(value, int) and abs(value) >= 2**63)
