"""Adapters of other tools than PEFT, known by the names of their tensors: what reads them, or nothing.

Their factors are matrices, and would be read as layers. ``formats/`` has the readers.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from deltaw.adapters.errors import RecordError

MERGE = "merge it into its model with that tool, and open the merged model with the original as base"
CONVERT = (
    "load it with diffusers (pipeline.load_lora_weights(FILE)), save it with pipeline.save_lora_weights(FOLDER), and "
    "open that folder"
)
CONFIGURE = (
    "put its adapter_config.json beside it and open the folder; without it α, and so the scale of ΔW, is not known"
)


INVERSION = "an embedding of textual inversion"


class Tool(NamedTuple):
    """A tool that saves adapters.

    Arguments:
        name: The tool, and of what it is the format.
        tensor: What a name of one of its tensors has in it, and no layer's.
        advice: What to do.
        within: What such a name has in it, too; apart, so that every search is linear in a stranger's name.
        reads: The name of the format in ``formats/opening.py`` that reads it, "" where none does.
    """

    name: str
    tensor: re.Pattern[str]
    advice: str = MERGE
    within: str = ""
    reads: str = ""


# The first that fits counts: a tool with names of its own stands before those that share theirs.
TOOLS = [
    Tool(
        "AdapterHub's adapters", re.compile(r"\.(?:loras|adapters|prefix_tunings|shared_parameters)\.[^.]+\."),
        f"of LoRA, {MERGE}", reads="adapterhub",
    ),
    Tool("NVlabs' DoRA", re.compile(r"\.weight_m_wdecomp(?:\.weight)?$"), reads="nvlabs-dora"),
    Tool(
        "a PEFT model's state dict or adapter without its configuration",
        re.compile(r"\.(?:lora_|hada_|lokr_|oft_|boft_|ia3_l|vera_|hira_|miss_|randlora_)"),
        CONFIGURE,
        "base_model.model.",
        "peft-state",
    ),
    Tool("LyCORIS's LoHa", re.compile(r"\.hada_[wt][12]"), reads="lycoris"),
    Tool("LyCORIS's LoKr", re.compile(r"\.lokr_[wt][12]"), reads="lycoris"),
    Tool("LyCORIS's or kohya's DoRA", re.compile(r"\.dora_scale$"), reads="lycoris"),
    Tool(
        "kohya's LoRA (sd-scripts)", re.compile(r"^lora_[a-z]+\d*_.*\.lora_(?:down|up|mid)\.weight$"), reads="kohya"
    ),
    Tool("LoRA of a diffusion model", re.compile(r"\.lora_(?:down|up|mid)(?:\.weight)?$"), reads="comfyui"),
    Tool(
        "diffusers' LoRA", re.compile(r"(?:_lora|\.lora(?:_linear_layer)?)\.(?:down|up)\.weight$"), reads="diffusers"
    ),
    Tool(
        "LoRA with full differences (LyCORIS, ComfyUI), or LyCORIS's IA3",
        re.compile(r"^(?:lora_|lycoris_|diffusion_model\.).*\.(?:on_input|diff(?:_b)?|w_norm)$"),
        reads="lycoris",
    ),
    Tool("LyCORIS's OFT", re.compile(r"\.(?:oft_blocks|oft_diag)$")),
    Tool("LyCORIS's GLoRA", re.compile(r"^(?:lora|lycoris)_.*\.[ab][12]\.weight$")),
    Tool("XLabs' LoRA of Flux", re.compile(r"_lora[12]?\.(?:down|up)\.weight$"), CONVERT),
    Tool("cloneofsimo's LoRA", re.compile(r"^\w+:\d+:(?:up|down)$")),
    Tool("torchtune's LoRA", re.compile(r"\.lora_[ab]\.weight$"), reads="torchtune"),
    Tool("MLX's LoRA", re.compile(r"\.lora_[ab]$"), reads="mlx"),
    Tool("MLX-VLM's LoRA", re.compile(r"_proj\.[AB]$"), reads="mlx"),
    Tool("DeepSpeed's LoRA", re.compile(r"\.lora_(?:right_weight|left_weight|weight_[12](?:\.weight)?)$")),
    Tool("NeMo's or Megatron's adapter", re.compile(r"\.linear_(?:in|out)\.weight$"), MERGE, "adapter"),
    Tool("LoRA of loralib, LitGPT or minLoRA", re.compile(r"\.lora_[AB]$"), reads="loralib"),
    Tool(
        "LoRA, as diffusers saves it, or PEFT without its prefix",
        re.compile(r"(?:^|\.)lora_(?:A|B|E|embedding_A|embedding_B)\.(?:[\w-]+\.)?weight$|\.lora_(?:embedding|magnitude)"),
        f"{CONFIGURE}; of a diffusion model: {MERGE}",
        reads="diffusers",
    ),
    Tool(
        INVERSION, re.compile(r"^(?:emb_params|clip_[lg]|t5xxl|string_to_param\..*)$"),
        "it adds rows to the tokens' embedding and changes no matrix; there is no ΔW to show",
    ),
    Tool("a bottleneck adapter", re.compile(r"(?:^|\.)adapter_(?:down|up)(?:\.\d+)?\.weight$")),
]  # fmt: skip
BY_SETTINGS = {
    reads: Tool(name, re.compile(""), reads=reads)
    for reads, name in {
        "nvlabs-dora": "NVlabs' DoRA",
        "mlx": "MLX's adapters",
        "adapterhub": "AdapterHub's adapters",
        "litgpt": "LitGPT's LoRA",
        "loralib": "LoRA of loralib, LitGPT or minLoRA",
    }.items()
}


def foreign_tool(names: Iterable[str]) -> tuple[Tool, str] | None:
    """Return whose adapters these tensors are and one of them, ``None`` where they are layers.

    Example:
        >>> found = foreign_tool(["lora_unet_mid_block.lora_down.weight", "lora_unet_mid_block.alpha"])
        >>> found[0].name, found[1]
        ("kohya's LoRA (sd-scripts)", 'lora_unet_mid_block.lora_down.weight')
        >>> foreign_tool(["model.layers.0.self_attn.q_a_proj.weight"]) is None
        True
    """
    given = list(names)
    for tool in TOOLS:
        name = next((name for name in given if tool.within in name and tool.tensor.search(name)), None)
        if name is not None:
            return tool, name
    return None


def refuse_factors(names: Iterable[str], where: str, *, alone: bool = False) -> None:
    """Raise where tensors are adapters' factors, which are no layers.

    Arguments:
        names: Of all tensors.
        where: The file, for messages.
        alone: Only where no matrix of a layer stands beside them, as some models keep adapters of their own.

    Raises:
        RecordError: Says whose they are and what to do.
    """
    given = list(names)
    found = foreign_tool(given)
    if alone and any(name.endswith(".weight") and foreign_tool([name]) is None for name in given):
        return
    if found is not None:
        tool, name = found
        held = f"{where}: holds {tool.name} (it has {name:.120})"
        if tool.reads:
            raise RecordError(f"{held}, which is an adapter and no model; {tool.advice}")
        raise RecordError(f"{held}, which is not read; {tool.advice}")


def settings_tool(settings: Mapping[str, Any]) -> Tool | None:
    """Return whose an ``adapter_config.json``, or LitGPT's hyperparameters, are, ``None`` for PEFT's and others."""
    if settings.get("peft_type") == "DORA":
        return BY_SETTINGS["nvlabs-dora"]
    if "peft_type" in settings:
        return None
    if {"fine_tune_type", "lora_parameters", "lora_layers"} & set(settings) or {"rank", "alpha"} <= set(settings):
        return BY_SETTINGS["mlx"]
    if isinstance(settings.get("config"), dict) or settings.get("architecture") == "lora":
        return BY_SETTINGS["adapterhub"]
    if "lora_r" in settings:
        return BY_SETTINGS["litgpt"]
    return BY_SETTINGS["loralib"] if "enable_lora" in settings else None
