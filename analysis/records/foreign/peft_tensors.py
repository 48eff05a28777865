"""What each tensor in a file of PEFT's is: of an adapter, W₀ of an adapted layer, or a module that was trained whole.

    save_pretrained            base_model.model.….q_proj.lora_A.weight
    a PeftModel's state dict   base_model.model.….q_proj.lora_A.default.weight, ….q_proj.base_layer.weight = W₀,
                               ….score.modules_to_save.default.weight, ….score.original_module.weight = W₀

What torch.compile and others put before or into the names is taken off. A module with an adapter is an adapted one,
whatever else stands beside it: PEFT saves W₀ with the adapter of an embedding or an output head.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deltaw.adapters.errors import RecordError
from deltaw.adapters.peft.names import (
    BASE_LAYER,
    CONFIG,
    IN_PROJ,
    MODULES_TO_SAVE,
    OUT_PROJ,
    PICKLE,
    PREFIX,
    ROOT,
    WEIGHTS,
)
from deltaw.analysis.names import is_embedding
from deltaw.analysis.records.foreign.peft_kernels import of_a_kernel, why_not
from deltaw.analysis.records.storage.file_names import SHARDED, parts_of_one, weights_file
from deltaw.analysis.records.storage.files import Storage
from deltaw.analysis.records.storage.tensors import Renamed, SafeTensors, Tensors, read_pickled, read_weights

if TYPE_CHECKING:
    from torch import Tensor

ORIGINAL = "original_module"  # the untrained copy of a module in modules_to_save
TOKENS = "token_adapter"  # trains some rows of an embedding


@dataclass(frozen=True)
class AdapterFile:
    """The tensors of one checkpoint.

    Arguments:
        tensors: All of them, under the names of ``save_pretrained``.
        modules: Of each adapted module the adapter's tensors, by PEFT's name of each ("lora_A").
        whole: The matrices of modules that were trained as a whole, by module.
        base: What of W₀ stands in the file: the tensor's name in the plain model, and in ``tensors``.
        attention: The ``nn.MultiheadAttention`` that an adapted matrix is a part of.
        adapter: The adapter's name, where the names have it, as in a state dict.
        left_out: What is no matrix of a linear layer or an embedding, and why.
    """

    tensors: Tensors
    modules: dict[str, dict[str, str]]
    whole: dict[str, str] = field(default_factory=dict)
    base: dict[str, str] = field(default_factory=dict)
    attention: dict[str, str] = field(default_factory=dict)
    adapter: str | None = None
    left_out: dict[str, str] = field(default_factory=dict)

    def rows_from(self, module: str, start: int) -> Tensor | None:
        """Return the rows from ``start`` on of an embedding or head that was saved whole; ``None`` of all else."""
        if module not in self.whole or not is_embedding(module):
            return None
        return self.tensors.read(self.whole[module])[start:]

    def shapes(self, module: str) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a module's adapter; nothing where it has none."""
        return {key: self.tensors.shape(name) for key, name in self.modules.get(module, {}).items()}


def read_adapter(place: Storage, kind: str, prefix: str) -> AdapterFile:
    """Return the tensors of a folder; no tensor is read.

    Arguments:
        place: The folder.
        kind: ``peft_type``.
        prefix: What the names of this type's tensors begin with.

    Raises:
        RecordError: There is no file, it is damaged, or holds several adapters.
    """
    tensors = _plainly_named(_read(place), prefix)
    adapter, modules = _by_module(tensors, kind, prefix)
    if kind == "LORA":
        _check_pairs(tensors, modules)
    whole: dict[str, str] = {}
    base: dict[str, str] = {}
    left_out: dict[str, str] = {}
    others = {
        name: name.removeprefix(PREFIX).split(".")
        for name in tensors.names()
        if name.startswith(PREFIX) and _adapters_part(name, prefix) == 0
    }
    # The state dict of the whole model, in which what was not trained stands too.
    everything = adapter is not None and any(BASE_LAYER in parts[:-1] for parts in others.values())
    everything = everything or (adapter is not None and any(".".join(p[:-1]) in modules for p in others.values()))
    for name, parts in others.items():
        *owner, leaf = _without(parts, adapter)
        module = ".".join(owner)
        if TOKENS in parts:
            left_out[module.partition(f".{TOKENS}")[0]] = "only rows of it were trained, for some tokens"
        elif MODULES_TO_SAVE not in parts and (everything or {BASE_LAYER, ORIGINAL} & set(parts) or module in modules):
            base[f"{module}.{leaf}"] = name
        elif leaf == "weight" and _is_matrix(tensors, name):
            whole[module] = name
    parts_of = _of_attention(modules)
    return AdapterFile(
        tensors,
        {parts_of[holder][0] if holder in parts_of else holder: names for holder, names in modules.items()},
        {module: name for module, name in whole.items() if module not in left_out},
        base,
        dict(parts_of.values()),
        adapter,
        left_out,
    )


def _read(place: Storage) -> Tensors:
    if place.has(WEIGHTS):
        return SafeTensors(place, WEIGHTS)
    if place.has(PICKLE):
        return read_pickled(place, PICKLE)
    names = place.names()
    for file in (WEIGHTS, PICKLE):
        if file + SHARDED in names:
            return read_weights(place, file + SHARDED)
    whole = weights_file(names)  # some save the state dict of the PeftModel under the model's name
    if whole is not None:
        return read_weights(place, whole)
    parts = parts_of_one(names)
    told = f"; {', '.join(parts[:4])} are shards, whose index {WEIGHTS}{SHARDED} is missing" if parts else ""
    raise RecordError(f"{place.where}: has {CONFIG}, but no {WEIGHTS}{told}")


