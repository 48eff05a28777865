"""Names of layers: kohya's, which have underscores for dots, and those of one model in its several formats.

    lora_unet_down_blocks_0_attentions_0_proj_in   →   unet.down_blocks.0.attentions.0.proj_in
    unet.input_blocks.1.1.proj_in                  →   the same, as diffusers has it

Where a base is given, the underscores are told by its own names; else by the words that such models are made of.
"""

from __future__ import annotations

import re
from collections.abc import Collection

# What stands before the names of one part of a pipeline, and the part.
UNDERSCORED = {
    "lora_unet_": "unet", "lora_te_": "text_encoder", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3", "lora_transformer_": "transformer", "lora_prior_unet_": "prior",
    "lora_prior_te_": "text_encoder", "lycoris_": "", "lora_": "",
}  # fmt: skip
DOTTED = {
    "model.diffusion_model.": "unet", "diffusion_model.": "unet", "unet.": "unet", "transformer.": "unet",
    "cond_stage_model.transformer.": "text_encoder", "conditioner.embedders.0.transformer.": "text_encoder",
    "text_encoder.": "text_encoder", "text_encoder_2.": "text_encoder_2", "text_encoder_3.": "text_encoder_3",
    "conditioner.embedders.1.model.": "text_encoder_2", "prior.": "prior", "pipe.dit.": "unet",
    "text_encoders.clip_l.transformer.": "text_encoder", "text_encoders.clip_g.transformer.": "text_encoder_2",
}  # fmt: skip
# Names of more than one word, and the words of others.
WORDS = frozenset(
    re.findall(
        r"\S+",
        """
    down_blocks up_blocks mid_block transformer_blocks single_transformer_blocks joint_transformer_blocks double_blocks
    single_blocks joint_blocks context_block x_block input_blocks output_blocks middle_block noise_refiner
    context_refiner proj_in proj_out to_q to_k to_v to_out to_add_out add_q_proj add_k_proj add_v_proj conv_in conv_out
    conv_shortcut time_embedding time_emb_proj linear_1 linear_2 add_embedding in_layers out_layers emb_layers
    skip_connection time_embed label_emb img_attn txt_attn img_mlp txt_mlp img_mod txt_mod img_in txt_in time_in
    vector_in guidance_in in_layer out_layer final_layer adaLN_modulation ff_context text_model self_attn cross_attn
    q_proj k_proj v_proj o_proj out_proj gate_proj up_proj down_proj token_embedding position_embedding text_projection
    wi_0 wi_1 proj_mlp norm1_context norm_out time_text_embed timestep_embedder text_embedder guidance_embedder
    context_embedder x_embedder patch_embedding text_embedding time_projection feed_forward k_img v_img t_embedder
    y_embedder cap_embedder distilled_guidance_layer
    ff net attn attn1 attn2 resnets attentions downsamplers upsamplers conv conv1 conv2 norm norm1 norm2 linear lin proj
    qkv mlp fc1 fc2 layers encoder decoder block layer model q k v o wi wo op out ffn blocks modulation linear1 linear2
    SelfAttention EncDecAttention DenseReluDense attention w1 w2 w3 gate
    """,
    )
)
LONGEST = max(word.count("_") + 1 for word in WORDS)
_FLUX = re.compile(r"(?:double|single|joint|transformer|single_transformer)_blocks[._]")
# SD's UNet as its authors have it, and as diffusers does: two resnets, and perhaps attentions, a level.
_RESNET = {
    "in_layers.2": "conv1", "out_layers.3": "conv2", "emb_layers.1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}  # fmt: skip
_ENDS = {
    "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1", "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in", "out.2": "conv_out",
}  # fmt: skip
_LEVEL = re.compile(r"(input_blocks|output_blocks)\.(\d{1,3})\.(\d)(?:\.(.+))?")
_MIDDLE = re.compile(r"middle_block\.([012])\.(.+)")
LEVEL = 3  # blocks of the authors' a level of diffusers'


class Names:
    """The names of a base, by what is left of them without dots.

    Arguments:
        names: All of them.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._flat: dict[tuple[str, str], str] = {}
        for name in names:
            part, rest = component(name)
            for key in ((part, flat(rest)), ("", flat(name))):
                self._flat[key] = rest if key not in self._flat or self._flat[key] == rest else ""

    def told(self, part: str, name: str) -> str | None:
        """Return a name with its dots, ``None`` where no name of the base, or several, are such."""
        for key in ((part, name), ("", name)):
            if self._flat.get(key):
                return self._flat[key]
        return None


def flat(name: str) -> str:
    """Return a name with underscores for dots."""
    return name.replace(".", "_")


def component(name: str) -> tuple[str, str]:
    """Return the part of a pipeline that a name says it is of, "" where it says none, and the rest of the name.

    Example:
        >>> component("model.diffusion_model.input_blocks.1.1.proj_in"), component("layers.0.q")
        (('unet', 'input_blocks.1.1.proj_in'), ('', 'layers.0.q'))
    """
    for prefix, part in DOTTED.items():
        if name.startswith(prefix):
            return part, name[len(prefix) :]
    return "", name


def dotted(name: str, base: Names) -> str:
    """Return kohya's name of a layer with its dots, by the base's names where they tell, else by known words.

    Example:
        >>> dotted("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0", Names(()))
        'unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0'
        >>> dotted("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", Names(()))
        'text_encoder.text_model.encoder.layers.0.self_attn.q_proj'
        >>> dotted("lora_unet_my_odd_block_3", Names(["my.odd_block.3"]))
        'unet.my.odd_block.3'
    """
    prefix = next((prefix for prefix in UNDERSCORED if name.startswith(prefix)), "")
    part, rest = UNDERSCORED.get(prefix, ""), name[len(prefix) :].lstrip("_")  # VideoX-Fun writes lora_unet__blocks
    if not prefix or "." in rest:
        return name
    if part == "unet" and _FLUX.match(rest):
        part = "transformer"
    found = base.told("unet" if part == "transformer" else part, rest) or ".".join(_words(rest))
    return f"{part}.{found}" if part else found


def _words(name: str) -> list[str]:
    """The parts of a name: known words and numbers; what is not known stays together."""
    pieces, found, unknown, k = name.split("_"), [], [], 0
    while k < len(pieces):
        take = next((n for n in range(min(LONGEST, len(pieces) - k), 0, -1) if "_".join(pieces[k : k + n]) in WORDS), 0)
        if not take and not pieces[k].isdecimal():
            unknown.append(pieces[k])
            k += 1
            continue
        if unknown:
            found.append("_".join(unknown))
            unknown = []
        take = take or 1
        found.append("_".join(pieces[k : k + take]))
        k += take
    return [*found, "_".join(unknown)] if unknown else found


def canonical(name: str) -> str:
    """Return a name as diffusers has it, of a layer of SD's UNet by its authors' name; others as they are.

    Example:
        >>> canonical("input_blocks.4.1.transformer_blocks.0.attn1.to_q"), canonical("input_blocks.3.0.op")
        ('down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q', 'down_blocks.0.downsamplers.0.conv')
        >>> canonical("output_blocks.2.1.conv"), canonical("middle_block.0.in_layers.2")
        ('up_blocks.0.upsamplers.0.conv', 'mid_block.resnets.0.conv1')
    """
    if name in _ENDS:
        return _ENDS[name]
    middle = _MIDDLE.fullmatch(name)
    if middle:
        place, rest = middle.groups()
        return (
            f"mid_block.attentions.0.{rest}" if place == "1" else f"mid_block.resnets.{int(place) // 2}.{_resnet(rest)}"
        )
    found = _LEVEL.fullmatch(name)
    if not found:
        return name.removeprefix("text_model.")
    side, number, place, rest = found.groups()
    down = side == "input_blocks"
    level, layer = divmod(int(number) - down, LEVEL)
    blocks = f"{'down' if down else 'up'}_blocks.{level}"
    rest = rest or ""
    if rest == "op" and down:
        return f"{blocks}.downsamplers.0.conv"
    if rest == "conv" and not down:
        return f"{blocks}.upsamplers.0.conv"
    if place == "0":
        return f"{blocks}.resnets.{layer}.{_resnet(rest)}"
    return f"{blocks}.attentions.{layer}.{rest}"


def _resnet(rest: str) -> str:
    return _RESNET.get(rest, rest)
