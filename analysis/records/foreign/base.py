"""W₀: a folder, a name in Hugging Face's cache on this machine, or a model in memory."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from deltaw.adapters.errors import OptionError, RecordError
from deltaw.adapters.peft.names import BASE_LAYER, CONFIG, PREFIX
from deltaw.adapters.small_files import small_file
from deltaw.analysis.names import is_embedding
from deltaw.analysis.records.foreign.base_names import BaseNames, from_layer
from deltaw.analysis.records.foreign.foreign_adapters import refuse_factors
from deltaw.analysis.records.foreign.layout import StoredMatrix, matrices, module_name
from deltaw.analysis.records.foreign.model_reader import model_reader, place_of
from deltaw.analysis.records.foreign.pipeline import INDEX, pipeline
from deltaw.analysis.records.foreign.quantised.dequantised import UnreadError, dequantised
from deltaw.analysis.records.source import Place, Shape, fitting
from deltaw.analysis.records.storage.file_names import is_readable, weights_file
from deltaw.analysis.records.storage.files import is_address
from deltaw.analysis.records.storage.location import Folder, listed, storage_of
from deltaw.analysis.records.storage.tensors import InMemory, Tensors, read_weights

if TYPE_CHECKING:
    from torch import Tensor, nn

logger = logging.getLogger(__name__)
BaseLike: TypeAlias = "str | Path | nn.Module | Mapping[str, Tensor] | None"
GIVE = "give it: base=FOLDER, a name in Hugging Face's cache, a model or its state dict (at the command line --base)"
# transformers stacks the experts of some models when it loads them: what is a parameter's in their files.
APART = {"gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")), "down_proj": (("w2",),)}


class BaseError(RecordError):
    """W₀ of a module is not known: no base was given, or it has no matrix of the module, or one of another shape."""


@dataclass(frozen=True)
class Stack:
    """A parameter of the base: a matrix, or one an expert.

    Arguments:
        shape: (out, in) of each.
        experts: How many there are, 0 for a plain matrix.
        turned: Whether they are stored as [in, out].
        position: Which of the model's tensors it is, where their order is known.
    """

    shape: Shape
    experts: int
    turned: bool
    position: int | None


class Base:
    """The matrices of a model before training.

    Arguments:
        tensors: The model's.
        config: Its ``config.json``.
        ordered: Whether the tensors come in the model's order, as those of a file or a state dict need not.
        place: Where they stand, ``None`` where they are in memory.
    """

    def __init__(
        self,
        tensors: Tensors,
        config: Mapping[str, Any],
        *,
        ordered: bool = False,
        place: Place | None = None,
    ) -> None:
        self.places = None if place is None else [place]
        self.where, self.config = tensors.where, dict(config)
        tensors = dequantised(tensors, config)
        self._tensors, self._ordered = tensors, ordered
        self.resized: dict[str, tuple[int, int]] = {}
        self._matrices = matrices(tensors, config, everything=True)
        self._by_name = BaseNames(self._matrices, self.config)
        self.order = [
            name
            for name, part in self._matrices.items()
            if ordered and part.tensor == f"{name}.weight" and not part.kernel
        ]

    def expect(self, modules: Iterable[str]) -> None:
        """Take note of all modules of a run, so that no two of them are given the same matrix."""
        self._by_name.expect(modules)

    def find(self, module: str) -> StoredMatrix | None:
        """Return where the matrix of a module stands, perhaps under another prefix; see ``BaseNames``."""
        found = self._by_name.find(module)
        return None if found is None else self._matrices[found]

    @property
    def tensors(self) -> Tensors:
        """All of its tensors."""
        return self._tensors

    @property
    def names(self) -> Collection[str]:
        """The modules that it has a matrix of."""
        return self._matrices

    def has(self, module: str) -> bool:
        """Return whether there is a matrix of exactly this name."""
        return module in self._matrices

    def kernel(self, module: str) -> tuple[int, ...]:
        """Return (k…) of a convolution, () of all else."""
        found = self.find(module)
        return () if found is None else found.kernel

    def why_not(self, module: str) -> str:
        """Return why there is no W₀ of a module: the cause, and what to do."""
        start = f"the base has no matrix of {module}"
        end = from_layer(module) or module
        quantised = quantised_as(self._tensors, self.config, f".{end}.")
        if quantised:
            return (
                f"{start} that can be read: the base is quantised ({quantised}); give the model as it was before, or "
                "load it with transformers (for bitsandbytes: pip install 'deltaw[quant]') and give model.dequantize()"
            )
        reason = self._by_name.why_not(module)
        if reason:
            return f"{start}, {reason}; give the model that was trained"
        if self._by_name.known:
            return (
                f"{start}, which was added for the training, as a new head is; or it is not the model that was trained"
            )
        there = ", ".join(list(self._matrices)[:2]) or "no matrix at all"
        return f"{start}; is it the model that was trained? It has {there}, …"

    def shape(self, module: str) -> Shape | None:
        """Return (out, in) of a module's matrix, ``None`` where there is none."""
        found = self._pieces(module)
        return (sum(piece.shape[0] for piece in found), found[0].shape[1]) if found else None

    def common(self, module: str, shape: Shape) -> Shape:
        """Return the sides of what a run and the base both have of a module: of a resized vocabulary the common rows.

        Of all else as it is. It is noted in ``resized``, (rows of the base, rows of the run), and said once.
        """
        own = self.shape(module) if is_embedding(module) else None
        if own is None or own[1] != shape[1] or own[0] == shape[0]:
            return shape
        self.resized[module] = own[0], shape[0]
        rows = min(own[0], shape[0])
        told = (
            "%s: the vocabulary was resized: %s has %d rows in the base and %d in the run; the %d of both are compared"
        )
        logger.warning(told, self.where, module, own[0], shape[0], rows)
        return rows, shape[1]

    def without(self, modules: Collection[str]) -> list[str]:
        """Return the modules of linear layers, by the base's names, that are none of these."""
        used = {piece.tensor for module in modules for piece in self._pieces(module)}
        return [
            name
            for name, own in self._matrices.items()
            if own.tensor not in used and not own.kernel and not is_embedding(name)
        ]

    def stack(self, parameter: str) -> Stack | None:
        """Return what is known of a parameter, ``None`` where it is no matrix and no stack of matrices."""
        head, _, last = parameter.rpartition(".")
        names = self._tensors.names()
        pieces = self._pieces(f"{head}.0.{last}")
        if pieces:
            first, rows = pieces[0], sum(part.shape[0] for part in pieces)
            front, found, back = first.tensor.rpartition(".experts.0.")
            if first.expert is not None:
                position = list(names).index(first.tensor) if self._ordered else None
                return Stack(first.shape, self._tensors.shape(first.tensor)[0], first.turned, position)
            if found:
                count = next(k for k in range(len(names) + 1) if f"{front}.experts.{k}.{back}" not in names)
                return Stack((rows, first.shape[1]), count, first.turned, None)
        part = self.find(module_name(parameter) or parameter)
        if part is None or part.expert is not None or not f".{part.tensor}".endswith(f".{last}"):
            return None
        return Stack(part.shape, 0, part.turned, list(names).index(part.tensor) if self._ordered else None)

    def _pieces(self, module: str) -> list[StoredMatrix]:
        """The matrices that stand one below the other in a module's; an expert's may be apart in a file."""
        part = self.find(module)
        if part is not None:
            return [part]
        head, _, last = module.rpartition(".")
        for ends in APART.get(last, ()):
            for name in (head, head.replace(".mlp.experts.", ".block_sparse_moe.experts.")):
                parts = [found for end in ends if (found := self.find(f"{name}.{end}")) is not None]
                if len(parts) == len(ends):
                    return parts
        return []

    def bias(self, module: str) -> Tensor | None:
        """Return the bias of a linear layer, ``None`` where it has none."""
        part = self.find(module)
        name = "" if part is None else part.tensor.removesuffix("weight") + "bias"
        return self._tensors.read(name) if name in self._tensors.names() else None

    def read(self, module: str, shape: Shape) -> Tensor:
        """Return W₀ (out, in) of a module.

        Raises:
            BaseError: The base has no such module, or of another shape: it is another model's.
            RecordError: It cannot be read.
        """
        try:
            return self._read(module, shape)
        except UnreadError as error:
            raise BaseError(str(error)) from None

    def _read(self, module: str, shape: Shape) -> Tensor:
        parts = self._pieces(module)
        if not parts:
            raise BaseError(f"{self.where}: {self.why_not(module)}")
        if len(parts) > 1:
            import torch

            joined = torch.cat([part.read(self._tensors) for part in parts])
            return self._fitting(module, joined, shape)
        part = parts[0]
        if tuple(part.shape) == tuple(shape[::-1]) != tuple(shape):
            part = StoredMatrix(part.tensor, shape, part.expert, not part.turned)
        return self._fitting(module, part.read(self._tensors), shape)

    def _fitting(self, module: str, found: Tensor, shape: Shape) -> Tensor:
        if is_embedding(module) and found.shape[1] == shape[1] and len(found) > shape[0]:
            return found[: shape[0]]  # the vocabulary was resized, or padded: a token is the same row in both
        if is_embedding(module) and tuple(found.shape) != tuple(shape) and found.shape[1] == shape[1]:
            raise BaseError(
                f"{self.where}: {module} has {len(found)} rows in the base and {shape[0]} in the run: the vocabulary "
                "was resized; give the base with its embeddings resized as they were before training"
            )
        try:
            return fitting(f"{self.where}: the base is of another model", module, found, shape)
        except RecordError as error:
            raise BaseError(str(error)) from None


