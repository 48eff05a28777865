"""LoRA of matrices that hold query, key and value in one: LitGPT, loralib, AdapterHub.

    transformer.h.0.attn.qkv.lora_A (n·r, in)   .lora_B (rows of the n adapted parts, r)

The k-th part's update is B_k A_k; a part that is not adapted has none (``zero_pad``). Which parts are adapted stands in
LitGPT's hyperparameters.yaml (lora_query, lora_key, lora_value; their sizes in model_config.yaml) and in AdapterHub's
configuration (attn_matrices); loralib saves it nowhere. Where LitGPT's query, key and value of a group of heads follow
each other (``attn.attn``, before 2025), so do the rows of the update, except where all three are adapted.
"""

from collections.abc import Mapping
from typing import Any

from deltaw.adapters.errors import RecordError
from deltaw.analysis.names import is_embedding
from deltaw.analysis.records.foreign.formats.layers import (
    PAIRS,
    UNKNOWN,
    Found,
    Layer,
    Part,
    grouped,
    lora_layers,
    plain_adapter_names,
    setting,
)
from deltaw.analysis.records.storage.tensors import Tensors

QKV = ("query", "key", "value")
FUSED_ROWS = 2**24
PARAMETRIZED = ".parametrizations.weight."


def read_litgpt(tensors: Tensors, settings: Mapping[str, Any]) -> Found:
    """Return the layers of LitGPT's ``lit_model.pth.lora``.

    Raises:
        RecordError: A layer lacks one of its tensors, or its configuration does not go with it.
    """
    groups, rest = grouped({name.replace(".linear.weight", ".weight"): name for name in tensors.names()}, PAIRS)
    alpha = setting(settings, "lora_alpha")
    enabled = [settings.get(f"lora_{part}") is not False for part in QKV]
    said = all(isinstance(settings.get(f"lora_{part}"), bool) for part in QKV)
    head, heads, groups_of = (_count(settings, key) for key in ("head_size", "n_head", "n_query_groups"))
    if not head and heads and _count(settings, "n_embd"):
        head = _count(settings, "n_embd") // heads
    sizes = [head * heads, head * (groups_of or heads), head * (groups_of or heads)]
    layers = {}
    for name, layer in lora_layers(groups, tensors.where, alpha=alpha).items():
        down, up = (tensors.shape(layer.tensors[role]) for role in ("down", "up"))
        if name.rpartition(".")[2] not in ("qkv", "attn") or len(down) != 2 or len(up) != 2:
            layers[name] = layer
            continue
        count = _groups(name, down, up)
        if count == 1 and not (said and sum(enabled) == 1 and min(sizes) > 0):
            layers[name] = layer
            continue
        if not said or not min(sizes):
            if count < 3:
                raise RecordError(
                    f"{name:.200} is adapted in {count} parts; which of query, key and value, tell "
                    "hyperparameters.yaml and model_config.yaml; put them beside it"
                )
            sizes = [up[0] // 3] * 3
        adapted = enabled if said else [True] * 3
        interleaved = name.endswith(".attn.attn") and not all(adapted)
        layers[name] = _parts(
            name, layer, up, sizes, adapted, (head, heads, groups_of or heads) if interleaved else None
        )
    own = {name: stored for name, stored in rest.items() if name.endswith(".weight")}
    notes = [] if alpha is not None else [f"{UNKNOWN}; put its hyperparameters.yaml beside it"]
    return Found(layers, {}, notes, own, dict(settings))


def _count(settings: Mapping[str, Any], key: str) -> int:
    value = settings.get(key)
    return value if type(value) is int and 0 < value < FUSED_ROWS else 0


def _groups(name: str, down: tuple[int, ...], up: tuple[int, ...]) -> int:
    """How many parts of a matrix are adapted."""
    if not up[1] or down[0] % up[1]:
        raise RecordError(f"{name:.200}: its factors are {up} and {down}, which do not go together")
    return down[0] // up[1]


def _parts(
    name: str,
    layer: Layer,
    up: tuple[int, ...],
    sizes: list[int],
    adapted: list[bool],
    heads: tuple[int, int, int] | None,
) -> Layer:
    """The layer with the places of its parts' rows, one below the other or, with the sizes of heads, group by group."""
    if sum(size for size, on in zip(sizes, adapted, strict=True) if on) != up[0]:
        raise RecordError(f"{name:.200}: parts of {sizes} rows do not fit factors of {up}")
    parts, begin, place = [], 0, 0
    for k, (size, on) in enumerate(zip(sizes, adapted, strict=True)):
        if on:
            rows: tuple[range, ...] = (range(place, place + size),)
            if heads is not None:
                rows = _interleaved(k, *heads)
            parts.append(Part(begin, begin + size, rows))
            begin += size
        place += size
    return Layer("lora", layer.tensors, alpha=layer.alpha, rank=up[1], parts=tuple(parts), out=place)


def _interleaved(part: int, head: int, heads: int, groups: int) -> tuple[range, ...]:
    """The rows of query, key or value where those of each group of heads follow each other."""
    queries = heads // groups
    size, first, count = (
        (queries + 2) * head,
        (0, queries, queries + 1)[part] * head,
        (queries if part == 0 else 1) * head,
    )
    return tuple(range(g * size + first, g * size + first + count) for g in range(groups))


def read_loralib(tensors: Tensors, settings: Mapping[str, Any]) -> Found:
    """Return the layers of loralib's or minLoRA's state dict; α and the adapted parts may stand in settings.

    Raises:
        RecordError: A layer lacks one of its tensors.
    """
    plain = {}
    for name in tensors.names():  # ….parametrizations.weight.0.lora_A, ….parametrizations.weight.original
        head, found, tail = name.partition(PARAMETRIZED)
        plain[f"{head}.{tail.partition('.')[2] or 'weight'}" if found else name] = name
    groups, rest = grouped(plain, PAIRS)
    alpha, enable = setting(settings, "lora_alpha"), settings.get("enable_lora")
    layers, left_out = {}, {}
    for name, layer in lora_layers(groups, tensors.where, alpha=alpha).items():
        down, up = (tensors.shape(layer.tensors[role]) for role in ("down", "up"))
        own = tensors.shape(rest[f"{name}.weight"]) if f"{name}.weight" in rest else ()
        if len(down) != 2 or len(up) != 2 or len(own) > 2:
            left_out[name] = "it is a convolution of loralib, whose update is no matrix [out, in·k] by its factors"
        elif is_embedding(name) and not name.endswith("lm_head"):
            sides = {"up": layer.tensors["down"], "down": layer.tensors["up"]}
            layers[name] = Layer("lora", sides, alpha=alpha, turned=True)
        elif _groups(name, down, up) == 1:
            layers[name] = layer
        else:
            count = _groups(name, down, up)
            size = up[0] // count
            adapted = _enabled(enable, count, own, size, down[1])
            if adapted is None:
                left_out[name] = (
                    f"{count} parts of it are adapted, and which, is in no file; give enable_lora, as [true, false, "
                    "true], and lora_alpha in an adapter_config.json beside it"
                )
                continue
            layers[name] = _parts(name, layer, up, [size] * len(adapted), adapted, None)
    own_names = {name: stored for name, stored in rest.items() if name.endswith(".weight")}
    notes = [] if alpha is not None else [f"{UNKNOWN}; give lora_alpha in an adapter_config.json beside it"]
    return Found(layers, left_out, notes, own_names, dict(settings))


def _enabled(enable: object, count: int, own: tuple[int, ...], size: int, inputs: int) -> list[bool] | None:
    """Which parts are adapted: as settings say, or all, where the matrix has no other rows."""
    if isinstance(enable, list) and all(isinstance(on, bool) for on in enable) and sum(enable) == count:
        return enable
    out = 0 if len(own) != 2 else own[0] if own[1] == inputs else own[1]
    return [True] * count if out == count * size else None


def read_adapterhub(tensors: Tensors, settings: Mapping[str, Any]) -> Found:
    """Return the layers of AdapterHub's LoRA or IA³.

    Raises:
        RecordError: It is another of its methods, or its weight depends on the input.
    """
    config = settings.get("config")
    config = config if isinstance(config, dict) else {}
    if config.get("architecture") not in ("lora", None) or any(".adapters." in name for name in tensors.names()):
        raise RecordError(
            f"its architecture is {str(config.get('architecture') or 'a bottleneck')!r:.40}; LoRA and IA3 alone change "
            "matrices, other adapters run beside the layers"
        )
    if config.get("use_gating"):
        raise RecordError("use_gating is on: its weight depends on the input, so there is no W'")
    names = plain_adapter_names(tensors.names(), tensors.where)
    groups, _ = grouped(names, PAIRS)
    alpha = setting(config, "alpha")
    notes = [] if alpha is not None else [f"{UNKNOWN}; put its adapter_config.json beside it"]
    if config.get("composition_mode") == "scale":
        scaled = {
            name: Layer("ia3", {"scale": parts["up"]}, scaling=alpha, on_input=False, scale_is_weight=True)
            for name, parts in groups.items()
            if "up" in parts
        }
        return Found(scaled, {}, notes, settings=dict(settings))
    chosen = config.get("attn_matrices")
    layers = {}
    for name, layer in lora_layers(groups, tensors.where, alpha=alpha).items():
        down, up = (tensors.shape(layer.tensors[role]) for role in ("down", "up"))
        if len(down) != 2 or len(up) != 2 or (_groups(name, down, up) == 1 and not _is_fused(name)):
            layers[name] = layer
            continue
        count = _groups(name, down, up)
        adapted = [part in chosen for part in "qkv"] if isinstance(chosen, list) else [True] * 3
        if sum(adapted) != count:
            raise RecordError(f"{name:.200}: attn_matrices = {chosen!r:.60} do not go with {count} adapted parts")
        layers[name] = _parts(name, layer, up, [up[0] // count] * 3, adapted, None)
    return Found(layers, {}, notes, settings=dict(settings))


def _is_fused(name: str) -> bool:
    return name.rpartition(".")[2] in ("c_attn", "in_proj", "query_key_value", "qkv")
