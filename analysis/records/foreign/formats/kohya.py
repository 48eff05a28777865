"""kohya's sd-scripts, LyCORIS and ComfyUI: LoRA with convolutions and cores, LoHa, LoKr, DoRA, IA3, full differences.

    lora_unet_….lora_down.weight (r, in, k…)   .lora_up.weight (out, r, 1…)   .lora_mid.weight (r, r, k…)   .alpha
    lora_unet_….hada_w1_a, …                   lycoris_….lokr_w1, …           .dora_scale   .diff   .weight + .on_input
    diffusion_model.….lora_down.weight         ComfyUI: the same, with the model's own names

Without α, or where it is 0, α = r. One file may hold layers of several kinds.
"""

import re
from collections.abc import Mapping
from typing import Any

from deltaw.adapters.errors import RecordError
from deltaw.analysis.records.foreign.formats.layers import (
    PAIRS,
    Found,
    Layer,
    grouped,
    is_matrix,
    lora_layers,
    need,
    plain_adapter_names,
)
from deltaw.analysis.records.storage.tensors import Tensors

PARTS = ("w1", "w2", "w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")
LYCORIS = {
    **{f"hada_{part}": f"hada_{part}" for part in PARTS},
    **{f"lokr_{part}": f"lokr_{part}" for part in PARTS},
    "diff": "diff", "diff_b": "bias", "w_norm": "norm", "b_norm": "norm", "on_input": "on_input",
    "lora_down.bias": "bias", "lora_up.bias": "bias",
    "bias_indices": "bias", "bias_values": "bias", "bias_size": "bias",
    "reshape_weight": "reshape", "scalar": "scalar",
}  # fmt: skip
UNREAD = {
    "oft_blocks": "OFT, which is not read; merge it", "oft_diag": "OFT, which is not read; merge it",
    "a1.weight": "GLoRA, which is not read; merge it", "a2.weight": "GLoRA, which is not read; merge it",
    "b1.weight": "GLoRA, which is not read; merge it", "b2.weight": "GLoRA, which is not read; merge it",
    "rescale": "OFT, which is not read; merge it",
}  # fmt: skip
NORM = "a norm's scale and shift, which are no matrix"
_RS_LORA = re.compile(r'"rs_lora": *"?(?:true|1)\b', re.IGNORECASE)
RS_LORA = "it was trained with rs_lora, s = α/√r; its tensors do not say so, and ΔW is as its loaders take it, s = α/r"
BIAS = "a bias, which is no matrix"
OTHER = "it is no part of an adapter's layer"


def read(tensors: Tensors, settings: Mapping[str, Any]) -> Found:
    """Return the layers of a file.

    Raises:
        RecordError: A layer lacks one of its tensors.
    """
    del settings  # all that it takes stands in the file
    names = plain_adapter_names(tensors.names(), tensors.where)
    groups, rest = grouped(names, {**LYCORIS, **UNREAD, **PAIRS})
    layers: dict[str, Layer] = {}
    left_out: dict[str, str] = {}
    for name, parts in groups.items():
        found = _layer(name, parts, rest, tensors)
        if isinstance(found, Layer):
            layers[name] = found
        elif found:
            left_out[name] = found
        if "bias" in parts and isinstance(found, Layer):
            left_out[f"{name} (bias)"] = BIAS
    read_from = {stored for layer in layers.values() for stored in layer.tensors.values()}
    left_out |= {name: OTHER for name, stored in rest.items() if stored not in read_from}
    notes = [RS_LORA] if _RS_LORA.search(tensors.metadata().get("ss_network_args", "")) else []
    return Found(layers, left_out, notes)


def _layer(name: str, parts: dict[str, str], rest: Mapping[str, str], tensors: Tensors) -> Layer | str:
    where = tensors.where
    unread = next((role for role in parts if role in UNREAD.values()), None)
    if unread:
        return unread
    shared = {role: parts[role] for role in ("alpha", "magnitude") if role in parts}
    if "norm" in parts:
        return NORM
    if "on_input" in parts:
        scale = rest.get(f"{name}.weight")
        need(parts if scale is None else {"weight": scale}, where, name, "weight")
        flag = tensors.read(parts["on_input"])
        if flag.numel() != 1:
            raise RecordError(f"{where}: {name:.200}: on_input has {flag.numel()} numbers")
        return Layer("ia3", {"scale": str(scale)}, on_input=bool(flag.reshape(())))
    if "diff" in parts:
        return Layer("diff", {"diff": parts["diff"]}) if is_matrix(tensors, parts["diff"]) else NORM
    for kind in ("hada", "lokr"):
        own = {role.removeprefix(f"{kind}_"): stored for role, stored in parts.items() if role.startswith(f"{kind}_")}
        if own:
            pairs = ("w1", "w2") if kind == "hada" else [k for k in ("w1", "w2") if k not in own]
            need(own, where, name, *(f"{k}_{side}" for k in pairs for side in "ab"))
            if kind == "hada" and ("t1" in own) != ("t2" in own):
                need(own, where, name, "t1", "t2")
            return Layer("loha" if kind == "hada" else "lokr", own | shared)
    if set(parts) <= {"bias"}:
        return BIAS
    if set(parts) <= {"alpha", "scalar", "reshape"}:
        return "it has an α alone"
    if "reshape" in parts:
        return "it changes the shape of its layer"
    pair = {role: stored for role, stored in parts.items() if role in ("down", "up", "mid")} | shared
    return lora_layers({name: pair}, where)[name]