def quantised_as(tensors: Tensors, config: Mapping[str, Any], part: str = ".") -> str:
    """Return how the layers whose names, after a dot, have a part in them are quantised; "" where they are not."""
    own = [name for name in tensors.names() if part in f".{name}"]
    dtypes = {tensors.dtype_name(name) for name in own if name.endswith(".weight")}
    packed = any(name.endswith((".qweight", ".weight_packed")) for name in own)
    small = sorted(dtype for dtype in dtypes if dtype.startswith(("float8", "int", "uint")))
    if not packed and not small:
        return ""
    settings = config.get("quantization_config")
    kind = [settings.get(key) for key in ("quant_method", "bnb_4bit_quant_type")] if isinstance(settings, dict) else []
    return ", ".join(str(part)[:40] for part in kind if part) or ("packed integers" if packed else small[0])


def open_base(base: BaseLike) -> Base | None:
    """Return the base that was given.

    Raises:
        RecordError: There is no model there, or the name is not in the cache.
        OptionError: It is none of what can be given.
    """
    if base is None:
        return None
    if not isinstance(base, (str, Path)):
        return _base_in_memory(base)
    where: str | Path = base
    if isinstance(base, str) and not is_address(base) and not Path(base).exists():
        cached = cached_model(base)
        if cached is None:
            raise RecordError(
                f"base {base!r}: there is no such folder, and no model of this name in Hugging Face's cache "
                f"({cache_folder()}); give the folder, or load the model once with transformers"
            )
        where = cached
    storage, file = storage_of(where)
    names = [file] if file is not None else listed(storage)
    if file is None and weights_file(names) is None and is_readable(names) and CONFIG not in names:
        reader = model_reader(Folder(storage, names))
        return Base(reader(), storage.mapping("config.json"), place=place_of(reader))
    file = file or weights_file(names)
    if file is None and INDEX in names:
        return Base(pipeline(storage, names), {})
    if file is None:
        if CONFIG in names:
            named = storage.mapping(CONFIG).get("base_model_name_or_path")
            told = f" (it names {named!r:.200})" if isinstance(named, str) and named else ""
            raise RecordError(
                f"{storage.where}: is an adapter and no model; give the model that it was trained on{told}"
            )
        raise RecordError(f"{storage.where}: holds no model (no model.safetensors); give the folder of the base model")
    tensors = read_weights(storage, file)
    refuse_factors(tensors.names(), tensors.where, alone=True)
    return Base(tensors, storage.mapping("config.json"), place=(storage, None))


