"""The adapters of a model in one file: their tensors and options."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from deltaw.adapters.constants import identity
from deltaw.adapters.errors import DataError, OptionError, ShapeError, TargetError
from deltaw.adapters.injection import layer_over, put_in
from deltaw.adapters.method import Shape
from deltaw.adapters.methods.registry import create
from deltaw.adapters.modules import adapted, find_module, linear_shape

FILE_FORMAT = "deltaw-adapters-1"


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


def load_adapters(model: nn.Module, path: str | Path) -> nn.Module:
    """Read what ``save_adapters`` wrote into a model that is injected in the same way, or that is plain.

    A plain model is injected first, as the file says; everything else in it is then frozen.

    Raises:
        DataError: The file is not such a file.
        TargetError: The model lacks a layer that the file has.
        ShapeError: A tensor does not fit.
    """
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
