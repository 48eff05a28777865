"""The types of PEFT: how each is read, or why it is not."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from deltaw.adapters.method import ScaledFactors, ScaledLowRank
from deltaw.adapters.peft.formulas.entries import ia3, miss, scaled_ia3, shira, supertuning
from deltaw.adapters.peft.formulas.hadamard import glora, hira, loha, lokr
from deltaw.adapters.peft.formulas.lora import adalora, delora, gralora, lora, plain_lora, poly, scaled_lora
from deltaw.adapters.peft.formulas.orthogonal import boft, hra, oft, psoft, road
from deltaw.adapters.peft.formulas.settings import Factors, Settings, Shapes, Tensors
from deltaw.adapters.peft.formulas.subspaces import adamss, deft, frod, osf, peanut
from deltaw.adapters.peft.formulas.transforms import c3a, fourierft, waveft
from deltaw.adapters.peft.formulas.vectors import pvera, randlora, tinylora, unilora, vblora, vera


@dataclass(frozen=True)
class Formula:
    """How a type of PEFT is read.

    Arguments:
        prefix: What the names of its tensors begin with.
        update: The formula.
        scaled: The factors as they are stored and their scaling, where the options leave ΔW such a plain product.
        form: W' as diag(ρ) (W₀ + U V) diag(γ), from the layer's tensors in float64 and W₀ (out, in) in float32 or
            float64, where ``update`` is no product and W' has this form all the same.
        sides: (out, in) from the shapes of a layer's tensors, where they tell; else the base is needed for it.
        needs_base: Whether ΔW depends on W₀, for any options.
        scales_base: Whether its tensors multiply W₀, so that their rounding moves all of W'.
    """

    prefix: str
    update: Callable[[Tensors, Settings], Factors | Tensor]
    sides: Callable[[Shapes], tuple[int, int]] | None = None
    needs_base: bool = False
    scales_base: bool = False
    scaled: Callable[[Tensors, Settings], ScaledFactors | None] = lambda _tensors, _settings: None
    form: Callable[[Tensors, Settings, Tensor], ScaledLowRank | None] = lambda _tensors, _settings, _base: None


def _of(rows: str, columns: str) -> Callable[[Shapes], tuple[int, int]]:
    return lambda shapes: (shapes[rows][0], shapes[columns][1])


def _kron(shapes: Shapes) -> tuple[int, int]:
    def side(name: str) -> tuple[int, int]:
        whole = shapes.get(name)
        return (whole[0], whole[1]) if whole else (shapes[f"{name}_a"][0], shapes[f"{name}_b"][1])

    (a, b), (c, d) = side("lokr_w1"), side("lokr_w2")
    return a * c, b * d


FORMULAS = {
    "LORA": Formula("lora_", lora, _of("lora_B", "lora_A"), scaled=plain_lora, form=scaled_lora),
    "ADALORA": Formula("lora_", adalora, _of("lora_B", "lora_A")),
    "LOHA": Formula("hada_", loha, _of("hada_w1_a", "hada_w1_b")),
    "LOKR": Formula("lokr_", lokr, _kron),
    "VERA": Formula("vera_", vera),
    "PVERA": Formula("pvera_", pvera),
    "RANDLORA": Formula("randlora_", randlora),
    "HIRA": Formula("hira_", hira, _of("hira_B", "hira_A"), needs_base=True),
    "DELORA": Formula("delora_", delora, _of("delora_B", "delora_A")),
    "GRALORA": Formula(
        "gralora_", gralora, lambda s: (s["gralora_B"][0] * s["gralora_B"][2], s["gralora_A"][0] * s["gralora_A"][1])
    ),
    "VBLORA": Formula("vblora_", vblora),
    "UNILORA": Formula("unilora_", unilora, _of("unilora_indices_B", "unilora_indices_A")),
    "TINYLORA": Formula("tinylora_", tinylora, _of("tinylora_B", "tinylora_A")),
    "OFT": Formula("oft_", oft, needs_base=True, scales_base=True),
    "BOFT": Formula("boft_", boft, needs_base=True, scales_base=True),
    "HRA": Formula("hra_", hra, needs_base=True),
    "ROAD": Formula("road_", road, needs_base=True, scales_base=True),
    "PSOFT": Formula("psoft_", psoft, needs_base=True),
    "IA3": Formula("ia3_", ia3, needs_base=True, scales_base=True, form=scaled_ia3),
    "MISS": Formula("miss_", miss),
    "SHIRA": Formula("shira_", shira),
    "SUPERTUNING": Formula("supertuning_", supertuning),
    "FOURIERFT": Formula("fourierft_", fourierft),
    "WAVEFT": Formula("waveft_", waveft),
    "C3A": Formula(
        "c3a_", c3a, lambda s: (s["c3a_kernel"][0] * s["c3a_kernel"][2], s["c3a_kernel"][1] * s["c3a_kernel"][2])
    ),
    "DEFT": Formula("deft_", deft, _of("deft_P", "deft_R"), needs_base=True),
    "GLORA": Formula("glora_", glora, needs_base=True),
    "PEANUT": Formula("peanut_", peanut, needs_base=True),
    "POLY": Formula(
        "poly_",
        poly,
        lambda s: (s["poly_lora_B"][0] * s["poly_lora_B"][3], s["poly_lora_A"][0] * s["poly_lora_A"][2]),
    ),
    "FROD": Formula("frod_", frod, needs_base=True, scales_base=True),
    "ADAMSS": Formula("adamss_", adamss, needs_base=True),
    "OSF": Formula("osf_", osf, _of("osf_svd_params.U_low", "osf_svd_params.V_low"), needs_base=True),
}


_MERGE = "load it with PEFT, call merge_and_unload() and save_pretrained(folder), and open that folder"


REFUSED = {
    "LILY": "its weight depends on the input (it mixes by a router), so there is no W'",
    "XLORA": "its weight depends on the input, so there is no W'; open the adapters that it mixes",
    "SHADOW": "it runs a second network beside the layers and changes no matrix",
    "BEFT": "it trains biases and changes no matrix",
    "LN_TUNING": "it trains norms and changes no matrix of a linear layer",
    "TRAINABLE_TOKENS": "it trains rows of the embedding and changes no matrix of a linear layer",
    "PROMPT_TUNING": "it trains a prompt and changes no matrix",
    "MULTITASK_PROMPT_TUNING": "it trains a prompt and changes no matrix",
    "P_TUNING": "it trains a prompt and changes no matrix",
    "PREFIX_TUNING": "it trains a prefix and changes no matrix",
    "CPT": "it trains a prompt and changes no matrix",
    "CARTRIDGE": "it trains keys and values of a cache and changes no matrix",
    "ADAPTION_PROMPT": "it trains prompts and gates and changes no matrix",
    "BONE": f"PEFT renamed it MISS and changed its format; {_MERGE}",
}
