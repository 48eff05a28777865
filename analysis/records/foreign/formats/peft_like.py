"""Files with PEFT's layers that are no folder of ``save_pretrained``, and two forks of PEFT's.

    a PeftModel's state dict   base_model.model.….q_proj.lora_A.default.weight, ….q_proj.base_layer.weight = W₀
    NVlabs' DoRA               base_model.model.….q_proj.weight_m_wdecomp.weight (out, 1), lora_A, lora_B; or it alone
    torchtune                  layers.0.attn.q_proj.lora_a.weight (r, in), lora_b.weight (out, r), magnitude (out)

α is ``lora_alpha`` of an ``adapter_config.json`` beside the file; a state dict alone does not hold it.
"""

from collections.abc import Mapping
from typing import Any

from deltaw.adapters.errors import RecordError
from deltaw.adapters.peft.names import BASE_LAYER, MODULES_TO_SAVE, PREFIX
from deltaw.analysis.records.foreign.formats.diffusers import with_alpha
from deltaw.analysis.records.foreign.formats.layers import (
    PAIRS,
    Found,
    Layer,
    grouped,
    is_matrix,
    lora_layers,
    plain_adapter_names,
    without_alpha,
)
from deltaw.analysis.records.storage.tensors import Tensors

ORIGINAL = "original_module"
CONFIGURE = "put its adapter_config.json beside it"
TUNE = {"lora_a.weight": "down", "lora_b.weight": "up", "magnitude": "magnitude"}
OTHERS = (".hada_", ".lokr_", ".oft_", ".boft_", ".ia3_l", ".vera_", ".hira_", ".miss_", ".randlora_")


def read(tensors: Tensors, settings: Mapping[str, Any]) -> Found:
    """Return the layers of a state dict of a PeftModel, or of an adapter's file of NVlabs' DoRA.

    Raises:
        RecordError: It is of another type than LoRA, or a layer lacks one of its tensors.
    """
    other = next((name for name in tensors.names() if any(part in name for part in OTHERS)), None)
    if other is not None:
        raise RecordError(f"it has {other:.120}, and only its adapter_config.json tells its formula; {CONFIGURE}")
    named = plain_adapter_names(tensors.names(), tensors.where)
    plain = {_unprefixed(name): stored for name, stored in named.items()}
    groups, rest = grouped(plain, PAIRS)
    try:
        layers = lora_layers(groups, tensors.where)
    except RecordError as error:
        raise RecordError(f"{error}; is it whole? If so, {CONFIGURE}") from None
    layers = {name: with_alpha(name, layer, tensors, settings) for name, layer in layers.items()}
    own, whole = _beside(rest, layers)
    for module, stored in whole.items():
        if is_matrix(tensors, stored):
            layers[module] = Layer("whole", {"diff": stored})
    left_out: dict[str, str] = {}
    notes = [] if "lora_alpha" in settings else without_alpha(layers, left_out, CONFIGURE)
    return Found(layers, left_out, notes, own, dict(settings))


def _unprefixed(name: str) -> str:
    """A name without ``base_model.model.`` and what stands before it."""
    at = name.find(PREFIX)
    return name if at < 0 or (at and name[at - 1] != ".") else name[at + len(PREFIX) :]


def _beside(rest: Mapping[str, str], layers: Mapping[str, Layer]) -> tuple[dict[str, str], dict[str, str]]:
    """What of the plain model stands beside the adapters, and the modules that were trained as a whole."""
    own, whole = {}, {}
    saved = any(f".{MODULES_TO_SAVE}." in name for name in rest)
    for name, stored in rest.items():
        parts = name.split(".")
        if MODULES_TO_SAVE in parts:
            at = parts.index(MODULES_TO_SAVE)
            if parts[-1] == "weight":
                whole[".".join([*parts[:at], *parts[at + 2 : -1]])] = stored
            continue
        own[".".join(part for part in parts if part not in (BASE_LAYER, ORIGINAL))] = stored
    # A file of an adapter alone holds, beside it, what else was trained.
    everything = saved or any(f"{module}.weight" in own for module in layers)
    if not everything:
        return {}, {name.removesuffix(".weight"): stored for name, stored in own.items() if name.endswith(".weight")}
    return own, whole


def read_torchtune(tensors: Tensors, settings: Mapping[str, Any]) -> Found:
    """Return the layers of torchtune's adapter.

    Raises:
        RecordError: A layer lacks one of its tensors.
    """
    groups, rest = grouped({name: name for name in tensors.names()}, TUNE)
    layers = {
        name: with_alpha(name, layer, tensors, settings) for name, layer in lora_layers(groups, tensors.where).items()
    }
    own = {name: name for name in rest if any(name == f"{module}.weight" for module in layers)}
    left_out: dict[str, str] = {}
    notes = [] if "lora_alpha" in settings else without_alpha(layers, left_out, CONFIGURE)
    return Found(layers, left_out, notes, own, dict(settings))
