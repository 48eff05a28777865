"""Put a method into a model, take it out again, and keep its parameters in a file."""

import difflib
import json
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from deltaw.adapters.errors import DataError, OptionError, ShapeError, TargetError
from deltaw.adapters.layer import AdaptedLayer
from deltaw.adapters.method import Method

FILE_FORMAT = "deltaw-adapters-1"


def inject(
    model: nn.Module,
    method: Method,
    targets: Sequence[str] | str,
    *,
    trainable: Sequence[str] | str = (),
    seed: int = 0,
) -> nn.Module:
    """Put ``method`` on every linear layer that a pattern names, in place, and freeze the rest.

    The random start depends on ``seed`` and the order of the modules alone; the global random state is left as it is.
    Full fine-tuning (``METHODS["ft"]()``) checks the patterns, injects nothing and freezes nothing.

    Arguments:
        model: Any model.
        method: For example ``BoRA(rank=8, alpha=16)``.
        targets: Glob patterns over full module names, ``["*.query", "*.value"]``.
        trainable: Patterns over module or parameter names that stay trainable, for example ``["classifier*"]``.
        seed: Seed of the method's random start.

    Returns:
        The model.

    Raises:
        TargetError: A pattern matches nothing, or no ``nn.Linear`` or ``Conv1D``; the message lists near names.
        OptionError: The rank does not fit a matrix.

    Example:
        >>> import torch
        >>> from deltaw.adapters import BoRA, adapted, inject
        >>> model = torch.nn.ModuleDict({"query": torch.nn.Linear(6, 4), "head": torch.nn.Linear(4, 2)})
        >>> model = inject(model, BoRA(rank=2, alpha=4), targets=["query"], trainable=["head"], seed=0)
        >>> list(adapted(model))
        ['query']
    """
    if not isinstance(method, Method):
        raise OptionError(f"method must be a method such as LoRA(rank=8), not {method!r}")
    modules = dict(model.named_modules())
    chosen = matching(modules, _patterns(targets), "target", _is_adaptable)
    kept = matching({**modules, **dict(model.named_parameters())}, _patterns(trainable), "trainable", lambda _: True)
    for name in chosen:  # everything is checked before anything is changed
        source = modules[name]
        if isinstance(source, AdaptedLayer):
            raise TargetError(f"{name!r} already carries {source.method.name!r}; call merge(model) first")
        rows, columns = linear_shape(source)
        method.check_shape(rows, columns, name)
    if not method.injects:
        return model

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name in chosen:
        _replace(model, name, AdaptedLayer(modules[name], method, generator, is_conv1d(modules[name])))
    for name, parameter in model.named_parameters():
        owners = {name} | {name.rsplit(".", k)[0] for k in range(1, name.count(".") + 1)}
        if owners & set(kept):
            parameter.requires_grad_(True)
    return model


