"""The sizes of the papers' models, by name, so that their parameters can be counted without a hub or a download."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

_LLAMA_7B: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "tie_word_embeddings": False,
}
_ROBERTA_BASE: dict[str, Any] = {
    "model_type": "roberta",
    "vocab_size": 50265,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
_GPT2_MEDIUM: dict[str, Any] = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 1024,
    "n_layer": 24,
    "n_head": 16,
}
_VL_BART: dict[str, Any] = {
    "model_type": "bart",
    "vocab_size": 50465,  # BART-base's 50,265 and the 200 words <extra_id_…> and <vis_extra_id_…> of VL-T5
    "max_position_embeddings": 1024,
    "d_model": 768,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "encoder_ffn_dim": 3072,
    "decoder_ffn_dim": 3072,
    "encoder_attention_heads": 12,
    "decoder_attention_heads": 12,
}

# Keyword arguments of the model type's configuration, as the checkpoint's own config.json has them; only what decides
# the number of parameters. LLaMA 2 7B differs from LLaMA 7B in nothing that is counted.
CONFIGS: dict[str, dict[str, Any]] = {
    "llama-7b": _LLAMA_7B,
    "llama-13b": _LLAMA_7B
    | {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 40,
    },
    "llama2-7b": _LLAMA_7B,
    "llama3-8b": _LLAMA_7B | {"vocab_size": 128256, "intermediate_size": 14336, "num_key_value_heads": 8},
    "llama3-70b": _LLAMA_7B
    | {
        "vocab_size": 128256,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
    "mistral-7b": _LLAMA_7B
    | {
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
    },
    "roberta-base": _ROBERTA_BASE,
    "roberta-large": _ROBERTA_BASE
    | {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    "deberta-xxl": {  # version 2, microsoft/deberta-v2-xxlarge
        "model_type": "deberta-v2",
        "vocab_size": 128100,
        "hidden_size": 1536,
        "intermediate_size": 6144,
        "num_hidden_layers": 48,
        "num_attention_heads": 24,
        "max_position_embeddings": 512,
        "type_vocab_size": 0,
        "position_biased_input": False,
        "relative_attention": True,
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "conv_kernel_size": 3,
        "conv_act": "gelu",
    },
    "gpt2-medium": _GPT2_MEDIUM,
    "gpt2-large": _GPT2_MEDIUM | {"n_embd": 1280, "n_layer": 36, "n_head": 20},
    "vl-bart": _VL_BART,
    "vl-bart-video": _VL_BART,
}

# Features of an image (CLIP-ResNet101) or of a frame (CLIP-ViT); the encoders themselves are run once, beforehand.
_VISUAL_FEATURES = {"vl-bart": 2048, "vl-bart-video": 512}


def named_config(name: str) -> "PretrainedConfig":
    """Return the transformers configuration of a name in ``CONFIGS``; needs transformers and no network."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**CONFIGS[name])


def complete(name: str, model: "nn.Module") -> None:
    """Add, in place, what the named model has beside its transformers class: VL-BART's embedding of visual features.

    It projects the features and the box (4 numbers and the area), each with a layer norm, and embeds which of two
    images they are from, as VL-T5 and VL-Adapter do.
    """
    from torch import nn  # not above: the names of the configurations are shown in the help, which needs no torch

    features = _VISUAL_FEATURES.get(name)
    if features is None:
        return
    width = CONFIGS[name]["d_model"]
    model.get_submodule("encoder").add_module(
        "visual_embedding",
        nn.ModuleDict(
            {
                "feat_embedding": nn.Sequential(nn.Linear(features, width), nn.LayerNorm(width)),
                "absolute_vis_pos_embedding": nn.Sequential(nn.Linear(5, width), nn.LayerNorm(width)),
                "img_order_embedding": nn.Embedding(2, width),
            }
        ),
    )
