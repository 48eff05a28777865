"""The three sums that say how a vector changed: ⟨a,a⟩, ⟨a,d⟩, ⟨d,d⟩ with d = b − a, for all rows and columns at once.

Float64 sums of float32 matrices are bound by memory: written plainly in torch they make a dozen passes over matrices of
twice the size. Here the matrices of all pairs are read once, by a compiled loop, at the speed of reading them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch
from torch import Tensor

if TYPE_CHECKING:  # the compiled loops are imported by whom wants sums
    from deltaw.adapters.compiled.pages import Calls

Side = Literal["row", "column"]
SIDES: tuple[Side, ...] = get_args(Side)

_DEVICE_BLOCK = 2**22  # elements in a block on an accelerator, where only the launches count
_HALF = (torch.bfloat16, torch.float16)  # are widened in the loop, eight at a time
_READ_AS_THEY_ARE = (torch.float32, torch.float64, *_HALF)


class Sums(NamedTuple):
    """⟨a,a⟩, ⟨a,d⟩ and ⟨d,d⟩ of every vector along one axis, (vectors,) or (pairs, vectors) in float64 each."""

    aa: Tensor
    ad: Tensor
    dd: Tensor


def sums(before: Tensor, after: Tensor, axes: Sequence[Side]) -> dict[Side, Sums]:
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
    if before.device.type == "cpu":
        of_pair = PairSums(before.shape, [(0, 1)])
        of_pair.add([before, after], 0)
        found: dict[Side, Sums] = {axis: Sums(*(t[0] for t in of)) for axis, of in of_pair.found().items()}
    else:
        rows, columns = _on_device(before, after)
        found = {"row": Sums(*rows.unbind()), "column": Sums(*columns.unbind())}
    return {axis: found[axis] for axis in axes}


class PairSums:
    """The sums of pairs out of several matrices, from one pass over all of them, a group of rows at a time.

    The sums of a pair are those of the pair alone, to the bit, whatever the other pairs, the groups and the threads.

    Arguments:
        shape: (out, in) of the matrices.
        pairs: Two positions among the matrices, each.

    Example:
        >>> of_pairs = PairSums((1, 2), [(0, 1), (0, 2)])
        >>> of_pairs.add([torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 6.0]]), torch.tensor([[3.0, 4.0]])], 0)
        True
        >>> of_pairs.found()["row"].dd.tolist()
        [[4.0], [0.0]]
    """

    def __init__(self, shape: Sequence[int], pairs: Sequence[tuple[int, int]]) -> None:
        from deltaw.adapters.compiled import sums as loops  # a quarter of a second, for those who want no sums

        self._add_sums = loops.add_sums
        height, self._width = shape
        # A group has a multiple of so many rows, except for the last.
        self.step = loops.rows_in_chunk(height, self._width)
        self._pairs = list(pairs)
        places = {before: place for place, before in enumerate(dict.fromkeys(before for before, _ in pairs))}
        self._lines = loops.lines_of(self._pairs, places)
        self._of_before = torch.tensor([places[before] for before, _ in pairs])
        self._rows = torch.empty(len(places) + 2 * len(pairs), height, dtype=torch.float64)
        self._columns = torch.zeros(len(self._rows), 8 * -(-self._width // 8) + loops.APART, dtype=torch.float64)

    def reads(self, matrices: Sequence[Tensor]) -> bool:
        """Whether the compiled loop reads these rows of every matrix as they are."""
        dtype = matrices[0].dtype
        by_eight = dtype not in _HALF or self._width % 8 == 0
        return by_eight and all(t.dtype == dtype in _READ_AS_THEY_ARE and t.is_contiguous() for t in matrices)

    def add(
        self, matrices: Sequence[Tensor], start: int, pages: Sequence[int] = (), calls: Calls | None = None
    ) -> bool:
        """Add a group of rows.

        Arguments:
            matrices: These rows of every matrix, (rows, in), any floating dtypes, on the CPU.
            start: Which row is the first. The groups come in order.
            pages, calls: As in ``adapters.compiled.sums.add_sums``, of matrices that are read as they are.

        Returns:
            Whether that was possible; not where a file was cut, and then the sums say nothing.
        """
        if not self.reads(matrices):
            self._add_widened(matrices, start)
            return True
        all_rows = len(matrices[0]) == self._rows.shape[1]
        rows = self._rows if all_rows else self._rows.new_empty(len(self._rows), len(matrices[0]))
        addresses = torch.tensor([matrix.data_ptr() for matrix in matrices])
        given = matrices[0], addresses, self._lines, len(self._pairs), self.step, rows, self._columns
        found: bool = self._add_sums(*given, pages, calls)
        if not all_rows:
            self._rows[:, start : start + rows.shape[1]] = rows
        return found

    def _add_widened(self, matrices: Sequence[Tensor], start: int) -> None:
        wide = torch.float64 if any(t.dtype == torch.float64 for t in matrices) else torch.float32
        for first in range(0, len(matrices[0]), self.step):
            self.add([t[first : first + self.step].to(wide).contiguous() for t in matrices], start + first)

    def found(self) -> dict[Side, Sums]:
        """Return the sums along both axes, (pairs, vectors), when all rows were added."""
        pairs, first = len(self._pairs), len(self._rows) - 2 * len(self._pairs)
        both = self._rows, self._columns[:, : self._width]
        row, column = (Sums(of[self._of_before], of[first : first + pairs], of[first + pairs :]) for of in both)
        return {"row": row, "column": column}


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
