"""‖W‖₂ of weights, and the noise floor that their rounding leaves in an update."""

from __future__ import annotations

import torch
from torch import Tensor

from deltaw.adapters.errors import OptionError, ShapeError
from deltaw.analysis.measures.matrix import Matrix, finite_matrix
from deltaw.analysis.measures.threads import one_thread


def noise_floor(update: Tensor, stored: torch.dtype, weight: Matrix) -> float:
    """Return eps(stored)·‖weight‖₂."""
    if not stored.is_floating_point:
        raise OptionError(f"stored is {stored}; pass a floating dtype, as torch.bfloat16")
    wide = finite_matrix("weight", weight)
    if wide.shape != update.shape:
        raise ShapeError(f"weight has shape {tuple(wide.shape)} and update has shape {tuple(update.shape)}")
    return torch.finfo(stored).eps * spectral_norm(wide)


def spectral_norm(weight: Tensor, vectors: int = 8, steps: int = 8) -> float:
    """Return ‖weight‖₂ or up to one percent less: block power steps, then Rayleigh and Ritz on all they passed.

    Arguments:
        weight: (out, in), float64.
        vectors: The width of the block.
        steps: The number of power steps.
    """
    if min(weight.shape) <= vectors * (steps + 1):
        return float(torch.linalg.matrix_norm(weight, 2))
    generator = torch.Generator().manual_seed(0)  # its own: the caller's random numbers stay as they are
    start = torch.randn(weight.shape[1], vectors, generator=generator, dtype=torch.float64)
    with one_thread():
        blocks = [torch.linalg.qr(start.to(weight.device)).Q]
        for _ in range(steps):
            blocks.append(torch.linalg.qr(weight.T @ (weight @ blocks[-1])).Q)
        basis = torch.linalg.qr(torch.cat(blocks, dim=1)).Q  # (in, vectors·(steps + 1))
        image = weight @ basis
        return float(torch.linalg.matrix_norm(torch.linalg.qr(image, mode="r").R, 2))
