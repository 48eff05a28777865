"""How a model's stored tensors are the matrices of its layers: which count, which are turned, which hold several.

    [in, out]               transformers' Conv1D (GPT-2), and some stacks of experts: turned
    [experts, out, in]      one module an expert, ``….experts.3.down_proj``
    query, key and value in one matrix, gate and up in one: split by rows, ``….c_attn.query``

A split takes from every group of rows those from start to stop. Where the three stand one below the other there is one
group; GPT-NeoX, BLOOM and Falcon have one group a head: (q, k, v) of the first head, then of the second.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deltaw.adapters.method import Method
from deltaw.analysis.names import is_embedding
from deltaw.analysis.records.source import Shape, Source, State
from deltaw.analysis.records.tensors import Tensors

CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp")
CONV1D = ("c_attn", "c_proj", "c_fc", "q_attn")
TURNED_STACKS = ("gpt_oss", "llama4", "llama4_text")  # experts are [experts, in, out]
BY_HEAD = ("gpt_neox", "gpt_neox_japanese", "bloom", "persimmon")  # (q, k, v) of each head in turn
PLAIN = ("phi3", "phi4_multimodal", "mpt", "modernbert", "modernbert-decoder", "dbrx", "vit", "phi")
FUSED = ("qkv_proj", "query_key_value", "Wqkv", "c_attn", "qkv", "in_proj", "attn_qkv", "to_qkv")
QKV = ("query", "key", "value")


@dataclass(frozen=True)
class Part:
    """Where a module's matrix stands: the tensor's name, the expert, whether it is stored as [in, out]."""

    tensor: str
    shape: Shape
    expert: int | None = None
    turned: bool = False

    def read(self, tensors: Tensors) -> Tensor:
        """Return the matrix (out, in)."""
        matrix = tensors.read(self.tensor, self.expert)
        return matrix.T if self.turned else matrix


@dataclass(frozen=True)
class Rows:
    """Some of a matrix's rows: of each of ``groups`` equal groups those from ``start`` to ``stop``."""

    groups: int
    start: int
    stop: int

    def of(self, matrix: Tensor) -> Tensor:
        """Return the rows, (fewer, in)."""
        rows, columns = matrix.shape
        grouped = matrix.reshape(self.groups, rows // self.groups, columns)
        return grouped[:, self.start : self.stop].reshape(self.count, columns)

    @property
    def count(self) -> int:
        """How many they are."""
        return self.groups * (self.stop - self.start)


def matrices(tensors: Tensors, config: Mapping[str, Any], *, everything: bool) -> dict[str, Part]:
    """Return the matrices of a model by module name.

    Arguments:
        tensors: The model's.
        config: Its ``config.json``, or nothing.
        everything: Embeddings and output heads too. Vectors, convolutions and quantised weights never count.
    """
    turned = _conv1d(tensors, config)
    hidden, text = _hidden(config), config.get("text_config")
    stacks_turned = any(c.get("model_type") in TURNED_STACKS for c in (config, text if isinstance(text, dict) else {}))
    found = {}
    for name in tensors.names():
        module = module_name(name)
        if module is None or (is_embedding(module) and not everything):
            continue
        shape, dtype = tensors.shape(name), tensors.dtype(name)
        if dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16) or 0 in shape:
            continue
        last = module.rpartition(".")[2]
        if len(shape) == 2:
            flip = turned and last in CONV1D
            found[module] = Part(name, (shape[1], shape[0]) if flip else (shape[0], shape[1]), None, flip)
        elif len(shape) == 3 and "expert" in module:
            flip = stacks_turned or _turned_stack(last, shape, hidden)
            sides = (shape[2], shape[1]) if flip else (shape[1], shape[2])
            head = module.removesuffix(last)
            for expert in range(shape[0]):
                found[f"{head}{expert}.{last}"] = Part(name, sides, expert, flip)
    return found


