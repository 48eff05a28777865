"""The three sums that say how a vector changed: ⟨a,a⟩, ⟨a,d⟩, ⟨d,d⟩ with d = b − a, for all rows and columns at once.

Float64 sums of float32 matrices are bound by memory: written plainly in torch they make a dozen passes over matrices of
twice the size. Here the matrices are read once, by a compiled loop, at the speed of reading them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Axis = Literal["row", "column"]
AXES: tuple[Axis, ...] = get_args(Axis)

_BLOCKS = 16  # of rows, of which one at a time is widened
_DEVICE_BLOCK = 2**22  # elements in a block on an accelerator, where only the launches count


class Sums(NamedTuple):
    """⟨a,a⟩, ⟨a,d⟩ and ⟨d,d⟩ of every vector along one axis, (vectors,) in float64 each."""

    aa: Tensor
    ad: Tensor
    dd: Tensor


def sums(before: Tensor, after: Tensor, axes: Sequence[Axis]) -> dict[Axis, Sums]:
    """Return the three sums along each axis, in float64, from one pass over two matrices.

    The entries are widened before b − a is taken, so a float32 difference is not rounded. A sum of n products is off by
    at most n·2^−53 times the sum of their absolute values; less in fact, as the blocks' sums are added up.

    Arguments:
        before, after: (out, in), any floating dtypes, on one device that has float64.
        axes: Which of "row" and "column" are wanted.

    Returns:
        {axis: `Sums`}, on the device of ``before``.

    Example:
        >>> before, after = torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 6.0]])
        >>> [float(x) for x in sums(before, after, ["row"])["row"]]
        [25.0, 8.0, 4.0]
    """
    before, after = before.detach(), after.detach()
    rows, columns = _on_cpu(before, after) if before.device.type == "cpu" else _on_device(before, after)
    found: dict[Axis, Sums] = {"row": Sums(*rows.unbind()), "column": Sums(*columns.unbind())}
    return {axis: found[axis] for axis in axes}


def _on_cpu(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of rows, (3, out), and columns, (3, in), from one pass; in blocks where entries are widened."""
    from deltaw.adapters.compiled.sums import add_sums  # a quarter of a second, for those who want no sums

    height, width = before.shape
    wide = torch.float64 if torch.float64 in (before.dtype, after.dtype) else torch.float32
    rows = torch.empty(3, height, dtype=torch.float64)
    columns = torch.zeros(3, width, dtype=torch.float64)
    if all(t.dtype == wide and t.is_contiguous() for t in (before, after)):
        add_sums(before, after, rows, columns)
        return rows, columns
    block = max(1, -(-height // _BLOCKS))
    for first in range(0, height, block):
        a, b = (t[first : first + block].to(wide).contiguous() for t in (before, after))
        of_rows = torch.empty(3, len(a), dtype=torch.float64)
        add_sums(a, b, of_rows, columns)
        rows[:, first : first + block] = of_rows
    return rows, columns


def _on_device(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """The same on an accelerator, where large blocks and plain sums are best."""
    height, width = before.shape
    rows = before.new_empty(3, height, dtype=torch.float64)
    columns = before.new_zeros(3, width, dtype=torch.float64)
    block = max(1, _DEVICE_BLOCK // width)
    for a_rows, b_rows, out in zip(
        torch.split(before, block), torch.split(after, block), torch.split(rows, block, dim=1), strict=True
    ):
        a = a_rows.double()
        d = b_rows.double() - a
        for k, (x, y) in enumerate(((a, a), (a, d), (d, d))):
            product = x * y
            out[k] = product.sum(1)
            columns[k] += product.sum(0)
    return rows, columns
