"""Recorded layers: the tensors of a method where one is known, which give W' exactly, else W' itself."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from deltaw.adapters.bitsandbytes import is_quantized
from deltaw.adapters.effective import as_matrix, effective_matrix
from deltaw.adapters.errors import TargetError
from deltaw.adapters.layer import AdaptedLayer
from deltaw.adapters.method import Method, RankedMethod
from deltaw.adapters.modules import is_conv1d, is_convolution, is_peft, kernel_of, linear_modules
from deltaw.adapters.patterns import matching, pattern_list
from deltaw.adapters.peft.live import adapter_of, adapter_tensors
from deltaw.adapters.peft.names import BASE_LAYER
from deltaw.adapters.peft.recorded import PeftMethod, peft_method, peft_state
from deltaw.adapters.sharded import full
from deltaw.analysis.records.foreign.heads import kept_of
from deltaw.analysis.records.run_folder.format import ARCHITECTURE, ModuleEntry
from deltaw.trainers.attention import (
    PeftMatrix,
    adapter_of_matrix,
    attention_matrices,
    base_below,
    in_order,
)
from deltaw.trainers.distributed import whole_parameters
from deltaw.trainers.gathering import INNER, Gathering
from deltaw.trainers.recorded_kernels import known_kernels

# What puts a model into another; the one inside has the names and the weights.
WRAPPERS = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "DeepSpeedEngine": "module",
    "OptimizedModule": "_orig_mod",
    **INNER,
}


@dataclass(frozen=True)
class Layer:
    """A layer, and how it is recorded.

    Arguments:
        module: A linear layer or a convolution: plain, ours, PEFT's, or parametrized; or a matrix of
            ``nn.MultiheadAttention``.
        method: The method whose tensors are recorded; ``None``: W' itself is.
        adapter: PEFT's name for the adapter.
        rewritten: PEFT has changed the weight below it (PiSSA, OLoRA, CorDA): W₀ is W' at the start of the record.
    """

    module: nn.Module
    method: Method | None = None
    adapter: str = ""
    rewritten: bool = False


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside DDP, ``torch.compile`` and their like, whose names are those of the plain model."""
    while type(model).__name__ in WRAPPERS:
        model = getattr(model, WRAPPERS[type(model).__name__])
    return model


def architecture(model: nn.Module) -> dict[str, Any]:
    """Return what a model's configuration says of its attention heads, for the record; nothing where it has none."""
    found = list(_configurations(model))
    kept = kept_of(found[0]) if len(found) == 1 else {}
    return {ARCHITECTURE: kept} if kept else {}


def _configurations(module: nn.Module) -> Iterator[Mapping[str, Any]]:
    """Yield the configurations of the outermost models in a model that have one."""
    config: Any = getattr(module, "config", None)
    plain = config.to_dict() if hasattr(config, "to_dict") else None
    if isinstance(plain, Mapping):
        yield plain
        return
    for child in module.children():
        yield from _configurations(child)


def recorded_layers(model: nn.Module, patterns: Sequence[str] | None, gathering: Gathering) -> dict[str, Layer]:
    """Return by name what the patterns choose; ``None``: our adapters, or else PEFT's, or else all linear layers.

    Raises:
        TargetError: A pattern matches nothing, or only convolutions that are not recorded, or there is no linear layer.
    """
    with gathering.plain():
        named = patterns is not None  # convolutions are recorded where a pattern names them
        linear = {
            name: m
            for name, m in linear_modules(model, kernels=named)
            if not is_peft(m) or _is_linear(m.get_submodule(BASE_LAYER)) or (named and is_convolution(m))
        }
        matrices = dict(attention_matrices(model))
        modules = in_order(model, linear | matrices) if matrices else linear
        if patterns is not None:
            chosen = pattern_list(patterns)
            names = known_kernels({name: modules[name] for name in matching(modules, chosen, "module")}, chosen)
        else:
            names = [name for name, module in modules.items() if isinstance(module, AdaptedLayer)]
            names = names or [name for name, module in modules.items() if _is_of_peft(module)] or list(modules)
        if not names:
            raise TargetError("the model has no linear layer to record")
        found = {}
        for name in names:
            with gathering.whole(modules[name]):  # the shapes of PEFT's tensors are told by them
                found[name] = _layer(model, name, modules[name])
        return found


def method_name(layers: dict[str, Layer]) -> str:
    """Return the name of the layers' method, or their names joined by +."""
    names = {
        "peft" if layer.method is None and _is_of_peft(layer.module) else layer.method.name if layer.method else "ft"
        for layer in layers.values()
    }
    return "+".join(sorted(names))


@torch.no_grad()
def checkpoint_tensors(layer: Layer) -> dict[str, Tensor]:
    """Return the tensors of a layer in a checkpoint; not copies, and perhaps sharded over processes.

    Raises:
        RecordError: A PEFT layer is no longer the one that the record began with.
    """
    module = layer.module
    if isinstance(module, AdaptedLayer):
        module.method.observe(module)
        return module.state()
    if isinstance(layer.method, PeftMethod):
        return peft_state(module, layer.method, layer.adapter, frozen=False)
    if layer.method is not None:
        return adapter_tensors(module, layer.method, layer.adapter)
    return {"weight": _whole(module)}


