"""MLX-LM: adapters.safetensors, and 0000100_adapters.safetensors of each step, with an adapter_config.json.

    model.layers.0.self_attn.q_proj.lora_a (in, r)   .lora_b (r, out)   .m (out) of DoRA
    ….switch_mlp.up_proj.lora_a (experts, r, in)     .lora_b (experts, out, r)

ΔW = scale·(lora_a lora_b)ᵀ, of an embedding scale·lora_a lora_b; scale is ``lora_parameters.scale``, where an older
version wrote an ``alpha`` beside it scale·α/r. A model saved whole has W₀ as ….q_proj.linear.weight.
MLX-VLM's are ….q_proj.A (in, r) and .B (r, out), and scale is ``alpha``. ``fine_tune_type: full`` saves the weights
themselves.
"""

from collections.abc import Mapping
from typing import Any

from deltaw.adapters.errors import RecordError
from deltaw.analysis.names import is_embedding
from deltaw.analysis.records.foreign.formats.layers import (
    Found,
    Layer,
    grouped,
    is_matrix,
    need,
    setting,
    without_alpha,
)
from deltaw.analysis.records.storage.tensors import Tensors

SUFFIXES = {"lora_a": "down", "lora_b": "up", "m": "magnitude", "A": "down", "B": "up"}
EXPERTS = 2**12  # at most, in one stack
ADVICE = "put its adapter_config.json, which holds scale, beside it (for scale = 1, as here, α = r)"


def read(tensors: Tensors, settings: Mapping[str, Any]) -> Found:
    """Return the layers of a file.

    Raises:
        RecordError: A layer lacks one of its tensors, or they are quantised.
    """
    parameters = settings.get("lora_parameters")
    parameters = parameters if isinstance(parameters, dict) else {}
    scale, alpha, rank = (setting(parameters, key) for key in ("scale", "alpha", "rank"))
    if not parameters and {"rank", "alpha"} <= set(settings):
        scale = setting(settings, "alpha")
    if scale is not None and alpha is not None and rank:
        scale = scale * alpha / rank
    notes = [] if scale is not None or settings.get("fine_tune_type") == "full" else [ADVICE]
    groups, rest = grouped({name: name for name in tensors.names()}, SUFFIXES)
    if any(name.endswith((".lora_a_scales", ".lora_b_scales")) for name in rest):
        raise RecordError("it is quantised; open the adapter as it was before, or fuse it with mlx_lm.fuse")
    layers: dict[str, Layer] = {}
    for name, parts in groups.items():
        need(parts, tensors.where, name, "down", "up")
        a, b = tensors.shape(parts["down"]), tensors.shape(parts["up"])
        if len(a) == len(b) == 3:
            layers |= _experts(name, parts, a[0], scale)
        elif is_embedding(name) and not name.endswith("lm_head"):
            swapped = parts | {"up": parts["down"], "down": parts["up"]}
            layers[name] = Layer("lora", swapped, scaling=1.0 if scale is None else scale)
        else:
            layers[name] = Layer("lora", parts, scaling=1.0 if scale is None else scale, turned=True)
    left_out: dict[str, str] = {}
    wrapped = {f"{name}.{kind}.weight": f"{name}.weight" for name in layers for kind in ("linear", "embedding")}
    own = {wrapped[name]: name for name in rest if name in wrapped and is_matrix(tensors, name)}
    if notes:
        notes = without_alpha(layers, left_out, ADVICE)
    for name in rest:
        module = name.removesuffix(".weight")
        if name in own.values():
            continue
        if module != name and is_matrix(tensors, name) and len(tensors.shape(name)) == 2:
            layers[module] = Layer("whole", {"diff": name})
        elif not name.endswith("bias"):
            left_out[module] = "it is no matrix of a linear layer"
    return Found(layers, left_out, notes, own, dict(settings))


def _experts(name: str, parts: Mapping[str, str], count: int, scale: float | None) -> dict[str, Layer]:
    if count > EXPERTS:
        raise RecordError(f"{name:.200} has {count} experts; at most {EXPERTS} are read")
    head, _, last = name.replace(".switch_mlp.", ".experts.").rpartition(".")
    return {
        f"{head}.{expert}.{last}": Layer("lora", parts, scaling=1.0 if scale is None else scale, expert=expert)
        for expert in range(count)
    }
