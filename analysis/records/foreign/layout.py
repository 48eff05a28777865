"""How a model's stored tensors are the matrices of its layers: which count, and which are turned.

    [in, out]               transformers' Conv1D (GPT-2), and some stacks of experts: turned
    [experts, out, in]      one module an expert, ``….experts.3.down_proj``
    [out, in, k…]           a convolution: the matrix [out, in·k…], a row a filter

``split.py`` has the matrices that hold several.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltaw.analysis.names import is_embedding
from deltaw.analysis.records.source import Shape
from deltaw.analysis.records.storage.tensors import Tensors

if TYPE_CHECKING:
    from torch import Tensor

CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp")
CONV1D = ("c_attn", "c_proj", "c_fc", "q_attn")
TURNED_STACKS = ("gpt_oss", "llama4", "llama4_text")  # experts are [experts, in, out]
FLOATING = ("float64", "float32", "float16", "bfloat16")
KERNELS_COUNT = 0.1  # share of a model's matrices, and of their entries, at which convolutions are layers, as in a UNet


@dataclass(frozen=True)
class StoredMatrix:
    """Where a module's matrix stands: the tensor's name, the expert, whether it is stored as [in, out], its k…."""

    tensor: str
    shape: Shape
    expert: int | None = None
    turned: bool = False
    kernel: tuple[int, ...] = ()

    def read(self, tensors: Tensors) -> Tensor:
        """Return the matrix (out, in)."""
        matrix = tensors.read(self.tensor, self.expert)
        if matrix.ndim > 2:  # a convolution's kernel, a row a filter
            matrix = matrix.flatten(1)
        return matrix.T if self.turned else matrix


def matrices(
    tensors: Tensors, config: Mapping[str, Any], *, everything: bool, kernels: bool | None = None
) -> dict[str, StoredMatrix]:
    """Return the matrices of a model by module name.

    Arguments:
        tensors: The model's.
        config: Its ``config.json``, or nothing.
        everything: Embeddings and output heads too. Vectors and quantised weights never count.
        kernels: The kernels [out, in, k…] of convolutions too, as matrices [out, in·k…]; by default where all are
            asked for, or where they are a tenth of the matrices and of their entries, as in a UNet.
    """
    turned = _conv1d(tensors, config)
    hidden, text = _hidden(config), config.get("text_config")
    stacks_turned = any(c.get("model_type") in TURNED_STACKS for c in (config, text if isinstance(text, dict) else {}))
    found = {}
    for name in tensors.names():
        module = module_name(name)
        if module is None:
            continue
        shape, dtype = tensors.shape(name), tensors.dtype_name(name)
        if len(shape) == 2 and is_embedding(module) and not everything:  # that of patches is a convolution
            continue
        if dtype not in FLOATING or 0 in shape:
            continue
        last = module.rpartition(".")[2]
        if len(shape) == 2:
            flip = turned and last in CONV1D
            found[module] = StoredMatrix(name, (shape[1], shape[0]) if flip else (shape[0], shape[1]), None, flip)
        elif len(shape) == 3 and "expert" in module:
            flip = stacks_turned or _turned_stack(last, shape, hidden)
            sides = (shape[2], shape[1]) if flip else (shape[1], shape[2])
            head = module.removesuffix(last)
            for expert in range(shape[0]):
                found[f"{head}{expert}.{last}"] = StoredMatrix(name, sides, expert, flip)
        elif kernels is not False and 3 <= len(shape) <= 5:
            found[module] = StoredMatrix(name, (shape[0], math.prod(shape[1:])), kernel=shape[2:])
    if kernels is None and not everything:
        own_kernels = [own for own in found.values() if own.kernel]
        entries = [sum(math.prod(own.shape) for own in part) for part in (own_kernels, found.values())]
        if len(own_kernels) < KERNELS_COUNT * len(found) or entries[0] < KERNELS_COUNT * entries[1]:
            return {module: own for module, own in found.items() if not own.kernel}
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
