"""DeepSpeed's universal checkpoint: a folder a parameter, ``zero/NAME/fp32.pt``, as its ``ds_to_universal`` writes it.

From ZeRO-1 and 2 a file holds ``{"param": tensor}``, the whole parameter in float32. From ZeRO-3 it holds the ranks'
pieces one after the other, flat and padded at the end; the shape is in ``param_shapes`` of the model states beside it.
"""

import math
import re
from collections.abc import Collection
from typing import Any

from torch import Tensor
from typing_extensions import override

from deltaw.adapters.errors import RecordError
from deltaw.adapters.small_files import regular_file
from deltaw.analysis.records.storage.file_names import UNIVERSAL
from deltaw.analysis.records.storage.files import LocalStorage, Storage
from deltaw.analysis.records.storage.plain_pickle import said, whole_sizes
from deltaw.analysis.records.storage.tensors import Tensors
from deltaw.analysis.records.storage.torch_file import Saved, saved_in

FILE = "fp32.pt"
_STATES = re.compile(r"(?:zero_pp_rank_\d+_)?mp_rank_\d+_model_states\.pt")


class UniversalTensors(Tensors):
    """The parameters of such a folder, those that were trained.

    Raises:
        RecordError: It is not on this machine, or has no parameter.
    """

    def __init__(self, storage: Storage) -> None:
        if not isinstance(storage, LocalStorage):
            raise RecordError(f"{storage.where}: has pickles, which are read only from this machine; copy it here")
        self._storage, self.where = storage, storage.where
        inside = storage.folder(UNIVERSAL)
        self._folders = {name: inside.folder(name) for name in inside.names() if inside.has_folder(name)}
        self._saved: dict[str, Saved] = {}
        self._shapes: dict[str, tuple[int, ...]] | None = None
        if not self._folders:
            raise RecordError(f"{inside.where}: has no folder of a parameter")

    def _file(self, name: str) -> Saved:
        self.need(name)
        if name not in self._saved:
            folder = self._folders[name]
            found = _plain(folder, FILE)
            found = found.get("param") if type(found) is dict else found
            if not isinstance(found, Saved):
                raise RecordError(f"{folder.file(FILE)}: holds no parameter as ds_to_universal writes it")
            self._saved[name] = found
        return self._saved[name]

    def _stated(self, name: str) -> tuple[int, ...] | None:
        """The shape of a parameter by the model states beside it."""
        if self._shapes is None:
            states = next((file for file in self._storage.names() if _STATES.fullmatch(file)), None)
            groups = _plain(self._storage, states) if states is not None else {}
            groups = groups.get("param_shapes") if type(groups) is dict else None
            self._shapes = {}
            for group in groups if type(groups) is list else [groups]:
                for key, shape in group.items() if type(group) is dict else ():
                    if type(key) is str and type(shape) is tuple:
                        self._shapes[key] = whole_sizes(shape)
        return self._shapes.get(name)

    @override
    def names(self) -> Collection[str]:
        return self._folders

    @override
    def shape(self, name: str) -> tuple[int, ...]:
        found = self._file(name).shape
        stated = self._stated(name) if len(found) == 1 else None
        return found if stated is None else stated

    @override
    def dtype_name(self, name: str) -> str:
        return self._file(name).dtype

    @override
    def read(self, name: str, index: int | None = None) -> Tensor:
        saved, shape, folder = self._file(name), self.shape(name), self._folders[name]
        whole = saved.of(folder.mapped(FILE, saved.start, saved.length))
        if saved.shape != shape:
            if math.prod(shape) > math.prod(saved.shape):
                raise RecordError(f"{folder.file(FILE)}: has {math.prod(saved.shape)} numbers, too few for {shape}")
            whole = whole[: math.prod(shape)].reshape(shape)
        return whole if index is None else whole[index]


def _plain(storage: LocalStorage, file: str) -> Any:
    """Return what a file of ``torch.save`` holds, as ``saved_in``."""
    where = storage.file(file)
    if not storage.has(file):
        raise RecordError(f"{where}: is missing")
    try:
        with regular_file(storage.path / file) as opened:
            return saved_in(opened, storage.size(file))
    except Exception as error:  # whatever the unpickler makes of damaged bytes
        raise RecordError(f"{where}: holds more than tensors, or is damaged ({said(error)})") from None
