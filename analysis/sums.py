"""The three sums that say how a vector changed: ⟨a,a⟩, ⟨a,d⟩, ⟨d,d⟩ with d = b − a, for all rows and columns at once.

Float64 sums of float32 matrices are bound by memory: written plainly they make a dozen passes over matrices of twice
the size. Here the matrices are read once, in blocks of rows that stay in a core's cache until all is done with them.

A block is as large as torch hands to its threads at once. That is fastest on a machine that has nothing else to do; on
one where other work keeps the cores busy, the threads wait for each other at every block, as in any torch code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Axis = Literal["row", "column"]
AXES: tuple[Axis, ...] = get_args(Axis)

_GRAIN = 32768  # torch hands a thread at least this many elements: a block of it takes 1.3 MB in float64
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
    rows, columns = _in_blocks(before, after, axes) if before.device.type == "cpu" else _on_device(before, after)
    found: dict[Axis, Sums] = {"row": Sums(*rows.unbind()), "column": Sums(*columns.unbind())}
    return {axis: found[axis] for axis in axes}


def _in_blocks(before: Tensor, after: Tensor, axes: Sequence[Axis]) -> tuple[Tensor, Tensor]:
    """Return the sums of rows, (3, out), and columns, (3, in), from one pass over blocks of rows."""
    height, width = before.shape
    block = min(height, max(1, _GRAIN * torch.get_num_threads() // width))
    both = before.new_empty(block, 2, width, dtype=torch.float64)  # a and d, side by side for the 2×2 products
    all_squares = squares = torch.zeros_like(both[:, 0])  # Σ a∘a over blocks, (block, width)
    all_products = products = torch.zeros_like(both)  # Σ a∘d and Σ d∘d over blocks, (block, 2, width)
    gram = both.new_zeros(height, 2, 2)  # row i: [[⟨a,a⟩, ⟨a,d⟩], [⟨d,a⟩, ⟨d,d⟩]]
    for a_rows, b_rows, gram_rows in zip(*(torch.split(t, block) for t in (before, after, gram)), strict=True):
        if len(a_rows) < len(both):  # the last block
            both, squares, products = (t[: len(a_rows)] for t in (both, squares, products))
        a, d = both.unbind(1)
        a.copy_(a_rows)
        d.copy_(b_rows).sub_(a)
        if "column" in axes:
            squares.addcmul_(a, a)
            products.addcmul_(both, d[:, None])
        if "row" in axes:
            torch.bmm(both, both.mT, out=gram_rows)
    rows = torch.stack((gram[:, 0, 0], gram[:, 0, 1], gram[:, 1, 1]))
    return rows, torch.stack((all_squares.sum(0), *all_products.sum(0)))


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
