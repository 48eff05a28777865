"""Two models as one run: the first is W₀ and step 0, the second step 1."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from deltaw.adapters.errors import RecordError
from deltaw.analysis.records.base import open_base
from deltaw.analysis.records.full import FullModelSource
from deltaw.analysis.records.location import Folder, listed, storage_of
from deltaw.analysis.records.model_reader import model_reader, read_file
from deltaw.analysis.records.storage import without_secrets
from deltaw.analysis.records.tensors import Tensors


class PairSource(FullModelSource):
    """Two models, each a file or a folder of one, or its address.

    Raises:
        RecordError: One of them is no model, or they are not of one model.
    """

    format = "pair"

    def __init__(self, before: str | Path, after: str | Path, *, everything: bool) -> None:
        readers = {0: _reader(before), 1: _reader(after)}
        base = open_base(Path(before) if Path(before).is_file() else before)
        config = base.config if base is not None else {}
        first, second = (without_secrets(str(path)) for path in (before, after))
        super().__init__(f"{first} → {second}", readers, config, base, everything=everything)
        for module, shape in self.shapes.items():
            found = self.shape_at(module, 1)
            if found != shape:
                raise RecordError(f"{second}: {module} is {found}, in {first} it is {shape}; they are not of one model")


def _reader(path: str | Path) -> Callable[[], Tensors]:
    storage, file = storage_of(path)
    return model_reader(Folder(storage, listed(storage))) if file is None else partial(read_file, storage, file)
