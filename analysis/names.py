"""Layer number, kind and block of a module, from its name."""

import re
from collections.abc import Callable

from deltaw.adapters.errors import OptionError

# The last or second-last parts of names in the common architectures, and the kind they stand for.
KINDS = {
    "query": ("query", "q_proj", "q_lin", "q", "wq", "to_q", "query_proj", "SelfAttention.q", "q_attn", "q_b_proj",
        "add_q_proj"),
    "key": ("key", "k_proj", "k_lin", "k", "wk", "to_k", "key_proj", "add_k_proj"),
    "value": ("value", "v_proj", "v_lin", "v", "wv", "to_v", "value_proj", "add_v_proj"),
    "output": (
        "attention.output.dense", "o_proj", "out_proj", "out_lin", "o", "wo", "attn.c_proj", "to_out.0",
        "attention.dense", "self_attention.dense", "attention.c_proj", "crossattention.c_proj", "attn.proj",
        "attention.out", "attn.Wo", "self_attn.dense", "to_out", "to_add_out", "img_attn.proj", "txt_attn.proj",
    ),
    "up": (
        "intermediate.dense", "up_proj", "fc1", "lin1", "wi", "wi_1", "mlp.c_fc", "w3", "dense_h_to_4h", "up",
        "mlp.Wi", "ffn.lin1", "fc_in", "ffn", "linear1", "ffn.up_proj",
        "ff.net.0.proj", "ff_context.net.0.proj", "img_mlp.0", "txt_mlp.0", "ffn.0", "proj_mlp",
    ),
    "gate": ("gate_proj", "wi_0", "w1", "gate"),
    "down": (
        "output.dense", "down_proj", "fc2", "lin2", "mlp.c_proj", "w2", "dense_4h_to_h", "DenseReluDense.wo",
        "mlp.Wo", "fc_out", "ffn_output", "linear2", "ff.net.2", "ff_context.net.2", "img_mlp.2", "txt_mlp.2", "ffn.2",
    ),
    "qkv": ("qkv_proj", "c_attn", "query_key_value", "Wqkv", "in_proj", "qkv", "to_qkv", "attn_qkv"),
    "gate_up": ("gate_up_proj",),
    "modulation": (
        "norm.linear", "norm1.linear", "norm1_context.linear", "norm_out.linear", "modulation.lin", "img_mod.lin",
        "txt_mod.lin", "adaLN_modulation.1", "modulation.1",
    ),
    "conv1": ("in_layers.2",),
    "conv2": ("out_layers.3",),
    "conv_shortcut": ("skip_connection",),
    "time_emb_proj": ("emb_layers.1",),
    "router": ("router", "mlp.gate", "block_sparse_moe.gate", "gate.wg"),
}  # fmt: skip
_BY_SUFFIX = sorted(
    ((suffix, kind) for kind, suffixes in KINDS.items() for suffix in suffixes), key=lambda pair: -len(pair[0])
)
# What an embedding's own name ends in, or an output head's, which is an embedding turned around.
_EMBEDDING = re.compile(
    r"(?:.*_)?(?:embeddings?|embeds?|emb|embed_tokens|embed_positions|embed_in|embed_out|wte|wpe|lm_head|"
    r"relative_attention_bias|tokens_embed|positions_embed)|shared|class_embedding"
)
# An output head as the masked language models have it: the last linear layer, as large as the vocabulary.
_OUTPUT = re.compile(r"(?:head|out|score|classifier|pooler|final_layer|pred(?:ictions)?)$|^cls\b|\bproj_out|embed_out")
_HEADS = re.compile(r"(?:.*\.)?(?:lm_head|predictions)\.decoder|generator_lm_head|output_projection")

# The attention of a decoder to an encoder, as a part of a name in lower case.
# Where a UNet, or a diffusion transformer with two sorts of blocks, is; the authors' names beside diffusers'.
_PLACES = {
    "down_blocks": "down", "input_blocks": "down", "mid_block": "mid", "middle_block": "mid", "up_blocks": "up",
    "output_blocks": "up", "single_transformer_blocks": "single", "single_blocks": "single",
}  # fmt: skip
_MIDDLE = ("mid_block", "middle_block")  # there is one, so it has no number
# What stands before the names of one part of a pipeline.
_COMPONENTS = re.compile(r"(?:unet|transformer(?:_2)?|text_encoder(?:_[23])?|prior|vae|diffusion_model)\.")

_CROSS = ("encoder_attn", "encdecattention", "crossattention", "cross_attn", "cross_attention", "multihead_attn")


def kind_of(module: str) -> str:
    """Return "query", "key", "value", "output", "up", "gate", "down" or "qkv", or else the name's last part.

    Fused matrices are "qkv" and "gate_up", a choice among experts is a "router".

    Example:
        >>> kind_of("roberta.encoder.layer.3.attention.self.query"), kind_of("model.layers.0.mlp.up_proj")
        ('query', 'up')
        >>> kind_of("classifier.dense")
        'dense'
    """
    for suffix, kind in _BY_SUFFIX:
        if module == suffix or module.endswith("." + suffix):
            return kind
    return module.rsplit(".", 1)[-1]


