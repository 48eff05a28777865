"""Constants that several layers have in common: stored once, and still once after the model is moved or converted."""

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor


class SharedConstant:
    """A constant of several layers; each of them refers to this object, and so does a copy's to the copy.

    PyTorch moves a model layer by layer. The first layer that moves its constant hands it in here, and the others then
    take that one for their own.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def moved(self, old: Tensor, new: Tensor) -> Tensor | None:
        """Return the tensor to use by a layer whose constant was moved; ``None`` where it is shared no more.

        Arguments:
            old, new: The layer's constant before and after.
        """
        if "meta" in (old.device.type, new.device.type):
            return None  # holds no values that could be the same
        if old is not self.tensor:  # another layer was first
            kept = self.tensor
            if (kept.dtype, kept.device, kept.shape) == (new.dtype, new.device, new.shape) and torch.equal(kept, new):
                return kept
        self.tensor = new
        return new


class Sharing(Protocol):
    """A layer with constants."""

    def tensor(self, name: str) -> Tensor:
        """Return one of them."""

    def constants(self) -> list[str]:
        """Return their names."""

    def share(self, name: str, constant: SharedConstant) -> None:
        """Have one of them in common with other layers from now on."""


def identity(tensor: Tensor) -> tuple[Any, ...]:
    """Return what is equal for two tensors that are the same part of the same memory."""
    place = tensor.untyped_storage().data_ptr(), tensor.storage_offset()
    return (*place, tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)


def share(layers: Iterable[Sharing]) -> None:
    """Let the layers keep in common, from now on, the constants that are the same memory."""
    groups: dict[Any, list[tuple[Sharing, str]]] = {}
    for layer in layers:
        for name in layer.constants():
            if (value := layer.tensor(name)).numel() and value.device.type != "meta":
                groups.setdefault(identity(value), []).append((layer, name))
    for members in groups.values():
        if len(members) > 1:
            constant = SharedConstant(members[0][0].tensor(members[0][1]))
            for layer, name in members:
                layer.share(name, constant)
