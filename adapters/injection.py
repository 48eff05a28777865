"""Put a method into a model, and take it out again."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from deltaw.adapters.bitsandbytes import QuantizedLayer, compute_dtype, is_quantized
from deltaw.adapters.checks import public
from deltaw.adapters.constants import share
from deltaw.adapters.errors import NonFiniteError, OptionError, ShapeError, TargetError
from deltaw.adapters.layer import WIDENED, AdaptedLayer
from deltaw.adapters.method import Method, State
from deltaw.adapters.modules import adapted, is_adaptable, is_conv1d, linear_shape, replace_module
from deltaw.adapters.patterns import matching, owners, pattern_list


@public
def inject(
    model: nn.Module,
    method: Method | Mapping[str, Method],
    targets: Sequence[str] | str = (),
    *,
    trainable: Sequence[str] | str = (),
    seed: int = 0,
    context: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """Put ``method`` on every linear layer that a pattern names, in place, and freeze the rest.

    The random start depends on ``seed`` and the order of the modules alone; the global random state is left as it is.
    Full fine-tuning (``METHODS["ft"]()``) checks the patterns, injects nothing and freezes nothing.

    Arguments:
        model: Any model. A layer in 4 bits, from ``quantize`` or transformers' ``BitsAndBytesConfig``, stays in 4 bits.
        method: For example ``BoRA(rank=8, alpha=16)``. Or, where not all modules get the same, patterns with their
            methods, of which the last that fits counts: ``{"*.query": DoRA(rank=8), "*.dense": Magnitude()}``.
        targets: Glob patterns over full module names, ``["*.query", "*.value"]``; none with a mapping.
        trainable: Patterns over module or parameter names that stay trainable, for example ``["classifier*"]``.
        seed: Seed of the method's random start.
        context: For a method that starts from data (CorDA): the covariance (in, in) of the inputs of each module, from
            ``input_covariances``.

    Returns:
        The model.

    Raises:
        TargetError: A pattern matches nothing, or no ``nn.Linear`` or ``Conv1D``; the message lists near names.
        OptionError: The rank does not fit a matrix, or a method that starts from data is given none.
        DataError: A layer is in 4 bits, and bitsandbytes is not installed.

    Example:
        >>> import torch
        >>> from deltaw.adapters import BoRA, adapted, inject
        >>> model = torch.nn.ModuleDict({"query": torch.nn.Linear(6, 4), "head": torch.nn.Linear(4, 2)})
        >>> model = inject(model, BoRA(rank=2, alpha=4), targets=["query"], trainable=["head"], seed=0)
        >>> list(adapted(model))
        ['query']
    """
    if not isinstance(model, nn.Module):
        raise OptionError(f"model must be a torch.nn.Module, not {model!r}")
    modules = dict(model.named_modules())
    chosen = methods_by_module(modules, method, targets, is_adaptable)
    kept = matching({**modules, **dict(model.named_parameters())}, pattern_list(trainable), "trainable", lambda _: True)
    shapes: dict[Method, list[tuple[int, int]]] = {}
    for name, wanted in chosen.items():  # everything is checked before anything is changed
        source = modules[name]
        if isinstance(source, AdaptedLayer):
            raise TargetError(f"{name!r} already carries {source.method.name!r}; call merge(model) first")
        rows, columns = linear_shape(source)
        wanted.check_shape(rows, columns, name)
        if is_quantized(source) and not wanted.injects:
            raise OptionError(f"{wanted.name} cannot train {name!r}, which is in 4 bits; choose a method that injects")
        if wanted.needs_context:
            _check_covariance(wanted, name, columns, context)
        shapes.setdefault(wanted, []).append((rows, columns))
    if not all(wanted.injects for wanted in shapes):
        if len(shapes) > 1:
            raise OptionError("full fine-tuning goes with no other method; pass it alone")
        return model
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point() and owners(name) & set(kept):
            raise TargetError(f"trainable holds {name!r}, which is in 4 bits and cannot be trained; leave it out")

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    shared = {wanted: wanted.shared(of, generator) for wanted, of in shapes.items()}
    layers = {}
    for name, wanted in chosen.items():
        source = modules[name]
        weight = source.get_parameter("weight")
        dtype = compute_dtype(source) if is_quantized(source) else weight.dtype
        given = shared[wanted]
        for key, value in given.items():  # on the first layer's device and in its dtype; then nothing is copied again
            given[key] = value.to(weight.device, WIDENED.get(dtype, dtype))
        if wanted.needs_context and context is not None:
            given = given | {"covariance": context[name]}
        layers[name] = layer_over(source, wanted, generator, given)
    put_in(model, layers)
    for name, parameter in model.named_parameters():
        if owners(name) & set(kept):
            parameter.requires_grad_(True)
    return model


def put_in(model: nn.Module, layers: Mapping[str, AdaptedLayer]) -> None:
    """Put adapted layers in the place of a model's modules; from now on they keep in common what is the same memory."""
    for name, layer in layers.items():
        replace_module(model, name, layer)
    share(layers.values())