def adapted(model: nn.Module) -> dict[str, AdaptedLayer]:
    """Return the adapted layers of a model by module name, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, AdaptedLayer)}


def merge(model: nn.Module) -> nn.Module:
    """Put W' into plain layers of the original class, in the base's dtype, in place.

    A base of lower precision rounds the update; see ``deltaw inspect`` for how much of it survives.

    Returns:
        The model, without a trace of the method.
    """
    for name, layer in adapted(model).items():
        _replace(model, name, _plain(layer))
    return model


def save_adapters(model: nn.Module, path: str | Path) -> None:
    """Write the methods' tensors and options to one safetensors file.

    Raises:
        TargetError: The model has no adapted layer.
    """
    layers = adapted(model)
    if not layers:
        raise TargetError("the model has no adapted layer to save; call inject(model, method, targets) first")
    tensors, methods = {}, {}
    for name, layer in layers.items():
        layer.method.observe(layer)
        methods[name] = {"method": layer.method.name, "options": layer.method.options()}
        for key, value in layer.state().items():
            tensors[f"{name}.{key}"] = value.detach().cpu().contiguous()
    save_file(tensors, str(path), metadata={"format": FILE_FORMAT, "methods": json.dumps(methods)})


def load_adapters(model: nn.Module, path: str | Path) -> nn.Module:
    """Read what ``save_adapters`` wrote into a model that is injected in the same way, or that is plain.

    A plain model is injected first, as the file says; everything else in it is then frozen.

    Raises:
        DataError: The file is not such a file.
        TargetError: The model lacks a layer that the file has.
        ShapeError: A tensor does not fit.
    """
    from deltaw.adapters import create

    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read as a safetensors file ({error})") from None
    if header.get("format") != FILE_FORMAT:
        raise DataError(f"{path}: is no file of save_adapters (its format is {header.get('format')!r})")
    methods = json.loads(header["methods"])
    if not adapted(model):
        for name, entry in methods.items():
            plain = _find(model, name, str(path))
            method = create(entry["method"], **entry["options"])
            method.check_shape(*linear_shape(plain), name)
            _replace(model, name, AdaptedLayer(plain, method, torch.Generator(), is_conv1d(plain)))
        own = {id(layer.tensor(k)) for layer in adapted(model).values() for k in layer._trainable}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in own)
    layers = adapted(model)
    for name, entry in methods.items():
        if name not in layers:
            raise TargetError(f"{path}: has {name!r}, which is not adapted in this model")
        layer = layers[name]
        if (layer.method.name, layer.method.options()) != (entry["method"], entry["options"]):
            raise OptionError(f"{path}: {name!r} was saved as {entry}, but the model has {layer.method!r}")
        state = {key: tensors.get(f"{name}.{key}") for key in layer.state()}
        for key, value in state.items():
            if value is None or value.shape != layer.tensor(key).shape:
                found = "nothing" if value is None else tuple(value.shape)
                raise ShapeError(
                    f"{path}: {name}.{key} has shape {found}, the model's has {tuple(layer.tensor(key).shape)}"
                )
        layer.load_state_dict({**layer.state_dict(), **state})
    return model


def matching(
    names: Iterable[str] | dict[str, object], patterns: Iterable[str], what: str, usable: object = None
) -> list[str]:
    """Return the names that any of the glob patterns match, in their own order.

    A pattern may name a container; then nothing usable is matched, and that is an error like a name that is not there.

    Raises:
        TargetError: A pattern matches nothing; the message lists near names.
    """
    lookup = names if isinstance(names, dict) else dict.fromkeys(names)
    accept = usable if callable(usable) else (lambda _: True)
    found: set[str] = set()
    for pattern in patterns:
        hits = [name for name in lookup if name and fnmatchcase(name, pattern)]
        good = [name for name in hits if accept(lookup[name])]
        if not good:
            raise TargetError(_no_match(pattern, what, hits, lookup, accept))
        found.update(good)
    return [name for name in lookup if name in found]


def _no_match(pattern: str, what: str, hits: list[str], lookup: dict[str, object], accept: object) -> str:
    if hits:
        kind = type(lookup[hits[0]]).__name__
        return (
            f"{what} {pattern!r} matches {hits[0]!r}, which is a {kind}; only nn.Linear and transformers' Conv1D "
            "can be adapted (subclasses may bypass their own weight)"
        )
    usable = [name for name in lookup if name and callable(accept) and accept(lookup[name])]
    tails = {name.rsplit(".", 1)[-1] for name in usable}
    tail = pattern.rsplit(".", 1)[-1].strip("*")
    near = difflib.get_close_matches(pattern, usable, n=3, cutoff=0.5)
    near += [f"*.{t}" for t in difflib.get_close_matches(tail, tails, n=3, cutoff=0.4)]
    near = near or [f"*.{t}" if any("." in name for name in usable) else t for t in sorted(tails)[:8]]
    listed = ", ".join(dict.fromkeys(near)) or "no linear layer at all"
    return f"{what} pattern {pattern!r} matches nothing in the model; near it there is: {listed}"


def _patterns(patterns: Sequence[str] | str) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns)


def is_conv1d(module: object) -> bool:
    """Whether it is transformers' Conv1D, told by its name and its place, so that transformers need not be there."""
    return type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers")


def _is_adaptable(module: object) -> bool:
    return type(module) in (nn.Linear, AdaptedLayer) or is_conv1d(module)


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """Return (out, in) of a linear layer."""
    rows, columns = module.get_parameter("base_layer.weight" if is_peft(module) else "weight").shape
    return (columns, rows) if is_conv1d(module) else (rows, columns)


def _find(model: nn.Module, name: str, where: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise TargetError(f"{where}: has {name!r}, which the model has not") from None


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _plain(layer: AdaptedLayer) -> nn.Module:
    weight = layer.effective_weight().to(layer.weight.dtype)
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


def is_peft(module: nn.Module) -> bool:
    """Whether the module is a PEFT layer over another; told by its class, so that PEFT need not be there."""
    return hasattr(module, "base_layer") and any(c.__module__.startswith("peft.") for c in type(module).__mro__)