@torch.no_grad()
def base_and_constants(layer: Layer) -> tuple[Tensor, dict[str, Tensor]]:
    """Return W₀ (out, in), and the tensors of the method that never change."""
    module = layer.module
    if isinstance(module, AdaptedLayer):
        return base_below(module), {key: module.tensor(key) for key in module.constants()}
    if isinstance(layer.method, PeftMethod):
        return base_below(module), peft_state(module, layer.method, layer.adapter, frozen=True)
    if layer.rewritten and isinstance(
        layer.method, RankedMethod
    ):  # W₀ is the residual below and the adapter at its start
        tensors = {key: full(value) for key, value in adapter_tensors(module, layer.method, layer.adapter).items()}
        A, B = tensors["lora_A"], tensors["lora_B"]
        residual = full(base_below(module))
        base = residual.to(A.dtype) + layer.method.scaling * (B @ A)
        return base, {"start_A": A.clone(), "start_B": B.clone()}  # the memory of what is gathered is used again
    if layer.rewritten:
        return _whole(module), {}
    if parametrize.is_parametrized(module, "weight"):
        original = getattr(_parametrization(module), "original", None)
        # One that trains is no base: what it is multiplied with has moved by the start already.
        if not isinstance(original, Tensor) or original.requires_grad:
            return _whole(module), {}
        return as_matrix(module, original.detach()), {}
    return base_below(module), {}


def is_frozen(layer: Layer) -> bool:
    """Whether W₀ can still be read off the layer after training: a plain layer holds what it has become."""
    module = layer.module
    return isinstance(module, AdaptedLayer) or (is_peft(module) and not layer.rewritten)


def module_entry(layer: Layer, base: Tensor) -> ModuleEntry:
    """Return a layer's entry in the manifest.

    Arguments:
        base: Its W₀, as it is stored.
    """
    rows, columns = base.shape
    dtype = str(base.dtype).removeprefix("torch.")
    kernel = kernel_of(layer.module)
    if layer.method is None:
        return ModuleEntry((rows, columns), dtype, kernel=kernel)
    # Through JSON, so that it compares equal to what is read back.
    options = json.loads(json.dumps(layer.method.options()))
    return ModuleEntry((rows, columns), dtype, layer.method.name, options, kernel)


def _is_of_peft(module: nn.Module) -> bool:
    return is_peft(module) or isinstance(module, PeftMatrix)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_conv1d(module) or is_quantized(module)


def _layer(model: nn.Module, name: str, module: nn.Module) -> Layer:
    if isinstance(module, AdaptedLayer):
        return Layer(module, module.method)
    if isinstance(module, PeftMatrix):
        found = adapter_of_matrix(model, name, module)
        return Layer(module, found.method, found.name, found.rewritten)
    if not is_peft(module):
        return Layer(module)
    adapter = adapter_of(model, name)
    if adapter.method is None and not adapter.rewritten and not getattr(module, "merged", False):
        active = list(module.active_adapters)  # type: ignore[arg-type]
        # PEFT's formulas are those of linear layers; of a convolution under LoHa or LoKr W' itself is recorded.
        method = peft_method(model, name, active[0]) if len(active) == 1 and not kernel_of(module) else None
        if method is not None:
            return Layer(module, method, active[0])
    return Layer(module, adapter.method, adapter.name, adapter.rewritten)


def _whole(module: nn.Module) -> Tensor:
    """W' of a layer whose weight has to be computed, or is its own."""
    if parametrize.is_parametrized(module, "weight"):
        with _undisturbed(module):
            # Not through ``module.weight``, which under ``parametrize.cached`` is read from a cache, or put there.
            weight: Tensor = _parametrization(module)().detach()
            return as_matrix(module, weight)
    if is_peft(module):
        with _undisturbed(module):
            return effective_matrix(module)
    return effective_matrix(module)


def _parametrization(module: nn.Module) -> Any:
    return module.get_submodule("parametrizations").get_submodule("weight")


@contextlib.contextmanager
def _undisturbed(module: nn.Module) -> Iterator[None]:
    """Let a layer compute as in evaluation, and leave no trace: in modes, hooks and random numbers."""
    inside = list(module.modules())
    modes = [m.training for m in inside]
    hooks = [(m._forward_hooks, m._forward_pre_hooks) for m in inside]
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    with torch.random.fork_rng([device] if device.type == "cuda" else []), whole_parameters(module):
        try:
            for m in inside:
                m.training = False  # not by ``eval()``, which some layers answer by merging
                m._forward_hooks, m._forward_pre_hooks = type(m._forward_hooks)(), type(m._forward_pre_hooks)()
            yield
        finally:
            for m, mode, (after, before) in zip(inside, modes, hooks, strict=True):
                m.training, m._forward_hooks, m._forward_pre_hooks = mode, after, before
