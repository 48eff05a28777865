"""The matrices in ``nn.MultiheadAttention`` that are no linear layers, made into layers that can be recorded.

PyTorch's attention holds query, key and value as one parameter, ``in_proj_weight`` (3·out, in), or as three where their
inputs differ in size. PEFT's LoRA on it has a pair for ``in_proj_weight`` and one for ``out_proj``, whose update its
forward and its merge add twice (PEFT 0.21, ``tuners/lora/layer.py``: by hand, and again by ``out_proj.merge``).
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from deltaw.adapters.effective import base_matrix
from deltaw.adapters.errors import TargetError
from deltaw.adapters.layer import WIDENED
from deltaw.adapters.methods.lora import LoRA
from deltaw.adapters.modules import is_peft
from deltaw.adapters.peft.live import Adapter, adapter_of, plain_below
from deltaw.adapters.peft.names import BASE_LAYER, IN_PROJ, OUT_PROJ
from deltaw.adapters.sharded import full

TWICE = 2  # so often PEFT's layer adds the update of out_proj
APART = ("q_proj", "k_proj", "v_proj")


class AttentionMatrix(nn.Module):
    """A matrix of an attention, as a layer with a weight; looks it up each time, as it may be put anew.

    Arguments:
        attention: The ``nn.MultiheadAttention``, or PEFT's layer over one.
        parameter: The name of the matrix in the former.
    """

    def __init__(self, attention: nn.Module, parameter: str) -> None:
        super().__init__()
        self.attention, self.parameter = attention, parameter

    @property
    def weight(self) -> Tensor:
        """W' (out, in)."""
        found: Tensor = getattr(self.attention, self.parameter)
        return found


class PeftMatrix(AttentionMatrix):
    """A matrix of an attention under PEFT's LoRA, with the names by which a LoRA layer of PEFT's is read.

    Arguments:
        attention, parameter: As above.
    """

    @property
    def _pairs(self) -> Any:
        """What has the pairs A and B."""
        if self.parameter != OUT_PROJ:
            return self.attention
        return self.attention.get_submodule(f"{BASE_LAYER}.{OUT_PROJ}")

    @property
    def lora_A(self) -> Any:  # noqa: N802 - PEFT's name
        """A by adapter."""
        return self._pairs.lora_A

    @property
    def lora_B(self) -> Any:  # noqa: N802 - PEFT's name
        """B by adapter."""
        return self._pairs.lora_B

    @property
    def scaling(self) -> dict[str, float]:
        """What B A is multiplied with in W', by adapter."""
        times = TWICE if self.parameter == OUT_PROJ else 1
        return {name: times * value for name, value in self._pairs.scaling.items()}

    @property
    def merged(self) -> bool:
        """Whether an adapter is merged into the weights below."""
        return bool(self.attention.merged)

    @property
    def stored(self) -> Tensor:
        """What is held below the adapter (out, in): W₀, or W' while it is merged."""
        found: Any = self._pairs.get_submodule(BASE_LAYER)
        return found.weight if self.parameter == OUT_PROJ else getattr(found, self.parameter)  # type: ignore[no-any-return]

    def base(self) -> Tensor:
        """Return W₀ (out, in).

        Raises:
            TargetError: An adapter is merged into it.
        """
        plain_below(self.attention)
        return self.stored.detach()

    @property
    def weight(self) -> Tensor:
        """W' (out, in), W₀ + Σ s·B A over the active adapters, with s twice PEFT's for ``out_proj``."""
        result = full(self.stored.detach())
        if self.merged or self._pairs.disable_adapters:
            return result
        result = result.to(WIDENED.get(result.dtype, result.dtype))
        for name in self._pairs.active_adapters:
            if name in self.lora_A:
                A, B = (full(of[name].weight.detach()).to(result.dtype) for of in (self.lora_A, self.lora_B))
                result = result + self.scaling[name] * (B @ A)
        return result


def attention_matrices(model: nn.Module) -> Iterator[tuple[str, AttentionMatrix]]:
    """Yield the matrices by name that are no linear layers of the model: of PEFT's attentions ``out_proj`` as well.

    Example:
        >>> [name for name, _ in attention_matrices(nn.ModuleDict({"attn": nn.MultiheadAttention(4, 2)}))]
        ['attn.in_proj']
    """
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name.startswith(inside):
            continue
        start = f"{name}." if name else ""
        if is_peft(module):
            inside += (start,)
            if isinstance(module.get_submodule(BASE_LAYER), nn.MultiheadAttention):
                yield f"{start}{IN_PROJ}", PeftMatrix(module, f"{IN_PROJ}_weight")
                yield f"{start}{OUT_PROJ}", PeftMatrix(module, OUT_PROJ)
        elif isinstance(module, nn.MultiheadAttention) and not hasattr(module, "linear_Q"):  # torch.ao's has layers
            for own in (IN_PROJ,) if module._qkv_same_embed_dim else APART:
                yield f"{start}{own}", AttentionMatrix(module, f"{own}_weight")


def in_order(model: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the modules in the model's order, an attention's own matrices at its place."""
    places = {name: place for place, (name, _) in enumerate(model.named_modules())}
    return dict(sorted(modules.items(), key=lambda of: places.get(of[0], places.get(of[0].rpartition(".")[0], 0))))


def adapter_of_matrix(model: nn.Module, name: str, matrix: PeftMatrix) -> Adapter:
    """Return the active adapter of an attention's matrix, with the scaling that W' has.

    There is none to record where the weights below have 16 bits: PEFT adds the update to them before each forward and
    takes it out again, and the rounding of that moves them. Then W' itself is what tells the model.

    Raises:
        TargetError: It is a variant of LoRA of which PEFT tells no W'.
    """
    attention = name.rpartition(".")[0]
    place = attention if matrix.parameter != OUT_PROJ else f"{attention}.{BASE_LAYER}.{OUT_PROJ}"
    pairs: Any = model.get_submodule(place)
    if any(name in pairs.lora_variant for name in pairs.active_adapters):
        raise TargetError(
            f"{name!r} is a variant of LoRA on nn.MultiheadAttention, which is not recorded; leave it out by modules="
        )
    found = adapter_of(model, place)
    if not isinstance(found.method, LoRA) or found.rewritten or matrix.stored.dtype in (torch.float16, torch.bfloat16):
        return Adapter(rewritten=found.rewritten)
    method, alpha = found.method, found.method.alpha
    if matrix.parameter == OUT_PROJ and alpha is not None:  # PEFT always has one
        method = replace(method, alpha=TWICE * alpha)
    return Adapter(method, found.name)


def base_below(module: nn.Module) -> Tensor:
    """Return W₀ (out, in) of whatever is recorded, as ``base_matrix``."""
    return module.base() if isinstance(module, PeftMatrix) else base_matrix(module)
