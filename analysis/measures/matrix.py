"""The check of every measure's matrices: dense, floating, two-dimensional, not empty."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from deltaw.adapters.checks import whole_number
from deltaw.adapters.errors import NonFiniteError, OptionError, ShapeError
from deltaw.analysis.measures.threads import parts_of, side_by_side

# A tensor, or a NumPy array, which shares its memory with the tensor that is made of it.
Matrix = Tensor | np.ndarray


def matrix(name: str, value: object) -> Tensor:
    """Return the value as a tensor in its own dtype, a NumPy array without copying it where torch can read it so.

    Arguments:
        name: Of the argument, for the message.
        value: What was given.

    Raises:
        OptionError: It is no dense tensor and no array, or not of a floating dtype.
        ShapeError: It is no matrix, or has no entries.

    Example:
        >>> matrix("update", np.eye(2)).dtype
        torch.float64
    """
    if isinstance(value, np.ndarray) and value.dtype.newbyteorder("=") in (np.float16, np.float32, np.float64):
        # torch reads neither a negative stride nor the other byte order, and warns of memory it must not write to.
        plain = value.dtype.isnative and value.flags.writeable and all(step >= 0 for step in value.strides)
        value = torch.from_numpy(value if plain else np.array(value, dtype=value.dtype.newbyteorder("=")))
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.layout != torch.strided:
        raise OptionError(f"{name} is {_described(value)}; pass a dense tensor or NumPy array of a floating dtype")
    if value.ndim != 2 or value.numel() == 0:
        raise ShapeError(f"{name} has shape {tuple(value.shape)}; pass a matrix (out, in) that has entries")
    return value


def finite_matrix(name: str, value: object) -> Tensor:
    """Return the value in float64; raise as `matrix` does, and where it holds NaN or infinity."""
    return finite(name, value).double()


def finite(name: str, value: object) -> Tensor:
    """Return the value as `matrix` does, where float64 can be computed; raise where it holds NaN or infinity."""
    tensor = matrix(name, value)
    tensor = tensor.cpu() if tensor.device.type == "mps" else tensor  # mps has no float64
    # A finite sum means finite entries, at a tenth of the cost; an infinite one may come from large entries.
    sums = side_by_side(lambda rows: float(rows.sum(dtype=torch.float64)), parts_of(tensor), tensor)
    if not math.isfinite(sum(sums)) and not bool(tensor.isfinite().all()):
        raise NonFiniteError(f"{name} holds NaN or infinity; repair the weights first")
    return tensor


def from_one_to(most: int, value: object) -> bool:
    """Return whether a value is a whole number from 1 to ``most``, for an option that only the matrix bounds."""
    try:
        return whole_number("", value, 1) <= most
    except OptionError:
        return False


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a {value.layout} tensor of {value.dtype}"
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    return type(value).__name__
