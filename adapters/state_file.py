"""The adapters of a model in one file: their tensors and options."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from deltaw.adapters.checks import public
from deltaw.adapters.constants import identity
from deltaw.adapters.errors import DataError, NonFiniteError, OptionError, ShapeError, TargetError
from deltaw.adapters.injection import layer_over, put_in
from deltaw.adapters.layer import AdaptedLayer
from deltaw.adapters.method import Method, Shape
from deltaw.adapters.methods.registry import create
from deltaw.adapters.modules import adapted, find_module, is_adaptable, linear_shape, replace_module
from deltaw.adapters.small_files import bounded_json, regular_file

FILE_FORMAT = "deltaw-adapters-1"


@public
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


@public
def load_adapters(model: nn.Module, path: str | Path) -> nn.Module:
    """Read what ``save_adapters`` wrote into a model that is injected in the same way, or that is plain.

    A plain model is injected first, as the file says; everything else in it is then frozen. All is checked before the
    model is touched: an error leaves it as it was.

    Raises:
        DataError: The file is not such a file, or is damaged.
        OptionError: A method is unknown, an option is none of its, or the model was injected in another way.
        TargetError: The model lacks a layer that the file has.
        ShapeError: A tensor does not fit.
        NonFiniteError: A tensor holds NaN or infinity.
    """
    methods, tensors = _read(Path(path))
    trains = {parameter: parameter.requires_grad for parameter in model.parameters()}
    modules = {name: module for name, module in model.named_modules() if name in methods and name}
    try:
        return _loaded(model, methods, tensors, str(path))
    except BaseException:
        for name, module in modules.items():
            replace_module(model, name, module)
        for parameter, on in trains.items():  # a layer that is made freezes what it is made over
            parameter.requires_grad_(on)
        raise


def _loaded(model: nn.Module, methods: Mapping[str, Method], tensors: dict[str, Tensor], path: str) -> nn.Module:
    layers = adapted(model)
    plain = not layers
    if plain:
        layers = {name: _layer(model, name, method, tensors, path) for name, method in methods.items()}
    states = {}
    for name, method in methods.items():
        if name not in layers:
            raise TargetError(f"{path}: has {name!r:.200}, which is not adapted in this model")
        layer = layers[name]
        if (layer.method.name, layer.method.options()) != (method.name, method.options()):
            raise OptionError(f"{path}: {name!r:.200} was saved as {method!r}, but the model has {layer.method!r}")
        there = layer.state()
        states[name] = fitting_tensors(tensors, name, {key: tuple(v.shape) for key, v in there.items()}, path)
        for key, value in states[name].items():
            if value.is_floating_point() != there[key].is_floating_point() or value.is_complex():
                raise DataError(f"{path}: {name:.200}.{key} is in {value.dtype}, the model's is in {there[key].dtype}")
    if plain:
        put_in(model, layers)
        own = {id(layer.tensor(k)) for layer in adapted(model).values() for k in layer._trainable}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in own)
    for name, state in states.items():
        layers[name].load_state_dict({**layers[name].state_dict(), **state})
    return model


def _read(path: Path) -> tuple[dict[str, Method], dict[str, Tensor]]:
    """The methods of a file by module, and its tensors, each under all its names."""
    try:
        with regular_file(path), safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            # Copied into memory of torch's own: the file's is aligned as the header's length has it, and with another
            # alignment some processors' kernels sum in another order.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError, AttributeError, RuntimeError) as error:
        raise DataError(f"{path}: cannot be read as a safetensors file ({error})") from None
    if header.get("format") != FILE_FORMAT:
        raise DataError(f"{path}: is no file of save_adapters (its format is {header.get('format')!r:.60})")
    try:
        entries = bounded_json(header["methods"].encode(), unique=True)
        same = bounded_json(header.get("same", "{}").encode(), unique=True)
        options = {name: (entry["method"], dict(entry["options"])) for name, entry in entries.items()}
        tensors |= {key: tensors[kept] for key, kept in same.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: its header is damaged ({type(error).__name__}: {error!s:.200})") from None
    for key, value in tensors.items():
        if value.is_floating_point() and not bool(value.float().isfinite().all()):
            raise NonFiniteError(f"{path}: {key!r:.200} holds NaN or infinity; its training failed")
    return {name: _method(name, key, given, str(path)) for name, (key, given) in options.items()}, tensors


def _method(name: str, key: Any, options: dict[str, Any], path: str) -> Method:
    """The method that a file names for a module."""
    try:
        if not isinstance(key, str):
            raise TypeError(f"the method is a {type(key).__name__}")
        method = create(key, **options)
        same = (method.name, method.options()) == (key, options)
    except OptionError as error:
        raise OptionError(f"{path}: {name:.200}: {error}") from None
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise DataError(f"{path}: {name:.200} has options that no method takes ({error!s:.200})") from None
    if not same or not method.injects:
        raise DataError(f"{path}: {name:.200} has the method {key:.60} with {options!r:.200}, which no layer has")
    return method


def _layer(model: nn.Module, name: str, method: Method, tensors: dict[str, Tensor], path: str) -> AdaptedLayer:
    """The layer that is to take the place of a plain model's module."""
    plain = find_module(model, name, path)
    if not name or not is_adaptable(plain):
        raise TargetError(f"{path}: has {name!r:.200}, which is a {type(plain).__name__} in this model")
    rows, columns = linear_shape(plain)
    method.check_shape(rows, columns, name)
    wanted = method.shapes(rows, columns) | method.frozen_shapes(rows, columns)
    state = fitting_tensors(tensors, name, wanted, path)
    try:
        return layer_over(plain, method, torch.Generator(), state=state)
    except (RuntimeError, TypeError) as error:  # torch, of tensors in whole numbers where real ones are trained
        raise DataError(f"{path}: {name:.200} cannot be made of its tensors ({error!s:.200})") from None


def repeated(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return, for every tensor that is the very same memory as an earlier one, that one's name."""
    first: dict[Any, str] = {}
    return {
        name: first[identity(value)]
        for name, value in tensors.items()
        if first.setdefault(identity(value), name) != name and value.numel()
    }


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
