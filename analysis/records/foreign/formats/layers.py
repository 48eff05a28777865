"""From the names of a file's tensors to adapted layers: a suffix says what part of an adapter a tensor is.

lora_unet_mid_block_proj_in.lora_down.weight   →   layer lora_unet_mid_block_proj_in, role "down"
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from deltaw.adapters.errors import RecordError
from deltaw.analysis.records.source import Shape
from deltaw.analysis.records.storage.tensors import Tensors

# The last parts of names, by tool; the first that fits counts, so the longer ones stand first.
PAIRS = {
    "lora_down.weight": "down", "lora_up.weight": "up", "lora_mid.weight": "mid",
    "lora.down.weight": "down", "lora.up.weight": "up",
    "lora_linear_layer.down.weight": "down", "lora_linear_layer.up.weight": "up",
    "lora_A.weight": "down", "lora_B.weight": "up", "lora_A": "down", "lora_B": "up",
    "lora_a.weight": "down", "lora_b.weight": "up", "lora_a": "down", "lora_b": "up",
    "lora_embedding_A": "embedding_down", "lora_embedding_B": "embedding_up",
    "lora_magnitude_vector.weight": "magnitude", "lora_magnitude_vector": "magnitude",
    "weight_m_wdecomp.weight": "magnitude", "dora_scale": "magnitude", "alpha": "alpha",
}  # fmt: skip
# ….lora_A.default.weight: PEFT writes the adapter's name into a state dict.
_NAMED = re.compile(r"\.(lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))\.([^.]+)(\.weight)?$")
# ….q_proj.loras.NAME.lora_A: AdapterHub's.
_OF_LORAS = re.compile(r"\.loras\.([^.]+)\.(lora_[AB])$")
UNKNOWN = "α is in no file: ΔW is shown for α = r; its direction and rank are right, its size only up to α/r"


@dataclass(frozen=True)
class Part:
    """Where some rows of a fused matrix stand: ``rows`` of its update are those that a group of factors gives.

    Arguments:
        start, stop: Of the group's rows in ``up``.
        rows: Their places in the matrix.
    """

    start: int
    stop: int
    rows: tuple[range, ...]


@dataclass(frozen=True)
class Layer:
    """An adapted layer.

    Arguments:
        kind: "lora", "loha", "lokr", "ia3", "diff" (ΔW as it is), "whole" (W' as it is) or "magnitude" (DoRA without
            LoRA).
        tensors: The tensor's name in the file, by its role.
        alpha: α where settings say it; a tensor of role "alpha" goes before. ``None``: α = r, so s = 1.
        scaling: s itself, where settings say that.
        rank: r where settings say it and the tensors do not, as those of a fused matrix.
        turned: Whether the factors are stored as [in, r] and [r, out].
        expert: Which slice of a stack, along the first dimension.
        parts: Of a fused matrix that is adapted in parts, each with factors of its own.
        out: Its rows, where ``parts`` leave some out.
        on_input: Of IA3, whether the scale is one of inputs.
        scale_is_weight: Of IA3, whether W' = scale·W₀, not (1 + scale)·W₀.
    """

    kind: str
    tensors: Mapping[str, str]
    alpha: float | None = None
    scaling: float | None = None
    rank: int | None = None
    turned: bool = False
    expert: int | None = None
    parts: tuple[Part, ...] = ()
    out: int | None = None
    on_input: bool | None = None
    scale_is_weight: bool = False


@dataclass(frozen=True)
class Found:
    """What a file holds.

    Arguments:
        layers: By the name that the file has for each.
        left_out: What is not read, and why.
        notes: What a reader of numbers should know, as that α is in no file.
        own: Tensors of the plain model that stand beside: name in the model, and in the file.
        settings: What was said beside the tensors, as plain values.
    """

    layers: dict[str, Layer]
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    own: dict[str, str] = field(default_factory=dict)
    settings: dict[str, object] = field(default_factory=dict)


def plain_adapter_names(names: Iterable[str], where: str) -> dict[str, str]:
    """Return the names without an adapter's own name in them, each with that in the file.

    Raises:
        RecordError: There are several adapters.

    Example:
        >>> plain_adapter_names(["q.lora_A.default.weight", "q.loras.mine.lora_B"], "a file")
        Traceback (most recent call last):
        deltaw.adapters.errors.RecordError: a file: holds the adapters default, mine; save each in a file of its own
        >>> plain_adapter_names(["q.lora_A.default.weight", "q.lora_B.default.weight"], "a file")
        {'q.lora_A.weight': 'q.lora_A.default.weight', 'q.lora_B.weight': 'q.lora_B.default.weight'}
    """
    found, adapters = {}, set()
    for name in names:
        of_peft, of_hub = _NAMED.search(name), _OF_LORAS.search(name)
        plain = name
        if of_peft and of_peft.group(2) not in ("weight", "bias"):
            plain = f"{name[: of_peft.start()]}.{of_peft.group(1)}{of_peft.group(3) or ''}"
            adapters.add(of_peft.group(2))
        elif of_hub:
            plain = f"{name[: of_hub.start()]}.{of_hub.group(2)}"
            adapters.add(of_hub.group(1))
        found[plain] = name
    if len(adapters) > 1:
        shown = ", ".join(sorted(adapters)[:8])
        raise RecordError(f"{where}: holds the adapters {shown}; save each in a file of its own")
    return found


def grouped(names: Mapping[str, str], suffixes: Mapping[str, str]) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Return the tensors of each layer by role, and what is none of an adapter's.

    Arguments:
        names: As ``plain_adapter_names`` returns them.
        suffixes: The role of a tensor by the last parts of its name.

    Example:
        >>> grouped({"a.q.lora_A": "a.q.lora_A", "a.q.bias": "a.q.bias"}, PAIRS)
        ({'a.q': {'down': 'a.q.lora_A'}}, {'a.q.bias': 'a.q.bias'})
    """
    layers: dict[str, dict[str, str]] = {}
    rest = {}
    for name, stored in names.items():
        end = next((end for end in suffixes if name.endswith(f".{end}")), None)
        if end is None or len(name) == len(end) + 1:
            rest[name] = stored
        else:
            layers.setdefault(name[: -len(end) - 1], {})[suffixes[end]] = stored
    return layers, rest


