"""W₀: a folder, a name in Hugging Face's cache on this machine, or a model in memory."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deltaw.adapters import OptionError, RecordError
from deltaw.analysis.sources.contract import Shape, fitting
from deltaw.analysis.sources.layout import Part, matrices
from deltaw.analysis.sources.place import is_address, place_of
from deltaw.analysis.sources.tensors import InMemory, Tensors, read_weights, weights_file

BaseLike = str | Path | nn.Module | Mapping[str, Tensor] | None
GIVE = "give it: base=FOLDER, a name in Hugging Face's cache, a model or its state dict (at the command line --base)"


class Base:
    """The matrices of a model before training.

    Arguments:
        tensors: The model's.
        config: Its ``config.json``.
    """

    def __init__(self, tensors: Tensors, config: Mapping[str, Any]) -> None:
        self.where, self.config = tensors.where, dict(config)
        self._tensors = tensors
        self._parts = matrices(tensors, config, everything=True)
        self.order = list(self._parts) if isinstance(tensors, InMemory) else []  # a file's order is not the model's

    def find(self, module: str) -> Part | None:
        """Return where the matrix of a module stands.

        A model with another head has another prefix (``bert.encoder…`` and ``encoder…``). So where the name itself is
        not there, the two are compared from the end, and must agree from the layer's number on.
        """
        if module in self._parts:
            return self._parts[module]
        tail = module
        while "." in tail:
            tail = tail.partition(".")[2]
            if tail in self._parts:
                return self._parts[tail]
            if not re.search(r"(?:^|\.)\d+\.", tail):
                break
            found = [name for name in self._parts if name.endswith("." + tail)]
            if len(found) == 1:
                return self._parts[found[0]]
        found = [name for name in self._parts if name.endswith("." + module)]
        return self._parts[found[0]] if len(found) == 1 else None

    def read(self, module: str, shape: Shape) -> Tensor:
        """Return W₀ (out, in) of a module.

        Raises:
            RecordError: The base has no such module, or of another shape: it is another model's.
        """
        part = self.find(module)
        if part is None:
            raise RecordError(f"{self.where}: the base has no matrix of {module}; is it the model that was trained?")
        if tuple(part.shape) == tuple(shape[::-1]) != tuple(shape):
            part = Part(part.tensor, shape, part.expert, not part.turned)
        return fitting(f"{self.where}: the base is of another model", module, part.read(self._tensors), shape)


def open_base(base: BaseLike) -> Base | None:
    """Return the base that was given.

    Raises:
        RecordError: There is no model there, or the name is not in the cache.
        OptionError: It is none of what can be given.
    """
    if base is None:
        return None
    if isinstance(base, nn.Module):
        config: Any = getattr(base, "config", None)
        told = config.to_dict() if hasattr(config, "to_dict") else {}
        return Base(InMemory(_plain(base.state_dict(keep_vars=True)), f"base ({type(base).__name__})"), told)
    if isinstance(base, Mapping):
        if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in base.items()):
            raise OptionError("base: a mapping must be a state dict, from names to tensors")
        return Base(InMemory(_plain(base), "base (state dict)"), {})
    if not isinstance(base, (str, Path)):
        raise OptionError(f"base is a {type(base).__name__}; give a folder, a name, a model or its state dict")
    where: str | Path = base
    if isinstance(base, str) and not is_address(base) and not Path(base).exists():
        cached = cached_model(base)
        if cached is None:
            raise RecordError(
                f"base {base!r}: there is no such folder, and no model of this name in Hugging Face's cache "
                f"({cache_folder()}); give the folder, or load the model once with transformers"
            )
        where = cached
    place, file = place_of(where)
    if file is None:
        file = weights_file(place.names()) or weights_file([n for n in CANDIDATES if place.has(n)])
    if file is None:
        raise RecordError(f"{place.where}: holds no model (no {CANDIDATES[0]}); give the folder of the base model")
    return Base(read_weights(place, file), place.mapping("config.json"))


CANDIDATES = ("model.safetensors", "model.safetensors.index.json")  # tried where a server lists nothing


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
        commit = (folder / "refs" / revision).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
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
    return {
        key.removeprefix("base_model.model.").replace(".base_layer.", "."): value
        for key, value in state.items()
        if isinstance(value, Tensor)
    }