def _base_in_memory(base: nn.Module | Mapping[str, Tensor]) -> Base:
    from torch import Tensor, nn

    if isinstance(base, nn.Module):
        config: Any = getattr(base, "config", None)
        settings = config.to_dict() if hasattr(config, "to_dict") else {}
        state = InMemory(_plain(base.state_dict(keep_vars=True)), f"base ({type(base).__name__})")
        return Base(state, settings, ordered=True)
    if isinstance(base, Mapping):
        if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in base.items()):
            raise OptionError("base: a mapping must be a state dict, from names to tensors")
        return Base(InMemory(_plain(base), "base (state dict)"), {})
    raise OptionError(f"base is a {type(base).__name__}; give a folder, a name, a model or its state dict")


def cached_model(name: str, revision: str | None = None) -> Path | None:
    """Return the folder of a model of the Hub in the cache on this machine, without any network; ``None`` if none.

    Arguments:
        name: As ``org/model`` or ``model``; anything that looks like a path is no name.
        revision: A branch, tag or commit; by default "main".
    """
    parts = name.split("/")
    if len(parts) > 2 or not all(re.fullmatch(r"\w[\w.-]*", part) for part in parts):
        return None
    revision = revision or "main"
    if not re.fullmatch(r"\w[\w.-]*", revision):
        return None
    folder = cache_folder() / ("models--" + "--".join(parts))
    try:
        commit = small_file(folder / "refs" / revision, 1000).decode("utf-8").strip()
    except (OSError, ValueError):
        commit = revision
    found = folder / "snapshots" / commit
    return found if re.fullmatch(r"\w+", commit) and found.is_dir() else None


def cache_folder() -> Path:
    """Return where Hugging Face's libraries keep what they downloaded, by their own environment variables."""
    if "HF_HUB_CACHE" in os.environ:
        return Path(os.environ["HF_HUB_CACHE"])
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "hub"


def base_named(config: Mapping[str, Any]) -> Path | None:
    """Return the cached model that an adapter's configuration names as its base.

    Only a name of the Hub counts. A path is a stranger's word: it is not followed, the user gives it.
    """
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(name, str):
        return None
    return cached_model(name, revision if isinstance(revision, str) else None)


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under the plain model's names, where PEFT has put its layers around the linear ones."""
    from torch import Tensor

    return {
        re.sub(rf"(?:\.{BASE_LAYER})+\.", ".", key.removeprefix(PREFIX)): value
        for key, value in state.items()
        if isinstance(value, Tensor)
    }
