"""W' and W₀ of any linear layer: plain, ours, PEFT's, or parametrized."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from deltaw.adapters.errors import ShapeError, TargetError
from deltaw.adapters.injection import is_conv1d, is_peft
from deltaw.adapters.layer import WIDENED, AdaptedLayer
from deltaw.adapters.quantization import dequantized, is_quantized


@torch.no_grad()
def effective_weight(module: nn.Module) -> Tensor:
    """Return W' (out, in), the matrix that the layer multiplies with outside training.

    Arguments:
        module: ``nn.Linear``, ``Conv1D``, an adapted layer, a PEFT layer over a linear layer, or a layer whose
            ``weight`` is under ``torch.nn.utils.parametrize``. A PEFT layer of a kind that is not LoRA or DoRA is asked
            for its own forward of the identity, which is exact up to that forward's rounding.

    Returns:
        W', detached; a plain layer's is its own storage, not a copy. A layer in 4 bits is dequantised.

    Raises:
        TargetError: The module has no such matrix.
    """
    if isinstance(module, AdaptedLayer):
        return module.effective_weight()
    if is_peft(module):
        return _peft_weight(module)
    return _stored(module)


@torch.no_grad()
def base_weight(module: nn.Module) -> Tensor:
    """Return W₀ (out, in): the frozen base below an adapter or a parametrization, or a plain layer's own weight.

    Raises:
        TargetError: The module has no such matrix, or its base is gone because a PEFT adapter is merged into it.
    """
    if isinstance(module, AdaptedLayer):
        return module.base.detach()
    if is_peft(module):
        if getattr(module, "merged", False):
            raise TargetError("this PEFT layer is merged into its base; call model.unmerge_adapter() first")
        return _stored(module.get_submodule("base_layer"))
    if parametrize.is_parametrized(module, "weight"):
        original = getattr(module.parametrizations.weight, "original", None)  # type: ignore[union-attr]
        if not isinstance(original, Tensor):
            raise TargetError(f"the parametrization of this {type(module).__name__} keeps no single original weight")
        return original.detach()
    return _stored(module)


def _stored(module: nn.Module) -> Tensor:
    if is_quantized(module):
        return dequantized(module)
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        raise TargetError(f"a {type(module).__name__} has no weight matrix")
    if weight.ndim != 2:
        raise ShapeError(f"the weight of this {type(module).__name__} has shape {tuple(weight.shape)}, not [out, in]")
    return weight.detach().T if is_conv1d(module) else weight.detach()


def _peft_weight(layer: Any) -> Tensor:
    """W' of a PEFT layer from its factors (LoRA, DoRA), else from its forward."""
    weight = _stored(layer.base_layer)
    if layer.merged or layer.disable_adapters:
        return weight
    wide = weight.to(WIDENED.get(weight.dtype, weight.dtype))
    dora = getattr(layer, "use_dora", {})
    variants = getattr(layer, "lora_variant", {})
    active = list(layer.active_adapters)
    pairs = getattr(layer, "lora_A", {})  # AdaLoRA's are parameters, and it has singular values between them
    if not all(
        name in pairs and isinstance(pairs[name], nn.Module) and (name not in variants or dora.get(name))
        for name in active
    ):
        return _probe(layer, wide)
    result = wide
    for name in active:
        A, B = layer.lora_A[name].weight.to(wide.dtype), layer.lora_B[name].weight.to(wide.dtype)
        update = layer.scaling[name] * (B @ A)
        if dora.get(name):
            V = wide + update
            magnitude = layer.lora_magnitude_vector[name].weight.to(wide.dtype)
            update = V * (magnitude / torch.linalg.vector_norm(V, dim=1))[:, None] - wide
        result = result + update
    return result


def _probe(module: nn.Module, weight: Tensor) -> Tensor:
    """W' column by column: what the layer makes of the identity, less what it makes of zero."""
    training = module.training
    try:
        module.eval()
        identity = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        result: Tensor = (module(identity) - module(torch.zeros_like(identity[:1]))).T
    finally:
        module.train(training)
    return result.detach()
