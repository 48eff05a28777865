"""The three sums that say how a vector changed: ⟨a,a⟩, ⟨a,d⟩, ⟨d,d⟩ with d = b − a, for all rows and columns at once.

Float64 sums of float32 matrices are bound by memory: written plainly they make a dozen passes over matrices of twice
the size. Here the matrices are read once, in blocks of rows that stay in a core's cache until all is done with them.

Each thread takes a share of the rows and works alone. The operations are kept below the size at which torch would split
them over threads of its own: those wait for one another some thousand times, which costs little on an idle machine, and
seconds on one where a training run keeps the cores busy.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

Axis = Literal["row", "column"]
AXES: tuple[Axis, ...] = get_args(Axis)

_BLOCK = 32767  # elements; torch splits what has more
_WIDEST = 8192  # columns; BLAS libraries split dot products of more than 10,000 entries
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
    # Threads of our own do not inherit no_grad, so nothing may ask for gradients here.
    before, after = before.detach(), after.detach()
    rows, columns = _in_threads(before, after, axes) if before.device.type == "cpu" else _on_device(before, after)
    found: dict[Axis, Sums] = {"row": Sums(*rows.unbind()), "column": Sums(*columns.unbind())}
    return {axis: found[axis] for axis in axes}


def _in_threads(before: Tensor, after: Tensor, axes: Sequence[Axis]) -> tuple[Tensor, Tensor]:
    """Return the sums of rows, (3, out), and columns, (3, in); as many threads as torch would use."""
    height, width = before.shape
    rows = before.new_zeros(3, height, dtype=torch.float64)
    columns = before.new_zeros(3, width, dtype=torch.float64)
    threads = max(1, min(torch.get_num_threads(), before.numel() // (4 * _BLOCK)))
    with ThreadPoolExecutor(threads) as pool:
        for left in range(0, width, _WIDEST):
            panel = slice(left, left + _WIDEST)
            chunks = (torch.chunk(t, threads, dim=-2) for t in (before[:, panel], after[:, panel], rows.mT))
            work = ((a, b, a_rows, axes) for a, b, a_rows in zip(*chunks, strict=True))
            for found in pool.map(_share, work) if threads > 1 else map(_share, work):
                columns[:, panel] += found
    return rows, columns


def _share(work: tuple[Tensor, Tensor, Tensor, Sequence[Axis]]) -> Tensor:
    """Add the sums of some rows to (rows, 3) and return those of their columns, (3, width); one thread's share."""
    before, after, rows, axes = work
    height, width = before.shape
    block = min(height, _BLOCK // width)
    both = before.new_empty(2, block, width, dtype=torch.float64)  # a and d
    totals = before.new_zeros(3, block, width, dtype=torch.float64)  # a∘a, a∘d, d∘d, added up over blocks
    found = np.empty((3, height, 1, 1))
    count = 0
    with np.errstate(all="ignore"):  # infinities are for the caller to see
        for top, a_rows, b_rows in zip(
            range(0, height, block), torch.split(before, block), torch.split(after, block), strict=True
        ):
            if len(a_rows) != count:  # the first block and, where it is smaller, the last
                count = len(a_rows)
                a, d = both[:, :count]
                aa, ad, dd = totals[:, :count]
                a_flat, d_flat = (t.numpy()[:, None, :] for t in (a, d))  # numpy's matmul of vectors is BLAS's dot
                a_tall, d_tall = (t.numpy()[:, :, None] for t in (a, d))
            a.copy_(a_rows)
            d.copy_(b_rows).sub_(a)
            if "column" in axes:
                aa.addcmul_(a, a)
                ad.addcmul_(a, d)
                dd.addcmul_(d, d)
            if "row" in axes:
                here = slice(top, top + count)
                np.matmul(a_flat, a_tall, out=found[0, here])
                np.matmul(a_flat, d_tall, out=found[1, here])
                np.matmul(d_flat, d_tall, out=found[2, here])
    if "row" in axes:
        rows.add_(torch.from_numpy(found[:, :, 0, 0].T))
    return totals.sum(1)


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