def _check_pairs(tensors: Tensors, modules: Mapping[str, Mapping[str, str]]) -> None:
    for module, names in modules.items():
        lacks = {"lora_A", "lora_B"} - set(names)
        if len(lacks) == 1:
            raise RecordError(
                f"{tensors.where}: {module:.200} lacks {lacks.pop()} (it has {', '.join(names)}); the file is not whole"
            )


def _plainly_named(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors under names that begin with ``PREFIX``, whatever wrapper's name, or none, stands there."""
    first = next((name for name in tensors.names() if _adapters_part(name, prefix)), None)
    if first is None or first.startswith(ROOT):
        return tensors
    lead, found, _ = first.partition(f".{PREFIX}")
    if found:
        return Renamed(tensors, {name.removeprefix(f"{lead}."): name for name in tensors.names()})
    return Renamed(tensors, {PREFIX + name: name for name in tensors.names()})


def _adapters_part(name: str, prefix: str) -> int:
    """Which part of a tensor's name is the adapter's; 0 where none is."""
    parts = name.removeprefix(PREFIX).split(".")
    return next((k for k, part in enumerate(parts) if k and part.startswith(prefix)), 0)


def _by_module(tensors: Tensors, kind: str, prefix: str) -> tuple[str | None, dict[str, dict[str, str]]]:
    """The name of the adapter where it stands in the names, and the tensors of every adapted module."""
    keys: dict[str, tuple[str, list[str]]] = {}
    for name in tensors.names():
        at = _adapters_part(name, prefix)
        if name.startswith(PREFIX) and at:
            parts = name.removeprefix(PREFIX).split(".")
            keys[name] = ".".join(parts[:at]), parts[at:]
    second = {parts[1] if len(parts) > 1 else "" for _, parts in keys.values()}
    adapter = next(iter(second)) if len(second) == 1 else None
    if adapter in ("", "weight", "bias"):
        adapter = None
    if (
        kind == "LORA"
        and len(second) > 1
        and all(len(p) == 3 and p[0] in ("lora_A", "lora_B") for _, p in keys.values())
    ):
        raise RecordError(
            f"{tensors.where}: holds the adapters {', '.join(sorted(second))}; save each in a folder of its own, with "
            "save_pretrained(folder, selected_adapters=[NAME])"
        )
    found: dict[str, dict[str, str]] = {}
    for name, (module, parts) in keys.items():
        own = parts if adapter is None else [parts[0], *parts[2:]]
        found.setdefault(module, {})[".".join(own).removesuffix(".weight")] = name
    return adapter, found


def _without(parts: list[str], adapter: str | None) -> list[str]:
    """The parts of a plain module's tensor, without those that PEFT put between."""
    kept: list[str] = []
    for before, part in zip(["", *parts[:-1]], parts, strict=True):
        if part not in (BASE_LAYER, ORIGINAL, MODULES_TO_SAVE) and not (
            before == MODULES_TO_SAVE and part == (adapter or "default")
        ):
            kept.append(part)
    return kept


def _is_matrix(tensors: Tensors, name: str) -> bool:
    shape = tensors.shape(name)
    return len(shape) == 2 and 0 not in shape and tensors.dtype(name).is_floating_point


def _of_attention(holders: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return, of what stands for a matrix of ``nn.MultiheadAttention``, the name of this matrix and of the module.

    PEFT has the adapter of in_proj under the module's own name, that of out_proj below its base layer.
    """
    found: dict[str, tuple[str, str]] = {}
    for module in holders:
        below = f"{module}.{BASE_LAYER}.{OUT_PROJ}"
        if below in holders:
            found |= {module: (f"{module}.{IN_PROJ}", module), below: (f"{module}.{OUT_PROJ}", module)}
    return found


def not_linear(
    shapes: Mapping[str, tuple[int, ...]], settings: Mapping[str, Any], plain: Collection[Any]
) -> str | None:
    """Return why an adapted module is none whose W' is read, ``None`` where nothing speaks against it.

    Arguments:
        shapes: Of the adapter's tensors.
        settings: ``adapter_config.json``.
        plain: The values of ``init_lora_weights`` that leave W₀ as it is.
    """
    if of_a_kernel(shapes):
        return why_not(shapes, settings, plain)
    if not any("embedding" in key for key in shapes):
        return None
    special = [key for key in ("use_dora", "use_qalora", "use_bdlora", "kasa_config") if settings.get(key)]
    start = settings.get("init_lora_weights", True)
    if set(shapes) != {"lora_embedding_A", "lora_embedding_B"} or special or start not in plain:
        return "it is an embedding, of which plain LoRA alone is read"
    return None


def embedding_as_linear(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return LoRA's tensors of an embedding, ΔW = s·Aᵀ Bᵀ (tokens, width), as those of a linear layer."""
    A, B = state["lora_embedding_A"], state["lora_embedding_B"]  # (r, tokens), (width, r)
    return {"lora_A": B.T, "lora_B": A.T}
