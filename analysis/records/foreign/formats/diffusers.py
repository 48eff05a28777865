"""diffusers: its attention processors, its own LoRA layers, and PEFT's names with a part of the pipeline before them.

    down_blocks.0.….attn1.processor.to_q_lora.down.weight      UNet2DConditionModel.save_attn_procs
    text_encoder.….q_proj.lora_linear_layer.down.weight        save_lora_weights, before PEFT
    unet.….to_q.lora_A.weight, transformer.….to_q.lora_B.weight   with PEFT

α stands in the file's metadata (``lora_adapter_metadata``, JSON, from diffusers 0.35 on) or in tensors; where it does
not, diffusers takes α = r.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from deltaw.adapters.errors import RecordError
from deltaw.adapters.peft.names import LEAVES_THE_BASE
from deltaw.adapters.peft.targets import fits
from deltaw.adapters.small_files import bounded_json
from deltaw.analysis.records.foreign.formats.layers import (
    PAIRS,
    Found,
    Layer,
    grouped,
    kernel_shape,
    lora_layers,
    number,
    plain_adapter_names,
    without_alpha,
)
from deltaw.analysis.records.storage.tensors import Tensors

METADATA = "lora_adapter_metadata"
# What the names of diffusion models begin with, whose tools take α = r where none is; ``transformer.h.`` is GPT-2's.
RULED = (
    "unet.", "transformer.", "transformer_2.", "text_encoder.", "text_encoder_2.", "text_encoder_3.", "prior.",
    "diffusion_model.", "lora_", "down_blocks.", "up_blocks.", "mid_block.", "transformer_blocks.",
    "single_transformer_blocks.", "double_blocks.", "single_blocks.", "joint_blocks.", "pipe.dit.", "text_encoders.",
)  # fmt: skip
_PROCESSOR = re.compile(r"(?:\.processor)?\.(to_q|to_k|to_v|to_out|add_[qkv]_proj|to_add_out)_lora\.(down|up)\.weight$")


def read(tensors: Tensors, settings: Mapping[str, Any]) -> Found:
    """Return the layers of a file.

    Arguments:
        tensors: Its tensors.
        settings: What stands in an ``adapter_config.json`` beside it, where there is one.

    Raises:
        RecordError: A layer lacks one of its tensors, or the metadata is damaged.
    """
    plain = plain_adapter_names(tensors.names(), tensors.where)
    groups, rest = grouped({_of_layer(name): stored for name, stored in plain.items()}, PAIRS)
    said = _metadata(tensors) or dict(settings)
    layers = {
        name: with_alpha(name, layer, tensors, said) for name, layer in lora_layers(groups, tensors.where).items()
    }
    told = any(
        "alpha" in layer.tensors or layer.alpha is not None or layer.scaling is not None for layer in layers.values()
    )
    ruled = all(name.startswith(RULED) and not name.startswith("transformer.h.") for name in layers)
    left_out = dict.fromkeys(rest, "it is no part of an adapter")
    notes = [] if told or ruled else without_alpha(layers, left_out, "put its adapter_config.json beside it")
    return Found(layers, left_out, notes, settings=said)


def _of_layer(name: str) -> str:
    """The name of a processor's tensor as that of its layer's."""
    found = _PROCESSOR.search(name)
    if not found:
        return name
    layer = "to_out.0" if found.group(1) == "to_out" else found.group(1)
    if name.startswith("text_encoder"):
        layer = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out.0": "out_proj"}.get(layer, layer)
    return f"{name[: found.start()]}.{layer}.lora.{found.group(2)}.weight"


def _metadata(tensors: Tensors) -> dict[str, Any]:
    text = tensors.metadata().get(METADATA)
    if text is None:
        return {}
    try:
        found = bounded_json(text.encode())
    except ValueError as error:
        raise RecordError(f"its metadata {METADATA} is damaged ({error})") from None
    return found if isinstance(found, dict) else {}


def with_alpha(name: str, layer: Layer, tensors: Tensors, said: Mapping[str, Any]) -> Layer:
    """Return a layer with the scale that PEFT's settings give it, under their own names or after a part's.

    Raises:
        RecordError: By these settings the start took a part out of the base.
    """
    part, _, rest = name.partition(".")
    prefix = f"{part}." if f"{part}.lora_alpha" in said or f"{part}.r" in said else ""
    module = rest if prefix else name
    start = said.get(f"{prefix}init_lora_weights", True)
    if not any(start == leaves for leaves in LEAVES_THE_BASE):
        raise RecordError(f"init_lora_weights = {start!r:.40} took a part out of the base that is not in the file")
    alpha = number(said.get(f"{prefix}lora_alpha"))
    if alpha is None and said.get(f"{prefix}lora_alpha") is not None:
        raise RecordError(f"lora_alpha = {said[f'{prefix}lora_alpha']!r:.40} is no number")
    patterns = said.get(f"{prefix}alpha_pattern")
    if isinstance(patterns, dict):
        found = (
            v
            for key, v in patterns.items()
            if isinstance(key, str) and fits(key, module, tensors.where, "alpha_pattern")
        )
        alpha = next((number(v) for v in found), alpha)
    if alpha is None or "alpha" in layer.tensors or layer.kind != "lora":
        return layer
    rank = kernel_shape(tensors.shape(layer.tensors["down"]))[1 if layer.turned else 0]
    scaling = alpha / math.sqrt(rank) if said.get(f"{prefix}use_rslora") and rank else alpha / max(rank, 1)
    return Layer(layer.kind, layer.tensors, scaling=scaling, turned=layer.turned)
