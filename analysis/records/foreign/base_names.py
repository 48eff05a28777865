"""Which of a base's matrices is that of a module, where the two models' names differ by a prefix.

``bert.encoder.layer.0.q`` and ``encoder.layer.0.q`` are the same matrix, saved with and without a head. The names must
agree from the layer's container on (``layer.0.q``), and what stands before must not say two different things: a vision
tower is not the text model. What could be two matrices, or two modules' one, is none.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any

# What the part of a name before the layers says of them.
MODALITIES = {
    "vision": re.compile(r"vision|visual|image|img", re.IGNORECASE),
    "audio": re.compile(r"audio|speech", re.IGNORECASE),
}
SIDES = ("encoder", "decoder")
HEADS = ("lm_head", "embed_out")
EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "shared")
DEPTH = 32  # parts of a name that may be a prefix; a stranger's name may have any number
NUMBER = re.compile(r"\d+")


class BaseNames:
    """The names of a base's matrices.

    Arguments:
        names: All of them.
        config: The base's ``config.json``.
    """

    def __init__(self, names: Collection[str], config: Mapping[str, Any]) -> None:
        self._names, self._config = set(names), config
        self._by_end: dict[str, list[str]] = defaultdict(list)  # by all shorter ends
        self._by_layer: dict[str, list[str]] = defaultdict(list)
        for name in names:
            parts = name.split(".")
            for k in range(1, min(len(parts), DEPTH)):
                self._by_end[".".join(parts[k:])].append(name)
            layer = from_layer(name)
            if layer is not None:
                self._by_layer[layer].append(name)
        self._refused: dict[str, str] = {}
        self._modality = _said([str(config.get("model_type", ""))])[0]  # of a vision tower that was saved alone
        self.known = 0  # how many of a run's modules it has

    def expect(self, modules: Iterable[str]) -> None:
        """Take note of all modules of a run, so that no two of them are given the same matrix."""
        claims: dict[str, list[str]] = defaultdict(list)
        for module in sorted(set(modules)):
            found = self.find(module)
            self.known += found is not None
            if found is not None and not self._is_tied(module):
                claims[found].append(module)
        for found, claiming in claims.items():
            for module in claiming:
                if len(claiming) > 1 and found != module:
                    self._refused[module] = f"{found} could be that of {' or '.join(claiming)}"

    def find(self, module: str) -> str | None:
        """Return the name of the matrix of a module, ``None`` where there is none, or no telling which."""
        if module in self._names:
            return module
        if module in self._refused:
            return None
        found = self._candidates(module)
        return found[0] if len(found) == 1 else None

    def why_not(self, module: str) -> str:
        """Return why a module has no matrix here, where a name speaks for one; else ""."""
        if module in self._refused:
            return self._refused[module]
        found = self._candidates(module)
        if len(found) > 1:
            return f"it could be {' or '.join(found[:4])}"
        other = self._by_layer.get(from_layer(module) or "", [])
        return f"{other[0]} is of another part of the model" if other and not found else ""

    def _candidates(self, module: str) -> list[str]:
        parts = module.split(".")
        for k in range(1, min(len(parts), DEPTH)):  # the base is a part of the model: the longest name that fits
            shorter = ".".join(parts[k:])
            if shorter in self._names and _agree(parts[:k], [], self._modality):
                return [shorter]
        longer = [name for name in self._by_end.get(module, []) if _agree(parts, name.split("."))]
        if longer:
            return longer
        head = _head(module).split(".")
        same = [
            name
            for name in self._by_layer.get(from_layer(module) or "", [])
            if _agree(head, _head(name).split("."), self._modality)
        ]
        return same or (tied_to(self._names, self._config) if self._is_tied(module) else [])

    def _is_tied(self, module: str) -> bool:
        return module.rpartition(".")[2] in HEADS and module not in self._names


def tied_to(names: Iterable[str], config: Mapping[str, Any]) -> list[str]:
    """Return the embeddings that are an output head's matrix too, by the configuration; none where it does not say so.

    Configurations leave ``tie_word_embeddings`` out where it is true.
    """
    text = config.get("text_config")
    told = [c.get("tie_word_embeddings") for c in (config, text if isinstance(text, dict) else {})]
    if not config or False in told:
        return []
    return [name for name in names if name.rpartition(".")[2] in EMBEDDINGS]


def from_layer(name: str) -> str | None:
    """Return the name from the container of its first number on: ``layer.0.q``; ``None`` where it has no number."""
    parts = name.split(".")
    at = next((k for k, part in enumerate(parts) if NUMBER.fullmatch(part)), None)
    return None if at is None else ".".join(parts[max(at - 1, 0) :])


def _head(name: str) -> str:
    """What stands before ``from_layer``."""
    return name.removesuffix(from_layer(name) or "").removesuffix(".")


def _agree(one: list[str], other: list[str], unsaid: str = "") -> bool:
    """Whether two heads of names may be those of the same layers; of what model ``other`` is where it does not say."""
    modality, side = zip(_said(one), _said(other), strict=True)
    return modality[0] == (modality[1] or unsaid) and ("" in side or side[0] == side[1])


def _said(parts: list[str]) -> tuple[str, str]:
    modality = next((m for part in parts for m, pattern in MODALITIES.items() if pattern.search(part)), "")
    return modality, next((part for part in parts if part in SIDES), "")
