"""Whether the header of a recorded file is true of the manifest: names, shapes, and the dtype of W₀.

Nothing here reads a tensor. The names and shapes of a method's tensors follow from the method, which takes torch; what
can be said without it is said without it.
"""

from __future__ import annotations

from collections.abc import Mapping

from deltaw.adapters.errors import OptionError, RecordError
from deltaw.analysis.records.run_folder.format import Manifest
from deltaw.analysis.records.storage.safetensors_file import Entry

Shapes = dict[str, tuple[int, ...]]


def check_base(manifest: Manifest, header: Mapping[str, Entry], where: str) -> None:
    """Raise where the base's file lacks a module or has it in another shape or dtype.

    Raises:
        RecordError: The same.
    """
    for name, entry in manifest.modules.items():
        _check(name, entry.shape, header, where)
        if header[name].dtype != entry.dtype:
            raise RecordError(f"{where}: {name} is {header[name].dtype}, the manifest says {entry.dtype}")
    for kept in manifest.constants.values():
        if kept not in header:
            raise RecordError(f"{where}: lacks the tensor {kept!r}")


def check_checkpoint(shapes: Shapes, header: Mapping[str, Entry], where: str) -> None:
    """Raise where a checkpoint's file lacks a tensor or has it in another shape.

    Raises:
        RecordError: The same.
    """
    for name, shape in shapes.items():
        _check(name, shape, header, where)


def matrix_shapes(manifest: Manifest) -> Shapes:
    """Return the shapes of the whole matrices in a checkpoint, by the tensor's name."""
    return {f"{name}.weight": entry.shape for name, entry in manifest.modules.items() if entry.method is None}


def tensor_shapes(manifest: Manifest, where: str) -> Shapes:
    """Return the shapes of all tensors of a checkpoint, by the tensor's name.

    Raises:
        RecordError: A method is not known here; ``where`` is for the message.
    """
    from deltaw.adapters.peft.recorded import method_of_record  # the methods need torch

    found = matrix_shapes(manifest)
    known: dict[str, Shapes] = {}  # modules of one method and shape have the same tensors
    for name, entry in manifest.modules.items():
        if entry.method is None:
            continue
        key = repr((entry.method, entry.options, entry.shape))
        if key not in known:
            try:
                method = method_of_record(entry.method, entry.options)
                known[key] = {**method.shapes(*entry.shape), **method.frozen_shapes(*entry.shape)}
            except (OptionError, TypeError) as error:
                raise RecordError(f"{where}: {name}: {error}") from None
        found |= {f"{name}.{tensor}": shape for tensor, shape in known[key].items()}
    return {name: shape for name, shape in found.items() if name not in manifest.constants}


def _check(name: str, shape: tuple[int, ...], header: Mapping[str, Entry], where: str) -> None:
    if name not in header:
        raise RecordError(f"{where}: lacks the tensor {name!r}")
    if header[name].shape != tuple(shape):
        raise RecordError(f"{where}: {name} is {header[name].shape}, it should be {tuple(shape)}")
