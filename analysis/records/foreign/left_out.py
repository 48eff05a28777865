"""What of a whole model is not shown, by sort, and what share of its update that holds."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from typing import TYPE_CHECKING

from deltaw.analysis.names import is_embedding
from deltaw.analysis.records.foreign.layout import FLOATING, module_name
from deltaw.analysis.records.source import LeftOut
from deltaw.analysis.records.storage.tensors import Tensors

if TYPE_CHECKING:
    from torch import Tensor

NORMS = re.compile(
    r"(?:^|[._])(?:layer|batch|group|rms|q_|k_)?(?:norm|ln|layernorm|groupnorm)[\w]*(?:\.|$)", re.IGNORECASE
)
SHOWN = "shown"
AT_ONCE = 1 << 22  # entries that are widened at once


def left_out(
    tensors: Tensors, shown: Collection[str], base: Tensors | None, prefixes: tuple[str, str]
) -> list[LeftOut]:
    """Return what of a model is not shown, by sort, in the files' order.

    Arguments:
        tensors: The model's.
        shown: The names of the tensors that are.
        base: W₀'s, or ``None``: then no share is known. All tensors of both are read.
        prefixes: What the model's names begin with, and what W₀'s have in its place.
    """
    found: dict[str, LeftOut] = {}
    squares: dict[str, float] = {}
    for name in tensors.names():
        if tensors.dtype_name(name) not in FLOATING:
            continue
        sort = SHOWN if name in shown else sort_of(name, tensors.shape(name))
        own = found.setdefault(sort, LeftOut(sort))
        own.tensors.append(name)
        own.entries += math.prod(tensors.shape(name))
        if base is None:
            continue
        there = prefixes[1] + name.removeprefix(prefixes[0]) if name.startswith(prefixes[0]) else name
        if there in base.names() and base.shape(there) == tensors.shape(name):
            squares[sort] = squares.get(sort, 0.0) + _squared(tensors.read(name), base.read(there))
        else:
            own.unknown += 1
    total = sum(squares.values())
    found.pop(SHOWN, None)
    for sort, own in found.items():
        if base is not None and own.unknown < len(own.tensors):
            own.share = squares[sort] / total if total else 0.0
    return list(found.values())


def sort_of(name: str, shape: tuple[int, ...]) -> str:
    """Return the sort of a tensor.

    Example:
        >>> sort_of("conv_in.weight", (320, 4, 3, 3)), sort_of("model.embed_tokens.weight", (40, 16))
        ('convolutions', 'embeddings and heads')
        >>> sort_of("h.0.ln_1.bias", (8,)), sort_of("h.0.attn.c_attn.bias", (24,)), sort_of("logit_scale", ())
        ('norms', 'biases', 'other vectors')
    """
    if len(shape) < 2:
        if NORMS.search(name):
            return "norms"
        return "biases" if name.endswith("bias") else "other vectors"
    module = module_name(name)
    if module is not None and len(shape) > 2:
        return "convolutions"
    return "embeddings and heads" if is_embedding(module or name) else "other matrices"


def _squared(after: Tensor, before: Tensor) -> float:
    """‖after − before‖², summed on one thread, so that it is the same for any number of them."""
    import numpy as np  # names and sizes need none

    total, one, other = 0.0, after.reshape(-1), before.reshape(-1)
    for start in range(0, len(one), AT_ONCE):
        a, b = (part[start : start + AT_ONCE].double().numpy() for part in (one, other))
        total += float(np.square(a - b).sum())
    return total


def prefixes_of(one: str, other: str) -> tuple[str, str]:
    """Return what two names of one tensor begin with before they agree, whole parts.

    Example:
        >>> prefixes_of("bert.encoder.layer.0.q.weight", "encoder.layer.0.q.weight")
        ('bert.', '')
    """
    a, b = one.split("."), other.split(".")
    same = 0
    while same < min(len(a), len(b)) and a[-1 - same] == b[-1 - same]:
        same += 1
    heads = (".".join(part[: len(part) - same]) for part in (a, b))
    first, second = (f"{head}." if head else "" for head in heads)
    return first, second
