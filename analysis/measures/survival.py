"""How much of an update is left when it is merged into weights of few digits, or into another base than its own."""

import math
from dataclasses import dataclass
from typing import TypeAlias

import torch

from deltaw.adapters.errors import OptionError, ShapeError
from deltaw.analysis.measures.four_bits import CODES, FourBits, rounded_to_four_bits
from deltaw.analysis.measures.matrix import Matrix, matrix

Stored: TypeAlias = torch.dtype | FourBits


@dataclass(frozen=True)
class Survival:
    """The part of an update that survives merging.

    Arguments:
        entries: Share of the update's entries other than 0 whose merged weight differs from the base, in [0, 1];
            1 for an update of zeros.
        error: ‖M − ΔW‖_F / ‖ΔW‖_F, M the update that is found in the merged weights; 0 for an update of zeros.
    """

    entries: float
    error: float


def survival(base: Matrix, update: Matrix, dtype: Stored) -> Survival:
    r"""Return what is left of an update that is merged into a base of a given dtype.

    With round(·) to ``dtype``, the merged update is

        M = round(round(W₀) + ΔW) − round(W₀),

    and of it the share of entries that changed at all and its relative error are told. With a relative update of 1e-4
    hardly an entry of a bfloat16 matrix changes, as neighbouring numbers lie 2⁻⁸ apart.

    Arguments:
        base: W₀ (out, in).
        update: ΔW (out, in), exact: not read off merged weights.
        dtype: What the merged weights are kept in: a floating dtype, or "nf4" or "fp4", bitsandbytes' 4 bits in blocks
            of 64 (see ``rounded_to_four_bits``).

    Raises:
        ShapeError: The two differ in shape.
        OptionError: The dtype is not floating.

    Example:
        >>> base, update = torch.ones(2, 2), torch.tensor([[0.5, 0.0], [1e-4, 0.25]])
        >>> survival(base, update, torch.bfloat16).entries == 2 / 3
        True
    """
    base, update = matrix("base", base), matrix("update", update)
    if base.shape != update.shape:
        raise ShapeError(f"the base is {tuple(base.shape)}, the update {tuple(update.shape)}; they must be alike")
    if not is_stored(dtype):
        raise OptionError(
            f"dtype is {dtype!r}; weights are merged into a floating dtype, for example torch.bfloat16, or 'nf4', 'fp4'"
        )
    there, exact = _rounded(base, dtype), update.double()
    merged = _rounded(there + exact, dtype) - there
    moved = exact != 0
    size = torch.linalg.vector_norm(exact).item()
    if size == 0:
        return Survival(1.0, 0.0)
    changed = ((merged != 0) & moved).sum().item() / moved.sum().item()
    return Survival(changed, torch.linalg.vector_norm(merged - exact).item() / size)


def is_stored(dtype: object) -> bool:
    """Return whether weights can be kept in it: a floating dtype, "nf4" or "fp4"."""
    if isinstance(dtype, torch.dtype):
        return dtype.is_floating_point
    return isinstance(dtype, str) and dtype in CODES


def _rounded(weight: torch.Tensor, dtype: Stored) -> torch.Tensor:
    if isinstance(dtype, torch.dtype):
        return weight.to(dtype).double()
    return rounded_to_four_bits(weight, dtype)


@dataclass(frozen=True)
class OtherBase:
    """An update that is merged into another base than the one it was trained on.

    Arguments:
        distance: ‖W − W₀‖_F / ‖ΔW‖_F, W the other base: how often the update's size the two bases lie apart. What
            was quantised is that far from what it was before, and merging into that undoes it. Inf for an update of 0.
        error: ‖M − (W₀ + ΔW)‖_F / ‖ΔW‖_F, M = W + ΔW rounded to the other base's dtype: how far the merged model is
            from the one that was trained.
    """

    distance: float
    error: float


def other_base(base: Matrix, update: Matrix, other: Matrix) -> OtherBase:
    r"""Return how far merging into another base is from merging into an update's own.

    QLoRA trains ΔW on the dequantised W₀; merged into the 16-bit model W instead, the error q = W − W₀ of the
    quantisation is taken out of what was trained, and it is often larger than ΔW.

    Arguments:
        base: W₀ (out, in), that the update was trained on, dequantised where it was quantised.
        update: ΔW (out, in), exact.
        other: W (out, in), in the dtype that the merged weights are kept in.

    Raises:
        ShapeError: They differ in shape.

    Example:
        >>> other_base(torch.ones(2, 2), torch.eye(2), torch.full((2, 2), 1.5))
        OtherBase(distance=0.7071067811865475, error=0.7071067811865475)
    """
    base, update, other = matrix("base", base), matrix("update", update), matrix("other", other)
    if not base.shape == update.shape == other.shape:
        shapes = ", ".join(str(tuple(one.shape)) for one in (base, update, other))
        raise ShapeError(f"base, update and other base are {shapes}; they must be alike")
    exact = update.double()
    size = torch.linalg.vector_norm(exact).item()
    trained, merged = base.double() + exact, (other.double() + exact).to(other.dtype).double()
    apart = torch.linalg.vector_norm(other.double() - base.double()).item()
    wrong = torch.linalg.vector_norm(merged - trained).item()
    if size == 0:
        return OtherBase(*(math.inf if one else 0.0 for one in (apart, wrong)))
    return OtherBase(apart / size, wrong / size)
