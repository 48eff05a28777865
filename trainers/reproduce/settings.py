"""The default runs of each reproduction; nothing here loads torch, so that the help can show them."""

BORA_METHODS = ("ft", "lora", "dora", "dora-row", "bora")
DORA_METHODS = ("ft", "lora", "dora", "dora-row")
SBORA_METHODS = ("lora", "dora", "sbora-fa", "sbora-fb")
SBORA_RANKS = (8, 16)
DUAL_LORA_RANK = 8  # r: r₁ + r₂ = 2r
DUAL_LORA_RATIOS = 5  # the paper has 15
GRID_EPOCHS = 40  # of SBoRA's and Dual LoRA's runs, of which there are many
