"""Two models as one run: the first is W₀ and step 0, the second step 1."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import override

from deltaw.adapters.errors import RecordError
from deltaw.analysis.records.foreign.base import Base
from deltaw.analysis.records.foreign.base_names import HEADS, tied_to
from deltaw.analysis.records.foreign.foreign_adapters import foreign_tool, refuse_factors
from deltaw.analysis.records.foreign.full import FullModelSource
from deltaw.analysis.records.foreign.model_reader import model_reader, place_of, read_file
from deltaw.analysis.records.source import Place
from deltaw.analysis.records.storage.files import Storage, without_secrets
from deltaw.analysis.records.storage.location import Folder, listed, storage_of
from deltaw.analysis.records.storage.tensors import Tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NAMED = 8  # modules that a message names
logger = logging.getLogger(__name__)


class PairSource(FullModelSource):
    """Two models, each a file or a folder of one, or its address.

    The names are those of the second; the first may have another prefix, as ``encoder…`` and ``bert.encoder…``. A
    module that one of them lacks, or has in another shape, is left out and named in ``info["left_out"]``.

    Raises:
        RecordError: One of them is no model, or they have no matrix in common.
    """

    format = "pair"

    def __init__(self, before: str | Path, after: str | Path, *, everything: bool) -> None:
        first, second = (without_secrets(str(path)) for path in (before, after))
        storage, reader = _reader(before)
        tensors = reader()
        refuse_factors(tensors.names(), tensors.where, alone=True)
        base = Base(tensors, storage.mapping("config.json"), place=place_of(reader))
        storage, reader = _reader(after)
        config = storage.mapping("config.json") or base.config
        super().__init__(f"{first} → {second}", {1: reader}, config, base, everything=everything)
        self.steps = [0, 1]
        tied = tied_to(self._matrices, config)
        for head in HEADS:  # W₀'s head stands apart, that of the second is its embedding
            if len(tied) == 1 and base.has(head) and head not in self._matrices:
                self._matrices[head] = self._matrices[tied[0]]
                self.shapes = {**self.shapes, head: self._matrices[head].shape}
        both = {
            module: shape
            for module, shape in self.shapes.items()
            if base.shape(module) in (shape, shape[::-1]) or module in base.resized
        }
        if not both:
            module, shape = next(iter(self.shapes.items()))
            there = base.shape(module)
            found = "no such matrix" if there is None else f"one of {there}"
            raise RecordError(
                f"{second}: {module} is {shape}, {first} has {found}, nor is there another matrix of both; "
                "they are not of one model"
            )
        left_out = [module for module in self.shapes if module not in both]
        missing = base.without(self.shapes)
        for where, modules in ((first, left_out), (second, missing)):
            if modules:
                named = ", ".join(modules[:NAMED]) + (", …" if len(modules) > NAMED else "")
                logger.warning("%s: %d left out, as %s has no such matrix: %s", self.where, len(modules), where, named)
        left_out += missing
        self.shapes = both
        self.info |= {"left_out": left_out} if left_out else {}

    @override
    def weight(self, module: str, step: int, dtype: torch.dtype | None = None) -> Tensor:
        if step != 0:
            return super().weight(module, step, dtype)
        weight = self.base(module)
        return weight if dtype is None else weight.to(dtype)

    @override
    def places(self, step: int | None) -> list[Place] | None:
        return super().places(None if step == 0 else step)

    @override
    def rounding(self, module: str, step: int) -> torch.dtype:
        return self.base(module).dtype if step == 0 else super().rounding(module, step)


def is_adapter(path: str | Path) -> bool:
    """Return whether it is an adapter of another tool than PEFT, of a kind that is read.

    Raises:
        RecordError: It is neither a model nor an adapter, or damaged.
    """
    _, reader = _reader(path)
    found = foreign_tool(reader().names())
    return found is not None and bool(found[0].reads)


def _reader(path: str | Path) -> tuple[Storage, Callable[[], Tensors]]:
    storage, file = storage_of(path)
    if file is not None:
        return storage, partial(read_file, storage, file)
    return storage, model_reader(Folder(storage, listed(storage)))
