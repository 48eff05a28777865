"""Which rows or columns of a matrix belong to which attention head, by the model's configuration.

    query, key, value (heads·size, in)      head h has the rows from h·size to (h + 1)·size
    output (out, heads·size)                head h has these columns
    query, key and value in one             as ``split.py`` has them, head by head in each

Key and value have ``num_key_value_heads``, of which each serves a group of the query's heads (grouped-query attention).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from deltaw.adapters.checks import public, whole_number
from deltaw.adapters.errors import OptionError
from deltaw.analysis.measures.blocks import Blocks, equal_blocks
from deltaw.analysis.names import kind_of, stack_of
from deltaw.analysis.records.foreign.base_names import MODALITIES
from deltaw.analysis.records.foreign.split import FALCON, splits
from deltaw.analysis.records.source import Shape

ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
QUERY = ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads")
GROUPED = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "n_kv_heads")
SIZE = ("head_dim", "d_kv", "d_head", "kv_channels")
GIVE = 'give them: heads={"num_attention_heads": 12} (at the command line --heads 12)'
# What decides, besides these; a run keeps it of the model's configuration.
OTHERS = (
    "model_type", "hidden_size", "n_embd", "d_model", "decoder_attention_heads", "multi_query", "kv_lora_rank",
    "new_decoder_architecture",
)  # fmt: skip
TEXT = ("text_config", "llm_config", "language_config")
PARTS = (*TEXT, "vision_config", "audio_config", "encoder", "decoder", "attn_config")
_EXPERT = re.compile(r"(?:^|\.)\w*experts\.(?:expert_)?(\d+)(?:\.|$)")

Config = Mapping[str, Any]


def kept_of(config: Config) -> dict[str, Any]:
    """Return what a configuration says of heads, as plain values, for a record.

    Example:
        >>> kept_of({"num_attention_heads": 2, "vocab_size": 9, "text_config": {"num_heads": 4}})
        {'num_attention_heads': 2, 'text_config': {'num_heads': 4}}
    """
    names = {*QUERY, *GROUPED, *SIZE, *OTHERS, "kv_n_heads"}
    plain = {key: config[key] for key in config if key in names and isinstance(config[key], int | str)}
    inner = {key: kept_of(config[key]) for key in PARTS if isinstance(config.get(key), Mapping)}
    return plain | {key: of for key, of in inner.items() if of}


def checked_heads(heads: object) -> dict[str, int]:
    """Return counts of heads that were given: a number of query heads, or numbers by the configuration's names.

    Raises:
        OptionError: They are neither.

    Example:
        >>> checked_heads(12), checked_heads({"num_attention_heads": 8, "num_key_value_heads": 2})
        ({'num_attention_heads': 12}, {'num_attention_heads': 8, 'num_key_value_heads': 2})
    """
    if heads is None:
        return {}
    given = heads if isinstance(heads, Mapping) else {QUERY[0]: heads}
    known = (*QUERY, "decoder_attention_heads", *GROUPED, *SIZE)
    for name in given:
        if name not in known:
            raise OptionError(f"heads has {name!r}; choose from {', '.join(known)}")
    return {str(name): whole_number(f"heads, {name}", value, 1) for name, value in given.items()}


@public
def head_blocks(
    module: str, shape: Shape, config: Config, kind: str | None = None, heads: Mapping[str, int] | None = None
) -> Blocks | None:
    """Return the rows or columns of every attention head of a matrix; ``None`` where it has none.

    Arguments:
        module: The module's name, which says what it is.
        shape: (out, in).
        config: The model's ``config.json``, or a few of its numbers: num_attention_heads, num_key_value_heads where
            heads are grouped, head_dim where it is not the width over the heads, model_type for fused matrices.
        kind: "query", "key", "value", "output" or "qkv", where the name does not say it.
        heads: Numbers that go before the configuration's, as `checked_heads` returns them.

    Returns:
        `Blocks`, named by what they are of and the head's number: ("query", 0), ("query", 1), ….

    Raises:
        OptionError: The configuration does not tell the heads, or they do not divide the matrix.

    Example:
        >>> config = {"num_attention_heads": 4, "num_key_value_heads": 2}
        >>> head_blocks("layers.0.self_attn.k_proj", (16, 32), config).bounds
        ((0, 8), (8, 16))
        >>> head_blocks("layers.0.self_attn.o_proj", (32, 32), config).side
        'column'
        >>> head_blocks("layers.0.mlp.up_proj", (64, 32), config) is None
        True
    """
    kind = kind_of(module) if kind is None else kind
    latent = module.endswith("kv_b_proj")  # of multi-head latent attention: key and value of each head in turn
    fitting = kind in ("query", "key", "value") or latent
    if not fitting and not (kind in ("output", "qkv") and ATTENTION.search(module)):
        return None
    own = _own(module, config) | dict(heads or {})
    count = _count(module, own)
    if not count:
        raise OptionError(f"the model's configuration does not tell the heads; {GIVE}")
    if kind == "qkv":
        return _fused(module, shape, own, count)
    grouped = count if latent else _grouped(own, count)
    number = grouped if kind in ("key", "value") else count
    side, length = ("column", shape[1]) if kind == "output" else ("row", shape[0])
    size = 0 if "kv_lora_rank" in own else _number(own, SIZE)  # in latent attention key and value differ in size
    if length % number or (size and length != number * size):
        sized = f" of {size}" if size else ""
        raise OptionError(f"{module} of shape {tuple(shape)} is not {number} heads{sized} by its {side}s; {GIVE}")
    return equal_blocks(side, length, number, kind)  # type: ignore[arg-type]


def _fused(module: str, shape: Shape, config: Config, count: int) -> Blocks:
    """The heads of query, key and value in one matrix, those of the query first."""
    parts = splits(module, shape, config)
    size = parts["query"].count // count if "query" in parts else shape[1] // count
    bounds: list[tuple[int, int]] = []
    names: list[tuple[str, int]] = []
    for part, rows in parts.items():
        length = rows.stop - rows.start
        if not size or length % size or rows.count % size:
            parts = {}
            break
        group = shape[0] // rows.groups
        starts = [of * group + rows.start + at for of in range(rows.groups) for at in range(0, length, size)]
        bounds += [(start, start + size) for start in starts]
        names += [(part, head) for head in range(len(starts))]
    if not parts:
        raise OptionError(
            f"{module} of shape {tuple(shape)} holds query, key and value in an order that is not known of a model of "
            f"type {config.get('model_type')!r:.40}, or is not {count} heads of each; {GIVE}"
        )
    return Blocks("row", bounds, names)


def expert_of(module: str) -> int | None:
    """Return which expert of a layer a module belongs to, ``None`` where it is none's.

    Example:
        >>> expert_of("model.layers.1.mlp.experts.3.down_proj"), expert_of("layers.1.mlp.shared_experts.down_proj")
        (3, None)
    """
    found = _EXPERT.search(module)
    return int(found.group(1)) if found else None


def _own(module: str, config: Config) -> dict[str, Any]:
    """The configuration of the part of a model that a module is in: its text model, a tower, encoder or decoder."""
    modality = next((name for name, pattern in MODALITIES.items() if pattern.search(module)), "")
    first = module.partition(".")[0] if module.startswith(("encoder.", "decoder.")) else ""
    for key in (f"{modality}_config",) if modality else (first, *TEXT):
        if isinstance(config.get(key), Mapping):
            return {**({} if modality else config), **config[key]}
    return dict(config)


def _count(module: str, config: Config) -> int:
    """The query's heads; of a decoder its own where it has some."""
    if stack_of(module) in ("decoder", "cross") and _number(config, ("decoder_attention_heads",)):
        return _number(config, ("decoder_attention_heads",))
    return _number(config, QUERY)


def _grouped(config: Config, count: int) -> int:
    """The heads of key and value."""
    kind, attention = config.get("model_type"), config.get("attn_config")
    shared = kind in FALCON and not config.get("new_decoder_architecture")
    if (shared or kind == "gpt_bigcode") and config.get("multi_query", True):
        return 1
    inner = _number(attention, ("kv_n_heads",)) if isinstance(attention, Mapping) else 0
    return (count if shared else _number(config, GROUPED) or inner) or count


def _number(config: Config, names: tuple[str, ...]) -> int:
    """The first that is there; 0 where none is."""
    return next((int(config[name]) for name in names if type(config.get(name)) is int and config[name] > 0), 0)