def layer_over(
    source: nn.Module,
    method: Method,
    generator: torch.Generator,
    given: State | None = None,
    state: State | None = None,
) -> AdaptedLayer:
    """Return the layer that carries a method over ``source``, which may be in 4 bits; see ``AdaptedLayer``."""
    kind = QuantizedLayer if is_quantized(source) else AdaptedLayer
    return kind(source, method, generator, is_conv1d(source), given, state)


def methods_by_module(
    modules: dict[str, nn.Module],
    method: Method | Mapping[str, Method],
    targets: Sequence[str] | str,
    usable: Callable[[object], bool],
) -> dict[str, Method]:
    """Return the method of every module that is to be adapted, in the model's order; see ``inject``."""
    by_pattern = method if isinstance(method, Mapping) else dict.fromkeys(pattern_list(targets), method)
    for given in [method] if not isinstance(method, Mapping) else method.values():
        if not isinstance(given, Method):
            raise OptionError(f"method must be a method such as LoRA(rank=8), not {given!r}")
    if isinstance(method, Mapping) and targets:
        raise OptionError("targets are the keys of the mapping of methods; leave the argument out")
    if not by_pattern:
        raise TargetError("no target is given; pass glob patterns over module names, as ['*.query', '*.value']")
    found: dict[str, Method] = {}
    for pattern, wanted in by_pattern.items():
        found.update(dict.fromkeys(matching(modules, [pattern], "target", usable), wanted))
    return {name: found[name] for name in modules if name in found}


def _check_covariance(method: Method, name: str, columns: int, context: Mapping[str, Tensor] | None) -> None:
    if context is None or name not in context:
        raise OptionError(
            f"{method.name} starts from data, and there is no covariance for module {name!r}; "
            "pass context=input_covariances(model, targets, batches)"
        )
    shape = tuple(context[name].shape)
    if shape != (columns, columns):
        raise ShapeError(f"the covariance for module {name!r} has shape {shape}, not {(columns, columns)}")
    if not bool(context[name].isfinite().all()):
        raise NonFiniteError(f"the covariance for module {name!r} holds NaN or infinity; look at the batches")


@public
def merge(model: nn.Module) -> nn.Module:
    """Put W' into plain layers of the original class, in the base's dtype, in place.

    A base of lower precision rounds the update; see ``deltaw inspect`` for how much of it survives. A layer in 4 bits
    becomes an ``nn.Linear`` in the dtype it computes in, and is not quantised again: that would round the update away.

    Returns:
        The model, without a trace of the method.
    """
    for name, layer in adapted(model).items():
        replace_module(model, name, _plain(layer))
    return model


def _plain(layer: AdaptedLayer) -> nn.Module:
    weight = layer.effective_weight().to(layer.base_dtype)
    plain: nn.Module
    if layer.transposed:
        from transformers.pytorch_utils import Conv1D

        plain = Conv1D(layer.out_features, layer.in_features)  # type: ignore[no-untyped-call]
        weight = weight.T.contiguous()
    else:
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    plain.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
    plain.register_parameter("bias", layer.bias)
    return plain.train(layer.training)