def lora_layers(groups: Mapping[str, Mapping[str, str]], where: str, **more: object) -> dict[str, Layer]:
    """Return the layers of pairs, each with its α and magnitude where they are there.

    Raises:
        RecordError: One of a pair is missing.
    """
    found = {}
    for name, tensors in groups.items():
        if set(tensors) == {"magnitude"}:
            found[name] = Layer("magnitude", tensors)
            continue
        if "embedding_down" in tensors:
            need(tensors, where, name, "embedding_down", "embedding_up")
            sides = {"up": tensors["embedding_down"], "down": tensors["embedding_up"]}  # (r, tokens), (width, r)
            found[name] = Layer("lora", sides, **{**more, "turned": True})  # type: ignore[arg-type]
            continue
        need(tensors, where, name, "down", "up")
        found[name] = Layer("lora", tensors, **more)  # type: ignore[arg-type]
    return found


def without_alpha(layers: dict[str, Layer], left_out: dict[str, str], advice: str) -> list[str]:
    """Return what to say where no file says α, and take out the layers of DoRA, all of whose W' depends on it."""
    lost = [name for name, layer in layers.items() if layer.kind == "lora" and "magnitude" in layer.tensors]
    for name in lost:
        del layers[name]
        left_out[name] = f"it is DoRA, all of whose W' depends on α, and α is in no file; {advice}"
    return [f"{UNKNOWN}; {advice}"] if layers else []


def need(tensors: Mapping[str, str], where: str, name: str, *roles: str) -> None:
    """Raise where a tensor of a layer is missing.

    Raises:
        RecordError: So it is; names the layer, and what is there.
    """
    for role in roles:
        if role not in tensors:
            there = ", ".join(stored[-120:] for stored in list(tensors.values())[:4])
            raise RecordError(f"{where}: {name:.200} lacks its part {role!r} (it has {there}); the file is not whole")


def kernel_shape(shape: tuple[int, ...]) -> Shape:
    """Return the sides of a matrix, or of a kernel [out, in, k…] as [out, in·k…]; (n, 1) of a vector."""
    columns = 1
    for side in shape[1:]:
        columns *= side
    return (shape[0] if shape else 1), columns


def number(value: object) -> float | None:
    """Return a setting that is a finite number, else ``None``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < 1e30 else None


def setting(settings: Mapping[str, object], key: str) -> float | None:
    """Return a setting that is a number, ``None`` where it is not there.

    Raises:
        RecordError: It is there and no number.
    """
    value = settings.get(key)
    found = number(value)
    if found is None and value is not None:
        raise RecordError(f"{key} = {value!r:.40} is no number")
    return found


def is_matrix(tensors: Tensors, name: str) -> bool:
    """Return whether a tensor is a matrix or a kernel of a floating dtype."""
    shape = tensors.shape(name)
    return (
        2 <= len(shape) <= 5
        and 0 not in shape
        and tensors.dtype_name(name) in ("float64", "float32", "float16", "bfloat16")
    )
