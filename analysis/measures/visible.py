"""Which weights of a matrix change at all once they are stored: most small updates are lost in a coarse dtype."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, overload

import torch
from torch import Tensor

from deltaw.adapters.checks import public
from deltaw.adapters.errors import OptionError, ShapeError
from deltaw.analysis.measures.matrix import Matrix, finite
from deltaw.analysis.measures.threads import parts_of

PATH_NOT_TAKEN = 1e-3  # η of "The Path Not Taken", definition 2.1

VisibleAxis = Literal["row", "column"]


@public
@torch.no_grad()
def visible_changes(
    before: Matrix, after: Matrix, *, dtype: torch.dtype = torch.bfloat16, tolerance: float | None = None
) -> Tensor:
    r"""Return which entries of a matrix have another value once both matrices are stored in a dtype.

        changed_ij = [ round(W'_ij) ≠ round(W₀_ij) ]

    Exact, as both are rounded: as torch rounds, to the nearest, ties to even, float64 to 16 bits by way of float32.
    0 and −0 are the same value.

    With a tolerance η nothing is rounded, and the rule is that of "The Path Not Taken",

        changed_ij = [ |W'_ij − W₀_ij| > η·max(|W₀_ij|, |W'_ij|) ].

    Of two bfloat16 matrices the two rules say the same for η = 1e-3 (`PATH_NOT_TAKEN`), as neighbouring values of
    bfloat16 lie at least 2⁻⁸ apart, relative to the larger. Of float32 weights they do not: a change of half a percent
    may stay on one side of a rounding boundary, and one of 1e-6 may cross it.

    Arguments:
        before, after: W₀ and W' (out, in), a tensor or NumPy array of any floating dtype.
        dtype: The dtype they are stored in; not looked at where there is a tolerance.
        tolerance: η, from 0 on; ``None`` for what is stored.

    Returns:
        (out, in) bool, on the matrices' device.

    Raises:
        OptionError: ``dtype`` is no floating dtype, ``tolerance`` no number from 0 on, or something is no matrix.
        ShapeError: The two differ in shape.
        NonFiniteError: NaN or infinity.

    Source:
        Zhu et al. 2025, "The Path Not Taken: RLVR Provably Learns Off the Principals" (arXiv 2511.08567), definition
        2.1 and equation 1 for the rule with η.

    Example:
        >>> before = torch.tensor([[1.0, 1.0, 1.0]])
        >>> after = torch.tensor([[1.0, 1.001, 1.01]])
        >>> visible_changes(before, after).tolist(), visible_changes(before, after, dtype=torch.float32).tolist()
        ([[False, False, True]], [[False, True, True]])
        >>> visible_changes(before, after, tolerance=5e-4).tolist()
        [[False, True, True]]
    """
    old, new = _pair(before, after, dtype, tolerance)
    return torch.cat(list(_masks(old, new, dtype, tolerance)))


@overload
def visible_share(
    before: Matrix,
    after: Matrix,
    *,
    dtype: torch.dtype = torch.bfloat16,
    axis: None = None,
    tolerance: float | None = None,
) -> float: ...


@overload
def visible_share(
    before: Matrix,
    after: Matrix,
    *,
    dtype: torch.dtype = torch.bfloat16,
    axis: VisibleAxis,
    tolerance: float | None = None,
) -> Tensor: ...


@public
@torch.no_grad()
def visible_share(
    before: Matrix,
    after: Matrix,
    *,
    dtype: torch.dtype = torch.bfloat16,
    axis: VisibleAxis | None = None,
    tolerance: float | None = None,
) -> float | Tensor:
    r"""Return the share of entries that have another value once both matrices are stored in a dtype.

        share = (1/nm) Σ_ij [ round(W'_ij) ≠ round(W₀_ij) ]

    One less this share is the paper's bf16-aware update sparsity, where the matrices are stored in bfloat16; see
    `visible_changes` for its rule with a tolerance.

    Arguments:
        before, after: W₀ and W' (out, in), a tensor or NumPy array of any floating dtype.
        dtype: The dtype they are stored in.
        axis: "row" for the share in each row, "column" in each column; ``None`` for the whole matrix.
        tolerance: η of the rule of "The Path Not Taken", `PATH_NOT_TAKEN` for theirs; ``None`` for what is stored.

    Returns:
        A number in [0, 1]; with an axis (out,) or (in,) in float64.

    Raises:
        As `visible_changes`; OptionError: There is no such axis.

    Source:
        Zhu et al. 2025, "The Path Not Taken" (arXiv 2511.08567), definition 2.2 and equation 2; the shares of rows and
        columns are their row-wise and column-wise ratios, section 2.2.

    Example:
        >>> before, after = torch.ones(2, 2), torch.tensor([[1.0, 1.001], [1.01, 1.02]])
        >>> visible_share(before, after), visible_share(before, after, axis="row").tolist()
        (0.5, [0.0, 1.0])
    """
    old, new = _pair(before, after, dtype, tolerance)
    if axis not in (None, "row", "column"):
        raise OptionError(f"axis is {axis!r}; choose 'row', 'column', or None for the whole matrix")
    masks = _masks(old, new, dtype, tolerance)
    if axis == "row":
        return torch.cat([mask.sum(1) for mask in masks]).double() / old.shape[1]
    if axis == "column":
        return torch.stack([mask.sum(0) for mask in masks]).sum(0).double() / old.shape[0]
    return sum(int(mask.sum()) for mask in masks) / old.numel()


def _masks(old: Tensor, new: Tensor, dtype: torch.dtype, tolerance: float | None) -> Iterator[Tensor]:
    """Yield the mask a few rows at a time, which stay in the cache; counts are exact in any order."""
    for a, b in zip(parts_of(old), parts_of(new), strict=True):
        if tolerance is None:
            yield a.to(dtype) != b.to(dtype)
        else:
            wide, other = a.double(), b.double()
            yield (wide - other).abs() > tolerance * torch.maximum(wide.abs(), other.abs())


def _pair(before: Matrix, after: Matrix, dtype: torch.dtype, tolerance: float | None) -> tuple[Tensor, Tensor]:
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise OptionError(f"dtype is {dtype!r}; pass a floating dtype, as torch.bfloat16")
    number = isinstance(tolerance, int | float) and not isinstance(tolerance, bool)
    if tolerance is not None and not (number and math.isfinite(tolerance) and tolerance >= 0):
        raise OptionError(f"tolerance is {tolerance!r}; pass a number from 0 on, as PATH_NOT_TAKEN (1e-3), or None")
    old, new = finite("before", before), finite("after", after)
    if old.shape != new.shape:
        raise ShapeError(
            f"before has shape {tuple(old.shape)} and after has shape {tuple(new.shape)}; pass one matrix at two steps"
        )
    return old, new.to(old.device)
