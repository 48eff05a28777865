"""W' and W₀ of any linear layer and convolution: plain, ours, PEFT's, or parametrized."""

from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from deltaw.adapters.bitsandbytes import dequantized, is_quantized
from deltaw.adapters.checks import public
from deltaw.adapters.errors import ShapeError, TargetError
from deltaw.adapters.layer import AdaptedLayer
from deltaw.adapters.modules import is_conv1d, is_peft, kernel_of
from deltaw.adapters.peft.live import plain_below, weight_of
from deltaw.adapters.peft.names import BASE_LAYER


@public
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
    _refuse_kernel(module)
    return effective_matrix(module)


@torch.no_grad()
def effective_matrix(module: nn.Module) -> Tensor:
    """Return W' as ``effective_weight``, and that of a convolution, [out, in, k…], as the matrix (out, in·k…)."""
    if isinstance(module, AdaptedLayer):
        return module.effective_weight()
    if is_peft(module):
        return weight_of(module, _stored(module.get_submodule(BASE_LAYER)))
    return _stored(module)


@public
@torch.no_grad()
def base_weight(module: nn.Module) -> Tensor:
    """Return W₀ (out, in): the frozen base below an adapter or a parametrization, or a plain layer's own weight.

    Raises:
        TargetError: The module has no such matrix, or its base is gone because a PEFT adapter is merged into it.
    """
    _refuse_kernel(module)
    return base_matrix(module)


@torch.no_grad()
def base_matrix(module: nn.Module) -> Tensor:
    """Return W₀ as ``base_weight``, and that of a convolution, [out, in, k…], as the matrix (out, in·k…)."""
    if isinstance(module, AdaptedLayer):
        return module.base.detach()
    if is_peft(module):
        return _stored(plain_below(module))
    if parametrize.is_parametrized(module, "weight"):
        original = getattr(module.parametrizations.weight, "original", None)  # type: ignore[union-attr]
        if not isinstance(original, Tensor):
            raise TargetError(f"the parametrization of this {type(module).__name__} keeps no single original weight")
        return as_matrix(module, original.detach())
    return _stored(module)


def as_matrix(module: nn.Module, weight: Tensor) -> Tensor:
    """Return a weight as the layer stores it as the matrix (out, in), a view."""
    if kernel_of(module):
        return weight.flatten(1)
    return weight.T if is_conv1d(module) else weight


def _refuse_kernel(module: nn.Module) -> None:
    below = module.get_submodule(BASE_LAYER) if is_peft(module) else module
    if kernel_of(below):
        _refuse_shape(below, below.weight)  # type: ignore[arg-type]


def _refuse_shape(module: nn.Module, weight: Tensor) -> NoReturn:
    raise ShapeError(f"the weight of this {type(module).__name__} has shape {tuple(weight.shape)}, not [out, in]")


def _stored(module: nn.Module) -> Tensor:
    if is_quantized(module):
        return dequantized(module)
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        raise TargetError(f"a {type(module).__name__} has no weight matrix")
    if weight.ndim != 2 and not kernel_of(module):
        _refuse_shape(module, weight)
    return as_matrix(module, weight.detach())
