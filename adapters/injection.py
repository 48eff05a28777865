"""Put a method into a model, take it out again, and keep its parameters in a file."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from deltaw.adapters.constants import identity, share
from deltaw.adapters.errors import DataError, NonFiniteError, OptionError, ShapeError, TargetError
from deltaw.adapters.layer import WIDENED, AdaptedLayer
from deltaw.adapters.method import Method, Shape, State
from deltaw.adapters.patterns import matching
from deltaw.adapters.peft.live import is_peft
from deltaw.adapters.peft.names import BASE_LAYER
from deltaw.adapters.quantization import QuantizedLayer, compute_dtype, is_quantized, quantized_shape

FILE_FORMAT = "deltaw-adapters-1"


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
    kept = matching({**modules, **dict(model.named_parameters())}, _patterns(trainable), "trainable", lambda _: True)
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


def owners(name: str) -> set[str]:
    """Return a parameter's name and those of the modules that it is in."""
    return {name} | {name.rsplit(".", k)[0] for k in range(1, name.count(".") + 1)}


def methods_by_module(
    modules: dict[str, nn.Module],
    method: Method | Mapping[str, Method],
    targets: Sequence[str] | str,
    usable: Callable[[object], bool],
) -> dict[str, Method]:
    """Return the method of every module that is to be adapted, in the model's order; see ``inject``."""
    by_pattern = method if isinstance(method, Mapping) else dict.fromkeys(_patterns(targets), method)
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


def adapted(model: nn.Module) -> dict[str, AdaptedLayer]:
    """Return the adapted layers of a model by module name, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, AdaptedLayer)}


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


def save_adapters(model: nn.Module, path: str | Path) -> None:
    """Write the methods' tensors and options to one safetensors file.

    Raises:
        TargetError: The model has no adapted layer.
    """
    layers = adapted(model)
    if not layers:
        raise TargetError("the model has no adapted layer to save; call inject(model, method, targets) first")
    tensors: dict[str, Tensor] = {}
    methods: dict[str, Any] = {}
    for name, layer in layers.items():
        layer.method.observe(layer)
        methods[name] = {"method": layer.method.name, "options": layer.method.options()}
        tensors |= {f"{name}.{key}": value.detach() for key, value in layer.state().items()}
    same = repeated(tensors)
    copies = {name: value.to("cpu", copy=True).contiguous() for name, value in tensors.items() if name not in same}
    header = {"format": FILE_FORMAT, "methods": json.dumps(methods), "same": json.dumps(same)}
    save_file(copies, str(path), metadata=header)


def repeated(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return, for every tensor that is the very same memory as an earlier one, that one's name."""
    first: dict[Any, str] = {}
    return {
        name: first[identity(value)]
        for name, value in tensors.items()
        if first.setdefault(identity(value), name) != name and value.numel()
    }


def load_adapters(model: nn.Module, path: str | Path) -> nn.Module:
    """Read what ``save_adapters`` wrote into a model that is injected in the same way, or that is plain.

    A plain model is injected first, as the file says; everything else in it is then frozen.

    Raises:
        DataError: The file is not such a file.
        TargetError: The model lacks a layer that the file has.
        ShapeError: A tensor does not fit.
    """
    from deltaw.adapters.methods.registry import create

    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            # Copied into memory of torch's own: the file's is aligned as the header's length has it, and with another
            # alignment some processors' kernels sum in another order.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read as a safetensors file ({error})") from None
    if header.get("format") != FILE_FORMAT:
        raise DataError(f"{path}: is no file of save_adapters (its format is {header.get('format')!r})")
    try:
        methods = {
            name: (entry["method"], dict(entry["options"])) for name, entry in json.loads(header["methods"]).items()
        }
        tensors |= {key: tensors[kept] for key, kept in json.loads(header.get("same", "{}")).items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: its header is damaged ({type(error).__name__}: {error})") from None
    if not adapted(model):
        layers = {}  # all of them before the first is put in: an error leaves the model as it is
        for name, (key, options) in methods.items():
            plain = find_module(model, name, str(path))
            method = create(key, **options)
            rows, columns = linear_shape(plain)
            method.check_shape(rows, columns, name)
            wanted = method.shapes(rows, columns) | method.frozen_shapes(rows, columns)
            state = fitting_tensors(tensors, name, wanted, str(path))
            layers[name] = layer_over(plain, method, torch.Generator(), state=state)
        put_in(model, layers)
        own = {id(layer.tensor(k)) for layer in adapted(model).values() for k in layer._trainable}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in own)
    layers = adapted(model)
    for name, (key, options) in methods.items():
        if name not in layers:
            raise TargetError(f"{path}: has {name!r}, which is not adapted in this model")
        layer = layers[name]
        if (layer.method.name, layer.method.options()) != (key, options):
            raise OptionError(f"{path}: {name!r} was saved as {key} with {options}, but the model has {layer.method!r}")
        shapes = {key: tuple(value.shape) for key, value in layer.state().items()}
        state = fitting_tensors(tensors, name, shapes, str(path))
        layer.load_state_dict({**layer.state_dict(), **state})
    return model


def fitting_tensors(tensors: dict[str, Tensor], name: str, shapes: Mapping[str, Shape], path: str) -> dict[str, Tensor]:
    """Return a module's tensors, each in the shape that the model has for it."""
    state = {}
    for key, shape in shapes.items():
        value = tensors.get(f"{name}.{key}")
        if value is None or tuple(value.shape) != shape:
            found = "nothing" if value is None else tuple(value.shape)
            raise ShapeError(f"{path}: {name}.{key} has shape {found}, the model's has {shape}")
        state[key] = value
    return state


def _patterns(patterns: Sequence[str] | str) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns)


def is_conv1d(module: object) -> bool:
    """Whether it is transformers' Conv1D, told by its name and its place, so that transformers need not be there."""
    # FSDP2 makes a class of its own from it, so its bases are asked as well.
    kinds = type(module).__mro__
    return any(kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers") for kind in kinds)


def is_adaptable(module: object) -> bool:
    """Whether a method can go on it, or is on it."""
    return type(module) is nn.Linear or isinstance(module, AdaptedLayer) or is_conv1d(module) or is_quantized(module)


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """Return (out, in) of a linear layer."""
    module = module.get_submodule(BASE_LAYER) if is_peft(module) else module
    if is_quantized(module):
        return quantized_shape(module)
    rows, columns = module.get_parameter("weight").shape
    return (columns, rows) if is_conv1d(module) else (rows, columns)


def find_module(model: nn.Module, name: str, where: str) -> nn.Module:
    """Return a module by its name, or raise a TargetError that says what has the name."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise TargetError(f"{where}: has {name!r}, which the model has not") from None


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put another module in a module's place."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


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


def linear_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the names and modules of all linear layers: plain, ours, and PEFT's (without the parts inside)."""
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name.startswith(inside):
            continue
        if is_peft(module):
            inside += (name + ".",)
            yield name, module
        elif isinstance(module, (nn.Linear, AdaptedLayer)) or is_conv1d(module):
            yield name, module
