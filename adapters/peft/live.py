"""PEFT's layers in a living model: which they are, what the active adapter holds, and W' of them.

They are told by their classes, so PEFT need not be there. ``effective.py`` calls this file, so it stands below that: it
imports methods, and of PEFT's room the names alone.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deltaw.adapters.errors import RecordError, TargetError
from deltaw.adapters.layer import WIDENED
from deltaw.adapters.method import Method
from deltaw.adapters.methods.dora import DoRA
from deltaw.adapters.methods.lora import LoRA
from deltaw.adapters.methods.pissa import PiSSA
from deltaw.adapters.modules import kernel_of
from deltaw.adapters.peft.names import BASE_LAYER, LEAVES_THE_BASE


@dataclass(frozen=True)
class Adapter:
    """The active adapter of a PEFT layer, as far as it is one of our methods.

    Arguments:
        method: The method; ``None`` where only W' tells what the layer does.
        name: PEFT's name for the adapter.
        rewritten: Whether PEFT has changed the weight below it at the start (PiSSA, OLoRA, CorDA).
    """

    method: Method | None = None
    name: str = ""
    rewritten: bool = False


def plain_below(module: nn.Module) -> nn.Module:
    """Return the layer that a PEFT layer stands over.

    Raises:
        TargetError: An adapter is merged into it, so that it no longer holds W₀.
    """
    if getattr(module, "merged", False):
        raise TargetError("this PEFT layer is merged into its base; call model.unmerge_adapter() first")
    return module.get_submodule(BASE_LAYER)


def adapter_of(model: nn.Module, name: str) -> Adapter:
    """Return the active adapter of a PEFT layer, by its name in the model."""
    layer: Any = model.get_submodule(name)
    names = list(layer.active_adapters)
    rewritten = any(_start(model, name, adapter) not in LEAVES_THE_BASE for adapter in names)
    # By all its classes: FSDP2 derives one of its own from each.
    lora = any(c.__module__.startswith("peft.tuners.lora.") for c in type(layer).__mro__)
    if len(names) != 1 or not lora or names[0] not in layer.lora_A:
        return Adapter(rewritten=rewritten)
    adapter = names[0]
    rank, alpha, scaling = layer.r[adapter], layer.lora_alpha[adapter], layer.scaling[adapter]
    dora, stabilized = bool(layer.use_dora.get(adapter)), bool(layer.use_rslora.get(adapter))
    if (adapter in layer.lora_variant and not dora) or (rewritten and dora):
        return Adapter(rewritten=rewritten)
    method: LoRA | DoRA | PiSSA
    if rewritten:
        method = PiSSA(rank=rank, alpha=scaling * rank)
    elif dora:
        method = DoRA(axis="row", rank=rank, alpha=alpha, rank_stabilized=stabilized)
    else:
        method = LoRA(rank=rank, alpha=alpha, rank_stabilized=stabilized)
    if method.scaling != scaling:  # set by hand
        return Adapter(rewritten=rewritten)
    return Adapter(method, adapter, rewritten)


def adapter_tensors(layer: Any, method: Method, adapter: str) -> dict[str, Tensor]:
    """Return the tensors of an adapter under the names of our method, widened; no digit is lost.

    Those of a convolution, A [r, in, k…], B [out, r, 1…] and m [1, out, 1…], are as those of the matrix (out, in·k…).

    Raises:
        RecordError: Its scaling is no longer that of the method.
    """
    if layer.scaling[adapter] != getattr(method, "scaling", None):
        raise RecordError(f"the scaling of PEFT's adapter {adapter!r} was changed; start another record")
    tensors = {"lora_A": layer.lora_A[adapter].weight, "lora_B": layer.lora_B[adapter].weight}
    if kernel_of(layer):
        tensors = {key: value.flatten(1) for key, value in tensors.items()}
    if isinstance(method, DoRA):
        tensors["magnitude"] = layer.lora_magnitude_vector[adapter].weight.flatten()
    # Widened, as W' is computed from them.
    return {key: value.detach().to(WIDENED.get(value.dtype, value.dtype)) for key, value in tensors.items()}


def weight_of(layer: Any, base: Tensor) -> Tensor:
    """Return W' (out, in) from the factors of LoRA and DoRA, else from the layer's own forward.

    Arguments:
        layer: A PEFT layer over a linear one, or over a convolution.
        base: What the layer below holds, (out, in), or (out, in·k…).

    Raises:
        TargetError: A convolution's adapter is neither LoRA, DoRA, LoHa nor LoKr.
    """
    if layer.merged or layer.disable_adapters:
        return base
    wide = base.to(WIDENED.get(base.dtype, base.dtype))
    dora, variants = getattr(layer, "use_dora", {}), getattr(layer, "lora_variant", {})
    active = list(layer.active_adapters)
    pairs = getattr(layer, "lora_A", {})  # AdaLoRA's are parameters, and it has singular values between them
    if not all(
        name in pairs and isinstance(pairs[name], nn.Module) and (name not in variants or dora.get(name))
        for name in active
    ):
        return _added(layer, wide) if kernel_of(layer) else _probed(layer, wide)
    result = wide
    for name in active:
        A, B = (pair[name].weight.to(wide.dtype) for pair in (layer.lora_A, layer.lora_B))
        if kernel_of(layer):
            A, B = A.flatten(1), B.flatten(1)
        update = layer.scaling[name] * (B @ A)
        if dora.get(name):
            V = wide + update
            magnitude = layer.lora_magnitude_vector[name].weight.to(wide.dtype).flatten()
            update = V * (magnitude / torch.linalg.vector_norm(V, dim=1))[:, None] - wide
        result = result + update
    return result


def adds_a_kernel(layer: nn.Module) -> bool:
    """Whether what the layer adds to a convolution's kernel can be asked for: LoRA, DoRA, LoHa or LoKr."""
    of = {c.__module__ for c in type(layer).__mro__}
    if "peft.tuners.lora.layer" not in of:
        return "peft.tuners.lycoris_utils" in of
    dora, variants = getattr(layer, "use_dora", {}), getattr(layer, "lora_variant", {})
    return all(dora.get(name) for name in variants)


def _added(layer: Any, weight: Tensor) -> Tensor:
    """W' of a convolution under LoHa or LoKr, which give ΔW in the kernel's shape."""
    if not adds_a_kernel(layer):
        raise TargetError(f"what a {type(layer).__module__}.{type(layer).__name__} makes of a convolution is not known")
    for name in layer.active_adapters:
        if name in layer._available_adapters:
            weight = weight + layer.get_delta_weight(name).detach().to(weight.dtype).flatten(1)
    return weight


def _probed(layer: nn.Module, weight: Tensor) -> Tensor:
    """W' column by column: what the layer makes of the identity, less what it makes of zero."""
    training = layer.training
    try:
        layer.eval()
        identity = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        result: Tensor = (layer(identity) - layer(torch.zeros_like(identity[:1]))).T
    finally:
        layer.train(training)
    return result.detach()


def _start(model: nn.Module, name: str, adapter: str) -> Any:
    """``init_lora_weights`` from the configuration that stands on a module above."""
    parts = name.split(".")
    for k in range(len(parts) - 1, -1, -1):
        configs = getattr(model.get_submodule(".".join(parts[:k])), "peft_config", None)
        if isinstance(configs, dict) and adapter in configs:
            return getattr(configs[adapter], "init_lora_weights", True)
    return True
