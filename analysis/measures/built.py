"""ΔM and ΔD from what an adapter recorded, W' = diag(ρ) (W₀ + U V) diag(γ), without a dense W'.

The sums that ``change`` works with are made from W₀ and the small tensors of a few steps at once: each W' is built once
in float64, a block at a time, and compared with the others while it is in the processor's cache. Only vectors that the
sums' error bound does not vouch for are built again, alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deltaw.adapters.method import ScaledLowRank
from deltaw.analysis.measures.sums import Side, Sums


@dataclass(frozen=True)
class Built:
    """W' as ``change`` looks at it: its shape, and single rows of it.

    Arguments:
        base: W₀ (out, in), float32 or float64, on the CPU.
        form: ρ, γ, U and V.

    Example:
        >>> one, zero = torch.ones(2, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
        >>> Built(torch.eye(2), ScaledLowRank(2 * one, 3 * one, zero, zero.T)).take(torch.tensor([1])).tolist()
        [[0.0, 6.0]]
    """

    base: Tensor
    form: ScaledLowRank

    dtype: ClassVar[torch.dtype] = torch.float64

    @property
    def shape(self) -> torch.Size:
        """(out, in)."""
        return self.base.shape

    def transposed(self) -> Built:
        """Return its transpose."""
        rho, gamma, U, V = self.form
        return Built(self.base.T, ScaledLowRank(gamma, rho, V.T, U.T))

    def take(self, index: Tensor) -> Tensor:
        """Return some rows, (rows, in)."""
        rho, gamma, U, V = self.form
        scaled = rho[index, None] * rows_of(self.base, index) * gamma
        return scaled + (rho[index, None] * U[index]) @ (V * gamma)

    def part(self, rows: slice, columns: slice) -> Tensor:
        """Return some rows of some columns, (rows, columns)."""
        rho, gamma, U, V = self.form
        own = rho[rows, None]
        return own * self.base[rows, columns].double() * gamma[columns] + (own * U[rows]) @ (
            V[:, columns] * gamma[columns]
        )


def rows_of(matrix: Tensor, index: Tensor) -> Tensor:
    """Return some rows in float64; by slices, as torch splits indexing over threads whatever its size."""
    first, last = int(index[0]), int(index[-1])
    if last - first + 1 == len(index):
        rows = matrix[first : last + 1]
    else:
        rows = torch.stack([matrix[i] for i in index.tolist()])
    return rows.to(torch.float64, memory_format=torch.contiguous_format)


def built_sums(base: Tensor, forms: Sequence[ScaledLowRank], pairs: Sequence[tuple[int, int]]) -> dict[Side, Sums]:
    """Return the three sums of pairs of matrices along both axes, as ``sums`` of two ready ones, from one pass over W₀.

    Arguments:
        base: W₀ (out, in), float32 or float64, on the CPU and contiguous.
        forms: What W' follows from, of each matrix.
        pairs: Two positions in ``forms``, −1 for W₀.

    Returns:
        {axis: `Sums`}, (pairs, vectors).
    """
    from deltaw.adapters.compiled.built import add_built_sums  # a quarter of a second, for those who want no sums

    rho, gamma, U, V = zip(*forms, strict=True)
    height, width = base.shape
    rows = torch.empty(len(pairs), 3, height + -height % 8, dtype=torch.float64)
    columns = torch.zeros(len(pairs), 3, width + -width % 16, dtype=torch.float64)
    add_built_sums(base, torch.stack(rho), torch.stack(gamma), U, V, pairs, rows, columns)
    found = rows[:, :, :height], columns[:, :, :width]
    return {"row": Sums(*found[0].unbind(1)), "column": Sums(*found[1].unbind(1))}