def layer_of(module: str) -> int | None:
    """Return the first number that stands as a part of the name, the layer's, or ``None``; 0 in a UNet's middle block.

    Example:
        >>> layer_of("roberta.encoder.layer.3.attention.self.query"), layer_of("classifier")
        (3, None)
        >>> layer_of("unet.up_blocks.2.attentions.1.proj_in"), layer_of("mid_block.resnets.1.conv1")
        (2, 0)
    """
    if any(part in _MIDDLE for part in module.split(".")):
        return 0
    found = re.search(r"(?:^|\.)(\d+)(?:\.|$)", module)
    return int(found.group(1)) if found else None


def stack_of(module: str) -> str:
    """Return "encoder", "decoder", "cross" (attention from decoder to encoder), or "" where there is no telling.

    In a UNet "down", "mid" or "up", in a transformer with two sorts of blocks "single" for those of one stream.

    Example:
        >>> stack_of("bart.model.encoder.layers.0.self_attn.q_proj"), stack_of("model.layers.0.self_attn.q_proj")
        ('encoder', '')
        >>> stack_of("model.decoder.layers.0.encoder_attn.v_proj"), stack_of("decoder.block.1.layer.0.SelfAttention.q")
        ('cross', 'decoder')
        >>> stack_of("down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q"), stack_of("single_blocks.3.linear1")
        ('down', 'single')
    """
    parts = module.lower().split(".")
    place = next((_PLACES[part] for part in parts if part in _PLACES), "")
    if place:
        return place
    if any(part in _CROSS for part in parts):
        return "cross"
    return next((part for part in parts if part in ("encoder", "decoder")), "")


def block_of(module: str) -> str:
    """Return the block of the model that a module is in: its name up to the first number, or a UNet's middle block.

    What is in none is in what its name begins with. So "layers.3", "down_blocks.0", "single_transformer_blocks.7".

    Example:
        >>> block_of("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"), block_of("unet.conv_in")
        ('unet.down_blocks.1', 'unet.conv_in')
        >>> block_of("mid_block.resnets.1.conv1"), block_of("time_embedding.linear_1"), block_of("lm_head")
        ('mid_block', 'time_embedding', 'lm_head')
        >>> block_of("model.layers.11.self_attn.q_proj"), block_of("transformer_blocks.18.ff.net.2")
        ('model.layers.11', 'transformer_blocks.18')
    """
    lead = _COMPONENTS.match(module)
    front = lead.group() if lead else ""
    parts = module[len(front) :].split(".")
    for place, part in enumerate(parts):
        if part in _MIDDLE or part.isdecimal():
            return front + ".".join(parts[: place + 1])
    return front + parts[0]


def block_order(module: str) -> tuple[int, str, int]:
    """Return by what blocks are sorted: the input side, down, middle, up, and the output side of a model.

    Example:
        >>> names = ["up_blocks.0.a", "conv_out", "down_blocks.10.a", "down_blocks.2.a", "conv_in", "mid_block.a"]
        >>> [block_of(name) for name in sorted(names, key=block_order)]
        ['conv_in', 'down_blocks.2', 'down_blocks.10', 'mid_block', 'up_blocks.0', 'conv_out']
        >>> sorted(["lm_head", "single_blocks.0.linear1", "double_blocks.1.q", "wte"], key=block_order)
        ['wte', 'double_blocks.1.q', 'single_blocks.0.linear1', 'lm_head']
    """
    block, layer = block_of(module), layer_of(module)
    if layer is None:
        return (9 if _OUTPUT.search(block) else 0), block, 0
    side = {"down": 1, "encoder": 1, "": 2, "mid": 3, "cross": 4, "decoder": 4, "single": 4, "up": 4}[stack_of(module)]
    return side, re.sub(r"\d+$", "", block), layer


def is_embedding(module: str) -> bool:
    """Return whether a module's name is that of an embedding, or of an output head over the vocabulary.

    Example:
        >>> is_embedding("transformer.wte"), is_embedding("lm_head"), is_embedding("classifier")
        (True, True, False)
    """
    return bool(_EMBEDDING.fullmatch(module.rpartition(".")[2]) or _HEADS.fullmatch(module))


def name_reader(pattern: str | None) -> Callable[[str], tuple[int | None, str]]:
    """Return a function from a module's name to its layer number and kind.

    Arguments:
        pattern: A regular expression that is searched for in the name, with a group ``layer``, ``kind`` or both; what
            it does not find is recognised as by ``layer_of`` and ``kind_of``.

    Raises:
        OptionError: It is no regular expression, or has neither group.

    Example:
        >>> name_reader(r"blk(?P<layer>\\d+)_(?P<kind>[a-z]+)")("net.blk7_mix")
        (7, 'mix')
    """
    if pattern is None:
        return lambda module: (layer_of(module), kind_of(module))
    if not isinstance(pattern, str):
        raise OptionError(f"pattern is {pattern!r}; pass a regular expression with a group layer or kind, as a text")
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise OptionError(f"pattern {pattern!r} is no regular expression ({error})") from None
    if not {"layer", "kind"} & set(compiled.groupindex):
        raise OptionError(f"pattern {pattern!r} needs a group (?P<layer>\\d+) or (?P<kind>…)")

    def read(module: str) -> tuple[int | None, str]:
        found = compiled.search(module)
        groups = found.groupdict() if found else {}
        layer, kind = groups.get("layer"), groups.get("kind")
        if layer is not None and not layer.isdecimal():
            raise OptionError(f"pattern {pattern!r} finds the layer {layer!r} in {module!r}, which is no number")
        return layer_of(module) if layer is None else int(layer), kind_of(module) if kind is None else kind

    return read
