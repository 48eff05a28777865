"""PEFT's names of files, tensors, prefixes, types and settings, as of version 0.21; the only copy of each."""

import re

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
ROOT = "base_model."  # before what all layers share
PREFIX = "base_model.model."  # before the name of a module
RECORD = "peft-"  # begins the names of PEFT's types in a record of deltaw
BASE_LAYER = "base_layer"  # the plain layer inside one of PEFT's
MODULES_TO_SAVE = "modules_to_save"
SHARED_THETA = "unilora_theta_d"  # all that the file of a Uni-LoRA holds without its indices
OUT_PROJ = "out_proj"  # the layer in nn.MultiheadAttention that PEFT adapts beside in_proj_weight
IN_PROJ = "in_proj"

# PEFT's name of a tensor, by the type of the folder, and ours: the types that are read and written as methods.
TENSORS: dict[str, dict[str, str]] = {
    "LORA": {"lora_A.weight": "lora_A", "lora_B.weight": "lora_B", "lora_magnitude_vector": "magnitude"},
    "VERA": {"vera_lambda_d": "vera_d", "vera_lambda_b": "vera_b"},
    "HIRA": {"hira_A": "hira_A", "hira_B": "hira_B"},
    "RANDLORA": {"randlora_lambda": "randlora_lambda", "randlora_gamma": "randlora_gamma"},
    "DELORA": {name: name for name in ("delora_A", "delora_B", "delora_lambda", "delora_w_norm")},
    "OFT": {"oft_R.weight": "oft_R"},
    "ADALORA": {"lora_A": "lora_A", "lora_B": "lora_B", "lora_E": "lora_E"},
}
SHARED = {"VERA": ("vera_A", "vera_B"), "RANDLORA": ("randlora_A", "randlora_B")}  # one for all layers

LEAVES_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal", "mica")  # starts of LoRA that don't change W₀
MADE_AGAIN = ("pissa", "olora")  # starts that follow from W₀ alone

# What ``load_peft`` reads, or what no longer matters once the tensors are there. Any other that is on is refused.
UNDERSTOOD = frozenset(
    re.findall(
        r"\w+",
        """
    alpha_pattern auto_mapping base_model_name_or_path beta1 beta2 bias block_share corda_config d_initial deltaT
    delora_lambda eps eva_config exclude_modules fan_in_fan_out hira_dropout inference_mode init_lora_weights init_r
    init_weights lambda_pattern layers_pattern layers_to_transform loftq_config lora_alpha lora_dropout lora_ga_config
    megatron_core module_dropout modules_to_save num_cayley_neumann_terms oft_block_size orth_reg_weight peft_type
    peft_version projection_prng_key qalora_group_size r randlora_alpha randlora_dropout rank_pattern revision
    runtime_config save_projection sparse target_modules target_r task_type tfinal tinit total_step use_cayley_neumann
    use_dora use_rslora vera_dropout very_sparse
    """,
    )
)

# Settings of LoRA that ΔW depends on, and that stay the same through all checkpoints of a run.
FIXED = (
    "peft_type",
    "use_dora",
    "use_rslora",
    "init_lora_weights",
    "lora_alpha",
    "use_qalora",
    "layer_replication",
)