def module_name(tensor: str) -> str | None:
    """Return the module that a tensor is the matrix of, ``None`` for a bias and the like.

    Example:
        >>> module_name("h.0.attn.in_proj_weight"), module_name("h.0.experts.down_proj"), module_name("h.0.bias")
        ('h.0.attn.in_proj', 'h.0.experts.down_proj', None)
    """
    for end in (".weight", "_weight"):
        if tensor.endswith(end) and len(tensor) > len(end):
            return tensor.removesuffix(end)
    parts = tensor.split(".")
    if len(parts) > 1 and "expert" in parts[-2] and not parts[-1].endswith(("bias", "scales", "blocks")):
        return tensor
    return None


def splits(module: str, shape: Shape, config: Mapping[str, Any]) -> dict[str, Rows]:
    """Return the matrices that a fused one holds, by the name's new last part; none where it is not one of the known.

    Arguments:
        module: Its name.
        shape: (out, in).
        config: The model's ``config.json``; the sizes of heads come from it.
    """
    last, (rows, columns), kind = module.rpartition(".")[2], shape, str(config.get("model_type", ""))
    if last == "gate_up_proj" and rows % 2 == 0:
        if kind == "gpt_oss":
            return {"gate": Rows(rows // 2, 0, 1), "up": Rows(rows // 2, 1, 2)}
        return {"gate": Rows(1, 0, rows // 2), "up": Rows(1, rows // 2, rows)}
    if last not in FUSED:
        return {}
    heads, groups, size = _heads(config, columns)
    order: tuple[str, ...] = QKV
    if last == "c_attn" and rows == 2 * columns and "crossattention" in module:
        return {"key": Rows(1, 0, columns), "value": Rows(1, columns, rows)}
    if kind == "codegen":
        blocks, parts, order = 4, [1, 1, 1], ("query", "value", "key")
    elif kind in BY_HEAD:
        blocks, parts = heads, [1, 1, 1]
    elif kind in ("falcon", "RefinedWeb", "RefinedWebModel"):
        if config.get("new_decoder_architecture"):
            blocks, parts = groups, [heads // groups if groups else 0, 1, 1]
        elif config.get("multi_query", True):
            blocks, parts = 1, [heads, 1, 1]
        else:
            blocks, parts = heads, [1, 1, 1]
    elif kind == "gpt_bigcode":
        blocks, parts = (1, [heads, 1, 1]) if config.get("multi_query", True) else (heads, [1, 1, 1])
    elif kind in PLAIN and heads and rows == (heads + 2 * groups) * size:
        blocks, parts = 1, [heads, groups, groups]
    elif rows == 3 * columns and (last in ("c_attn", "in_proj", "qkv", "to_qkv") or kind in PLAIN):
        blocks, parts = 1, [1, 1, 1]
    else:
        return {}
    if not blocks or 0 in parts or rows % (blocks * sum(parts)):
        return {}
    unit = rows // (blocks * sum(parts))
    found, start = {}, 0
    for name, count in zip(order, parts, strict=True):
        found[name] = Rows(blocks, start, start + count * unit)
        start += count * unit
    return {name: found[name] for name in QKV}


class Split(Source):
    """A source whose fused matrices are shown as the several that they are.

    Arguments:
        inner: The source as it was saved.
    """

    def __init__(self, inner: Source) -> None:
        self._inner = inner
        self.where, self.format, self.method = inner.where, inner.format, inner.method
        self.steps, self.info, self.config = inner.steps, inner.info, inner.config
        self._rows: dict[str, tuple[str, Rows | None]] = {}
        self.shapes = {}
        for module, shape in inner.shapes.items():
            parts = splits(module, shape, inner.config)
            for last, rows in parts.items():
                self._rows[f"{module}.{last}"] = module, rows
                self.shapes[f"{module}.{last}"] = (rows.count, shape[1])
            if not parts:
                self._rows[module] = module, None
                self.shapes[module] = shape

    def _of(self, module: str) -> tuple[str, Rows | None]:
        self.check(module)
        return self._rows[module]

    def weight(self, module: str, step: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return W' (out, in) at a step."""
        whole, rows = self._of(module)
        return _some(self._inner.weight(whole, step, dtype), rows)

    @property
    def base_from(self) -> str | None:
        """Where W₀ comes from."""
        return self._inner.base_from

    def base(self, module: str) -> Tensor:
        """Return W₀ (out, in)."""
        whole, rows = self._of(module)
        return _some(self._inner.base(whole), rows)

    def update(self, module: str, step: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return ΔW (out, in)."""
        whole, rows = self._of(module)
        return _some(self._inner.update(whole, step, dtype), rows)

    def factors(self, module: str, step: int, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor] | None:
        """Return U and V of these rows."""
        whole, rows = self._of(module)
        found = self._inner.factors(whole, step, dtype)
        return None if found is None else (_some(found[0], rows), found[1])

    def state(self, module: str, step: int) -> State:
        """Return what was saved of the whole matrix."""
        return self._inner.state(self._of(module)[0], step)

    def method_of(self, module: str) -> Method | None:
        """Return the method where the matrix is shown whole; the tensors of a part are those of several."""
        whole, rows = self._of(module)
        return self._inner.method_of(whole) if rows is None else None

    def label(self, module: str) -> str:
        """Return the method's name."""
        return self._inner.label(self._of(module)[0])

    def rebuilt(self, module: str) -> bool:
        """Return whether W' is computed."""
        return self._inner.rebuilt(self._of(module)[0])

    def rounding(self, module: str, step: int) -> torch.dtype | None:
        """Return the dtype whose rounding stands in the update."""
        return self._inner.rounding(self._of(module)[0], step)

    def scalars(self) -> list[dict[str, float]]:
        """Return what was logged."""
        return self._inner.scalars()

    def verify(self) -> int:
        """Read every file once."""
        return self._inner.verify()


def _some(matrix: Tensor, rows: Rows | None) -> Tensor:
    return matrix if rows is None else rows.of(matrix)


def _conv1d(tensors: Tensors, config: Mapping[str, Any]) -> bool:
    """Whether c_attn and the like are Conv1D: the configuration says so, or a c_attn of n×3n, without one."""
    if "model_type" in config:
        return config["model_type"] in CONV1D_MODELS
    for name in tensors.names():
        if name.endswith("attn.c_attn.weight") and len(shape := tensors.shape(name)) == 2:
            return shape[1] == 3 * shape[0]
    return False


def _turned_stack(last: str, shape: tuple[int, ...], hidden: int | None) -> bool:
    """Whether a stack of experts is [experts, in, out]: seen from which side is the model's width."""
    out, into = shape[1:]
    if last.startswith("down"):
        return into == hidden != out
    return out == hidden != into


def _hidden(config: Mapping[str, Any]) -> int | None:
    text = config.get("text_config")
    for found in (config, text if isinstance(text, dict) else {}):
        for key in ("hidden_size", "n_embd", "d_model"):
            if isinstance(found.get(key), int):
                return int(found[key])
    return None


def _heads(config: Mapping[str, Any], columns: int) -> tuple[int, int, int]:
    """Return the number of heads, of key and value heads, and the size of one; 0 where the configuration lacks them."""

    def number(*keys: str) -> int:
        return next((int(config[key]) for key in keys if type(config.get(key)) is int and config[key] > 0), 0)

    heads = number("num_attention_heads", "n_head", "n_heads", "num_heads")
    attention = config.get("attn_config")
    inner = attention if isinstance(attention, dict) else {}
    groups = number("num_key_value_heads", "num_kv_heads", "n_head_kv")
    if not groups and type(inner.get("kv_n_heads")) is int:
        groups = max(0, int(inner["kv_n_heads"]))
    size = number("head_dim") or (columns // heads if heads else 0)
    return heads, groups or heads, size
