"""Vectors that are larger than a row or a column: the whole matrix, a head's rows or columns, an expert, an input.

Their sums are sums of those over rows or columns, which one pass over the matrix gives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from deltaw.adapters.checks import whole_number
from deltaw.adapters.errors import OptionError, ShapeError
from deltaw.analysis.measures.sums import SIDES, Side, Sums

Axis = Literal["row", "column", "matrix", "head", "expert", "entry"]
ALL_AXES: tuple[Axis, ...] = get_args(Axis)


@dataclass(frozen=True)
class Blocks:
    """Blocks of neighbouring rows, or of neighbouring columns, each of which is one vector.

    Arguments:
        side: "row" for blocks of rows W[start:stop, :], "column" for blocks of columns W[:, start:stop].
        bounds: (start, stop) of each.
        names: Of each what it is a part of and its number there, as ("query", 3); by default ("", 0), ("", 1), …

    Raises:
        OptionError: Another side; no block, or an empty one; not as many names as blocks.

    Example:
        >>> Blocks("row", [(0, 2), (2, 4)]).names
        (('', 0), ('', 1))
    """

    side: Side
    bounds: Sequence[tuple[int, int]]
    names: Sequence[tuple[str, int]] = ()

    def __post_init__(self) -> None:
        if self.side not in SIDES:
            raise OptionError(f"side is {self.side!r}; choose one of {', '.join(map(repr, SIDES))}")
        bounds = tuple((whole_number("a start", a, 0), whole_number("a stop", b, 1)) for a, b in self.bounds)
        if not bounds or any(start >= stop for start, stop in bounds):
            raise OptionError(f"bounds are {self.bounds!r}; give one (start, stop) or more, each start below its stop")
        names = tuple(self.names) or tuple(("", number) for number in range(len(bounds)))
        if len(names) != len(bounds):
            raise OptionError(f"there are {len(names)} names and {len(bounds)} blocks; give each block one")
        object.__setattr__(self, "bounds", bounds)
        object.__setattr__(self, "names", names)

    def check(self, shape: Sequence[int]) -> None:
        """Raise where a block goes beyond a matrix (out, in).

        Raises:
            ShapeError: One does.
        """
        there, most = shape[self.side == "column"], max(stop for _, stop in self.bounds)
        if most > there:
            raise ShapeError(f"a block ends at {self.side} {most}, and the matrix {tuple(shape)} has {there}")


def equal_blocks(side: Side, length: int, count: int, part: str = "", start: int = 0) -> Blocks:
    """Return so many equal blocks.

    Arguments:
        side: As in `Blocks`.
        length: Of all together.
        count: How many; it divides the length.
        part: What they are parts of.
        start: Where the first begins.

    Example:
        >>> equal_blocks("row", 6, 3).bounds
        ((0, 2), (2, 4), (4, 6))
    """
    size = length // count
    bounds = [(start + number * size, start + (number + 1) * size) for number in range(count)]
    return Blocks(side, bounds, [(part, number) for number in range(count)])


def kernel_blocks(shape: Sequence[int], kernel: Sequence[int]) -> dict[Axis, Blocks]:
    """Return what a convolution's matrix (out, in·k…) has along "column" and "entry".

    Arguments:
        shape: (out, in·k…).
        kernel: (k…).

    Returns:
        "column": the slice W[:, c, …] of an input channel, out·k… numbers. "entry": one place of it, out numbers.
        Nothing of a linear layer.

    Example:
        >>> kernel_blocks((8, 18), (3, 3))["column"].bounds, len(kernel_blocks((8, 18), (3, 3))["entry"].bounds)
        (((0, 9), (9, 18)), 18)
    """
    places = math.prod(kernel)
    if not kernel or shape[1] % places:
        return {}
    found: dict[Axis, Blocks] = {"entry": equal_blocks("column", shape[1], shape[1])}
    if places > 1:
        found["column"] = equal_blocks("column", shape[1], shape[1] // places)
    return found


def whole_matrix(shape: Sequence[int]) -> Blocks:
    """Return the one block that is all of a matrix (out, in)."""
    return Blocks("row", [(0, shape[0])])


def block_sums(found: Mapping[Side, Sums], blocks: Blocks) -> Sums:
    """Return the three sums of every block, (pairs, blocks), from those of every row and column.

    Arguments:
        found: By side, (pairs, vectors).
        blocks: Of that matrix.

    Example:
        >>> rows = Sums(*(torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.float64) for _ in range(3)))
        >>> block_sums({"row": rows}, Blocks("row", [(0, 2), (2, 3)])).aa.tolist()
        [[3.0, 4.0]]
    """
    if all(stop == start + 1 for start, stop in blocks.bounds):
        return Sums(*(each[:, [start for start, _ in blocks.bounds]] for each in found[blocks.side]))
    return Sums(*(_added(each, blocks.bounds) for each in found[blocks.side]))


def _added(sums: Tensor, bounds: Sequence[tuple[int, int]]) -> Tensor:
    if sums.device.type != "cpu":
        return torch.stack([sums[:, start:stop].sum(1) for start, stop in bounds], 1)
    given = sums.numpy()  # NumPy adds on one thread, and a pair's as it would alone
    with np.errstate(all="ignore"):  # what is not finite is noticed later
        return torch.stack([torch.from_numpy(given[:, start:stop].sum(1)) for start, stop in bounds], 1)


def error_unit(shape: Sequence[int], blocks: Blocks) -> int:
    """Return how many roundings a sum over a block has at most: those of a row or column, and those of adding these."""
    return shape[blocks.side == "row"] + max(stop - start for start, stop in blocks.bounds)


def checked_axes(axes: object) -> list[Axis]:
    """Return the axes as a list.

    Raises:
        OptionError: There is another.
    """
    if not isinstance(axes, str | Sequence):
        raise OptionError(f"axes is {axes!r}; choose one or several of {', '.join(map(repr, ALL_AXES))}")
    chosen: list[Axis] = []
    for axis in [axes] if isinstance(axes, str) else axes:
        if axis not in ALL_AXES:
            raise OptionError(f"axis is {axis!r}; choose one of {', '.join(map(repr, ALL_AXES))}")
        chosen.append(axis)
    return chosen


def stacked(before: object, after: object) -> tuple[object, object, dict[Axis, Blocks]]:
    """Return two stacks of experts (experts, out, in) as two matrices (experts·out, in), and the experts' blocks."""
    shapes = [tuple(getattr(each, "shape", ())) for each in (before, after)]
    if len(shapes[0]) != 3 or shapes[0] != shapes[1] or 0 in shapes[0]:
        return before, after, {}
    experts, out, _ = shapes[0]
    flat = [each.reshape(experts * out, -1) for each in (before, after)]  # type: ignore[attr-defined]
    return flat[0], flat[1], {"expert": equal_blocks("row", experts * out, experts)}


def needed(axis: Axis, blocks: Blocks | None) -> Blocks:
    """Return the blocks, or raise where there are none."""
    if not isinstance(blocks, Blocks):
        many = " or a stack (experts, out, in)" if axis == "expert" else ", as head_blocks returns them"
        raise OptionError(f'axis is {axis!r}, and blocks is {blocks!r}; pass blocks=Blocks("row", [(0, 64), …]){many}')
    return blocks
