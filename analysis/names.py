"""What a module's name tells: its layer number and its kind."""

import re

# The last or second-last parts of names in the common architectures, and the kind they stand for.
KINDS = {
    "query": ("query", "q_proj", "q_lin", "q", "wq", "to_q", "query_proj", "SelfAttention.q"),
    "key": ("key", "k_proj", "k_lin", "k", "wk", "to_k", "key_proj"),
    "value": ("value", "v_proj", "v_lin", "v", "wv", "to_v", "value_proj"),
    "output": ("attention.output.dense", "o_proj", "out_proj", "out_lin", "o", "wo", "attn.c_proj", "to_out.0"),
    "up": ("intermediate.dense", "up_proj", "fc1", "lin1", "wi", "wi_1", "mlp.c_fc", "w3"),
    "gate": ("gate_proj", "wi_0", "w1"),
    "down": ("output.dense", "down_proj", "fc2", "lin2", "mlp.c_proj", "w2"),
    "qkv": ("qkv_proj", "c_attn", "query_key_value", "Wqkv", "in_proj"),
}
_BY_SUFFIX = sorted(
    ((suffix, kind) for kind, suffixes in KINDS.items() for suffix in suffixes), key=lambda pair: -len(pair[0])
)


def kind_of(module: str) -> str:
    """Return "query", "key", "value", "output", "up", "gate", "down" or "qkv", or else the name's last part.

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
    """Return the first number that stands as a part of the name, the layer's, or ``None``.

    Example:
        >>> layer_of("roberta.encoder.layer.3.attention.self.query"), layer_of("classifier")
        (3, None)
    """
    found = re.search(r"(?:^|\.)(\d+)(?:\.|$)", module)
    return int(found.group(1)) if found else None
