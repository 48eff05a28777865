"""The linear layers and convolutions of a model: which they are, their shape, and their place in the model."""

from collections.abc import Iterator

from torch import Tensor, nn

from deltaw.adapters.bitsandbytes import is_quantized, quantized_shape
from deltaw.adapters.checks import public
from deltaw.adapters.errors import TargetError
from deltaw.adapters.layer import AdaptedLayer
from deltaw.adapters.method import Method
from deltaw.adapters.peft.names import BASE_LAYER


def is_conv1d(module: object) -> bool:
    """Whether it is transformers' Conv1D, told by its name and its place, so that transformers need not be there."""
    # FSDP2 makes a class of its own from it, so its bases are asked as well.
    kinds = type(module).__mro__
    return any(kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers") for kind in kinds)


def is_peft(module: nn.Module) -> bool:
    """Whether the module is a PEFT layer over another."""
    return hasattr(module, BASE_LAYER) and any(c.__module__.startswith("peft.") for c in type(module).__mro__)


def is_adaptable(module: object) -> bool:
    """Whether a method can go on it, or is on it."""
    return type(module) is nn.Linear or isinstance(module, AdaptedLayer) or is_conv1d(module) or is_quantized(module)


def adapted(model: nn.Module) -> dict[str, AdaptedLayer]:
    """Return the adapted layers of a model by module name, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, AdaptedLayer)}


@public
def penalty(model: nn.Module) -> Tensor | float:
    """Return what the methods of a model add to the loss in training; 0.0 where they add nothing.

    Of deltaw's own methods AdaLoRA and BiDoRA add something. ``deltaw train`` does it; a loop of one's own has
    ``loss = loss + penalty(model)``.

    Example:
        >>> from deltaw.adapters import LoRA, inject, penalty
        >>> penalty(inject(nn.Sequential(nn.Linear(6, 4)), LoRA(rank=2), targets=["0"]))
        0.0
    """
    layers: dict[Method, list[AdaptedLayer]] = {}
    for layer in adapted(model).values():
        layers.setdefault(layer.method, []).append(layer)
    found = [added for method, own in layers.items() if (added := method.penalty(own)) is not None]
    return sum(found) if found else 0.0


def linear_modules(model: nn.Module, *, kernels: bool = False) -> Iterator[tuple[str, nn.Module]]:
    """Yield the names and modules of all linear layers: plain, ours, and PEFT's (without the parts inside).

    Arguments:
        model: The model.
        kernels: Plain convolutions of every kind too; those under PEFT are yielded anyhow.
    """
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name.startswith(inside):
            continue
        if is_peft(module):
            inside += (name + ".",)
            yield name, module
        elif isinstance(module, (nn.Linear, AdaptedLayer)) or is_conv1d(module) or (kernels and is_convolution(module)):
            yield name, module


def is_convolution(module: nn.Module) -> bool:
    """Whether it is a convolution of torch's, plain or under PEFT: transposed and grouped ones too."""
    module = module.get_submodule(BASE_LAYER) if is_peft(module) else module
    return isinstance(module, nn.modules.conv._ConvNd)


def kernel_of(module: nn.Module) -> tuple[int, ...]:
    """Return (k…) of a convolution whose weight [out, in, k…] is the matrix (out, in·k…), () of all else.

    Example:
        >>> kernel_of(nn.Conv2d(4, 6, 3)), kernel_of(nn.Conv2d(4, 6, 3, groups=2)), kernel_of(nn.Linear(4, 6))
        ((3, 3), (), ())
    """
    module = module.get_submodule(BASE_LAYER) if is_peft(module) else module
    plain = isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and module.groups == 1
    return tuple(module.kernel_size) if plain else ()  # type: ignore[arg-type]


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
