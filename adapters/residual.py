"""A residual in the place of W₀, and the way back to every bit of W₀.

PiSSA and CorDA train on W₀ − U V. Written over W₀, as their papers do, it costs no more than LoRA; but rounded to W₀'s
dtype, it does not give W₀ back: about a sixth of the entries come out a few units off. What they are off by is kept
beside it, compressed: about a twelfth of the matrix.
"""

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BITS: dict[torch.dtype, Any] = {torch.float32: np.uint32, torch.float64: np.uint64}


@dataclass(frozen=True)
class Lost:
    """What W₀ has lost in a residual.

    Arguments:
        bits: By which W₀ differs from residual + U V as that is computed, byte by byte of the entries, compressed.
        checksum: Of the residual: what is lost is lost only where that is the same.
        dtype: Of both.
    """

    bits: bytes
    checksum: int
    dtype: torch.dtype


def can_be_held(weight: Tensor) -> bool:
    """Whether a residual in the place of this weight is precise enough, and its values are at hand."""
    return weight.dtype in _BITS and weight.device.type != "meta"


def subtracted(base: Tensor, U: Tensor, V: Tensor) -> tuple[Tensor, Lost]:
    """Return W₀ − U V (out, in), summed in float64 and rounded once, and what W₀ loses by it.

    Arguments:
        base: W₀ (out, in), float32 or float64.
        U, V: (out, r) and (r, in), of any dtype.
    """
    residual = _sum(base, U, V, -1.0)
    back = _sum(residual, U, V, 1.0)
    different = _bits(base) ^ _bits(back)
    planes = np.ascontiguousarray(different.reshape(-1, 1).view(np.uint8).T)  # the high bytes are nearly all zero
    return residual.to(base.device), Lost(zlib.compress(planes.data, 1), zlib.crc32(_bits(residual).data), base.dtype)


def restored(residual: Tensor, U: Tensor, V: Tensor, lost: Lost) -> Tensor:
    """Return W₀ (out, in) from what ``subtracted`` made of it, bit for bit.

    Where the residual has been changed or converted since, the sum residual + U V, rounded.
    """
    back = _sum(residual if residual.dtype in _BITS else residual.float(), U, V, 1.0)
    if residual.dtype == lost.dtype and zlib.crc32(_bits(residual).data) == lost.checksum:
        bits = _bits(back)  # of the same memory
        planes = np.frombuffer(zlib.decompress(lost.bits), np.uint8).reshape(bits.itemsize, -1)
        bits ^= np.ascontiguousarray(planes.T).view(bits.dtype).reshape(bits.shape)
    return back.to(residual)


def _sum(matrix: Tensor, U: Tensor, V: Tensor, sign: float) -> Tensor:
    from deltaw.adapters.compiled.norms import plus_product

    given = matrix.detach().cpu().contiguous()
    out = torch.empty_like(given)
    left, right = (factor.detach().cpu().double().contiguous() for factor in (sign * U.detach().double(), V))
    plus_product(given.numpy(), left.numpy(), right.numpy(), out.numpy())
    return out


def _bits(matrix: Tensor) -> NDArray[Any]:
    return matrix.detach().cpu().contiguous().numpy().view(_BITS[matrix.dtype])
