"""How much every row or column of a weight matrix changed, or all of it: in magnitude (ΔM) and in direction (ΔD).

With d = b − a, for a vector a before and b after,

    ‖b‖ − ‖a‖ = (2⟨a,d⟩ + ‖d‖²) / (‖a‖ + ‖b‖)
    1 − cos(a, b) = (‖d‖² − (‖b‖ − ‖a‖)²) / (2 ‖a‖ ‖b‖),

so three sums a vector are enough: ⟨a,a⟩, ⟨a,d⟩ and ⟨d,d⟩, made by ``sums`` in float64, for rows and columns in one
pass, and added up for vectors of many rows or columns (``blocks``). 1 − cos itself has no correct digit in float32 at
ΔD = 1e-9.

The sums come with a bound on their error. A vector whose result the bound does not vouch for (rescaled but hardly
turned, turned but hardly rescaled, one end far shorter than the other) is done again, alone, in a slower
way (``again``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from deltaw.adapters.checks import public
from deltaw.adapters.errors import NonFiniteError, ShapeError
from deltaw.analysis.measures.again import blocks_again, directions_together, rows_again
from deltaw.analysis.measures.blocks import (
    ALL_AXES,
    Axis,
    Blocks,
    block_sums,
    checked_axes,
    error_unit,
    needed,
    stacked,
    whole_matrix,
)
from deltaw.analysis.measures.built import Built
from deltaw.analysis.measures.matrix import Matrix, matrix
from deltaw.analysis.measures.sums import SIDES, Side, Sums, sums
from deltaw.analysis.printable import html_table

__all__ = ["ALL_AXES", "AXES", "Axis", "Change", "change", "changes"]

AXES = SIDES  # those of the papers, and what is measured unless others are asked for

_TOLERANCE = 1e-6  # what the error bound of the three sums has to vouch for; the promise is 1e-5
_UNIT = 2.0**-53  # half a unit in the last place of float64
_SQUARES = (1e-200, 1e300)  # float64 weights only: outside, squares lose digits or overflow


@dataclass(frozen=True, eq=False)
class Change:
    """The change of every vector of one matrix along one axis, and the means.

    Arguments:
        axis: "row", "column", "matrix", "head", "expert" or "entry".
        magnitude: |‖b_i‖ − ‖a_i‖| for every vector i, (vectors,) in float64, on the CPU.
        direction: 1 − cos(a_i, b_i) for every vector i, (vectors,) in float64, in [0, 2]; 0 where both vectors are
            zero, NaN where exactly one is.
        delta_m: ΔM, the mean of ``magnitude``.
        delta_d: ΔD, the mean of ``direction`` over the vectors where it is defined; NaN where it is for none.
        undefined: The number of vectors that are zero at exactly one of the two steps.
        nonfinite: The number of vectors with NaN or infinity at either step. They are NaN in ``magnitude`` and
            ``direction`` and left out of both means.
    """

    axis: Axis
    magnitude: Tensor = field(repr=False)
    direction: Tensor = field(repr=False)
    delta_m: float
    delta_d: float
    undefined: int
    nonfinite: int

    def _repr_html_(self) -> str:
        rows = [
            ("ΔM", self.delta_m),
            ("ΔD", self.delta_d),
            ("vectors without a direction", self.undefined),
            ("vectors with NaN or infinity", self.nonfinite),
        ]
        count = len(self.magnitude)
        return html_table(f"Change of {count} vector{'s' * (count != 1)}, axis {self.axis}", rows)


@public
def change(
    before: Matrix, after: Matrix, axis: Axis, *, blocks: Blocks | None = None, allow_nonfinite: bool = False
) -> Change:
    r"""Return the magnitude and direction change of every vector along one axis.

        magnitude_i = |‖b_i‖ − ‖a_i‖|,    direction_i = 1 − cos(a_i, b_i),    ΔM, ΔD = their means

    The relative error is at most 1e-5 in every magnitude, however much of ‖b‖ − ‖a‖ cancels (down to 1e-24 of the
    norms), and in every direction of 1e-12 or more, and so in ΔM and ΔD. Smaller directions are off by at most
    1e-11·√direction + 1e-28. This holds for every floating dtype and whatever the size of the numbers; a norm beyond
    float64's range is infinity. Swapped arguments give the same up to rounding, equal vectors exactly 0.

    Arguments:
        before, after: The matrix at two steps, (out, in), tensors or NumPy arrays of any floating dtype; 16 bits are
            widened first. On an
            accelerator the work is done there, except on one without float64 (mps).
        axis: "row" for one value per output feature (W[i, :]), "column" for one per input feature (W[:, j]), "matrix"
            for one of all entries as one vector, whose norm is Frobenius'. "head" and "expert" for one of each of the
            ``blocks``; without them, "expert" takes a stack (experts, out, in). Of a convolution's matrix
            (out, in·k…) "column" and "entry" with ``blocks``, as ``measures.blocks.kernel_blocks`` returns them.
        blocks: Which rows or columns a head has, as `head_blocks` returns them, or an expert.
        allow_nonfinite: Go on where a vector holds NaN or infinity, and count it in ``nonfinite``.

    Returns:
        A `Change`, its vectors of length out for "row", in for "column", 1 for "matrix", else one per block.

    Raises:
        OptionError: ``axis`` is none of these, or lacks its blocks, or a matrix is not a dense floating tensor.
        ShapeError: The two differ in shape, are not matrices, or are empty, or a block goes beyond them.
        NonFiniteError: A vector holds NaN or infinity, and ``allow_nonfinite`` is not set.

    Source:
        DoRA, equations 3 and 4 (one magnitude per column); BoRA, equations 5 and 6 (rows and columns); MAP (Si et al.
        2025, arXiv 2505.23094: the matrix as one vector).

    Example:
        >>> before = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
        >>> after = torch.tensor([[6.0, 8.0], [0.0, 1.0]])  # row 0 doubled, row 1 turned by 90 degrees
        >>> found = change(before, after, axis="row")
        >>> found.magnitude.tolist(), found.direction.tolist()
        ([5.0, 0.0], [0.0, 1.0])
        >>> found.delta_m, found.delta_d
        (2.5, 0.5)
        >>> change(before, after, axis="matrix").magnitude.shape
        torch.Size([1])
    """
    given = {} if blocks is None else {axis: blocks}
    return changes(before, after, axes=(axis,), blocks=given, allow_nonfinite=allow_nonfinite)[axis]


@public
@torch.no_grad()
def changes(
    before: Matrix,
    after: Matrix,
    axes: Sequence[Axis] = AXES,
    *,
    blocks: Mapping[Axis, Blocks] | None = None,
    allow_nonfinite: bool = False,
) -> dict[Axis, Change]:
    """Return the change along several axes from one pass over the two matrices; else as `change`.

    Arguments:
        before, after, allow_nonfinite: As in `change`.
        axes: The axes wanted, one or a sequence of them.
        blocks: Those of "head" and "expert", by axis.

    Returns:
        {axis: `Change`} in the order of ``axes``.

    Raises:
        As `change`.

    Source:
        As `change`.

    Example:
        >>> found = changes(torch.eye(2), 2 * torch.eye(2))
        >>> {axis: found[axis].delta_m for axis in found}
        {'row': 1.0, 'column': 1.0}
    """
    before, after, axes, blocks = _checked(before, after, axes, blocks or {})
    if before.device.type == "mps":
        before = before.cpu()
    after = after.to(before.device)
    if before.stride(0) < before.stride(1):  # stored transposed: its columns are the contiguous rows
        turned = sums(before.T, after.T, SIDES)
        found: dict[Side, Sums] = {"row": turned["column"], "column": turned["row"]}
    else:
        found = sums(before, after, SIDES)
    stacked = {side: Sums(*(t[None] for t in of)) for side, of in found.items()}
    return PairChanges([(before, after)], stacked).of(0, axes, blocks=blocks, allow_nonfinite=allow_nonfinite)


def changes_of_sums(
    before: Tensor | Built, after: Tensor | Built, found: Mapping[Side, Sums], *, allow_nonfinite: bool = False
) -> dict[Axis, Change]:
    """Return the change along the axes that there are sums of; else as `changes`.

    Arguments:
        before, after: The matrix at two steps, looked at only where the sums are not enough.
        found: Their sums, by axis.
        allow_nonfinite: As in `change`.
    """
    stacked = {axis: Sums(*(t[None] for t in of)) for axis, of in found.items()}
    return PairChanges([(before, after)], stacked).of(0, list(found), allow_nonfinite=allow_nonfinite)


class PairChanges:
    """The changes of many pairs, put together from their sums at once: those of each pair alone, to the bit.

    Arguments:
        pairs: The matrix at two steps, each, looked at only where the sums are not enough.
        found: Their sums by axis, (pairs, vectors).
    """

    def __init__(self, pairs: Sequence[tuple[Tensor | Built, Tensor | Built]], found: Mapping[Side, Sums]) -> None:
        self._pairs, self._found = pairs, found
        self._settled: dict[Axis, _OfSums] = {}

    @torch.no_grad()
    def of(
        self,
        pair: int,
        axes: Sequence[Axis],
        *,
        blocks: Mapping[Axis, Blocks] | None = None,
        allow_nonfinite: bool = False,
    ) -> dict[Axis, Change]:
        """Return the change of one of the pairs along some axes.

        Arguments:
            pair: Which of them.
            axes: The axes.
            blocks: Those of "head" and "expert", by axis: of all pairs the same.
            allow_nonfinite: As in `change`.

        Raises:
            NonFiniteError: A vector holds NaN or infinity, and ``allow_nonfinite`` is not set.
        """
        before, after = self._pairs[pair]
        return {axis: self._of(before, after, axis, blocks or {}, pair, allow_nonfinite) for axis in axes}

    def _of(
        self,
        before: Tensor | Built,
        after: Tensor | Built,
        axis: Axis,
        blocks: Mapping[Axis, Blocks],
        pair: int,
        allow_nonfinite: bool,
    ) -> Change:
        own = whole_matrix(before.shape) if axis == "matrix" else blocks.get(axis)
        if axis not in self._settled:
            if axis in ("row", "column") and own is None:
                found = self._found[axis]
            else:
                found = block_sums(self._found, needed(axis, own))
            self._settled[axis] = _of_sums(*self._pairs[0], axis, own, found)
            if own is None:
                known = self._settled[axis]
                directions_together(self._pairs, axis, found, known.direction_settled, known.direction)
        return _change(before, after, axis, own, self._settled[axis], pair, allow_nonfinite)

    def looked(self, pair: int) -> bool:
        """Return whether the sums of one of the pairs were not enough, so that `of` has looked at its matrices."""
        return not all(found.settled[pair] for found in self._settled.values())


def _checked(
    before: object, after: object, axes: object, blocks: Mapping[Axis, Blocks]
) -> tuple[Tensor, Tensor, list[Axis], dict[Axis, Blocks]]:
    """Return the two matrices as tensors, the axes as a list, and the blocks of those that have some, or raise."""
    chosen, own = checked_axes(axes), dict(blocks)
    if chosen == ["expert"] and not own:
        before, after, own = stacked(before, after)
    first, second = matrix("before", before), matrix("after", after)
    if first.shape != second.shape:
        raise ShapeError(
            f"before has shape {tuple(first.shape)} and after has shape {tuple(second.shape)}; "
            "pass one matrix at two steps"
        )
    for axis in chosen:
        if axis in ("head", "expert", "entry"):
            needed(axis, own.get(axis))
        if axis in own:
            own[axis].check(first.shape)
    return first, second, chosen, own


class _OfSums(NamedTuple):
    """What the sums of some pairs say: (pairs, vectors), and for each pair the means and whether all is settled.

    Where it is, the means need no other vector.
    """

    magnitude: Tensor
    direction: Tensor
    magnitude_settled: Tensor
    direction_settled: Tensor
    delta_m: list[float]
    delta_d: list[float]
    settled: list[bool]


def _of_sums(before: Tensor | Built, after: Tensor | Built, axis: Axis, blocks: Blocks | None, found: Sums) -> _OfSums:
    """Put magnitudes and directions together from the sums: ``_defined`` by a compiled loop where there is one."""
    if found.aa.device.type != "cpu":
        defined = _defined(before, after, axis, found, blocks)
        settled = (defined[2] & defined[3]).all(1)
        return _OfSums(*defined, _means(defined[0]), _means(defined[1]), settled.cpu().tolist())
    from deltaw.adapters.compiled.changes import put_together  # a quarter of a second, for those who want no changes

    squares = _SQUARES if torch.float64 in (before.dtype, after.dtype) else None
    magnitude, direction, which, about = put_together(*found, _unit(before, axis, blocks), _TOLERANCE, squares)
    delta_m, delta_d, ones = about.T.tolist()
    masks = (which & 1) != 0, (which & 2) != 0
    return _OfSums(magnitude, direction, *masks, delta_m, delta_d, [one == 1 for one in ones])


def _unit(matrix: Tensor | Built, axis: Axis, blocks: Blocks | None = None) -> float:
    # A sum of n products has an error of at most n·unit·Σ|products|, and Σ|a_j d_j| ≤ ‖a‖‖d‖ (Cauchy and Schwarz).
    roundings = matrix.shape[1 if axis == "row" else 0] if blocks is None else error_unit(matrix.shape, blocks)
    return (roundings + 8) * _UNIT


def _defined(
    before: Tensor | Built, after: Tensor | Built, axis: Axis, found: Sums, blocks: Blocks | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return magnitude, direction, and of which of each the error bound is small enough, all (pairs, vectors)."""
    aa, ad, dd = found
    grown = 2 * ad + dd  # ‖b‖² − ‖a‖²
    bb = (aa + grown).clamp_(min=0)
    a_norm, b_norm = aa.sqrt(), bb.sqrt()
    magnitude = (grown / (a_norm + b_norm)).abs_()
    turned = dd - magnitude**2  # 2‖a‖‖b‖(1 − cos)
    direction = (turned / (2 * a_norm * b_norm)).clamp_(max=2.0)
    unit = _unit(before, axis, blocks)
    grown_error = unit * (2 * a_norm * dd.sqrt() + dd)
    # NaN fails every comparison; with an infinity ``turned`` is ∞ − ∞, with two zero vectors 0/0.
    sound = turned.isfinite() & (unit * aa + grown_error <= _TOLERANCE * bb)
    if torch.float64 in (before.dtype, after.dtype):
        low, high = _SQUARES
        sound &= (aa > low) & (aa < high) & ((dd == 0) | ((dd > low) & (dd < high)))
    magnitude_settled = sound & (grown_error <= _TOLERANCE * grown.abs())
    direction_settled = sound & (7 * unit * dd <= _TOLERANCE * turned)  # ‖b‖ − ‖a‖ is off by 3·unit·‖d‖ at most
    return magnitude, direction, magnitude_settled, direction_settled


def _change(
    before: Tensor | Built,
    after: Tensor | Built,
    axis: Axis,
    blocks: Blocks | None,
    found: _OfSums,
    pair: int,
    allow_nonfinite: bool,
) -> Change:
    """Return the change of a pair; do the vectors again that the sums have not settled."""
    magnitude, direction = found.magnitude[pair], found.direction[pair]
    delta_m, delta_d, undefined, nonfinite = found.delta_m[pair], found.delta_d[pair], 0, 0
    if not found.settled[pair]:
        magnitude, direction = magnitude.clone(), direction.clone()
        sure = found.magnitude_settled[pair], found.direction_settled[pair]
        if blocks is None:
            again = rows_again(before, after, axis, sure, magnitude, direction)
        else:
            again = blocks_again(before, after, blocks, sure, magnitude, direction)
        for index, top_a, top_b in again:
            broken = ~(top_a.isfinite() & top_b.isfinite())
            if bool(broken.any()) and not allow_nonfinite:
                first = int(broken.nonzero()[0, 0])
                names = [name for name, t in (("before", top_a), ("after", top_b)) if not bool(t[first].isfinite())]
                where = "the matrix" if axis == "matrix" else f"{axis} {int(index[first])}"
                raise NonFiniteError(
                    f"NaN or infinity in {' and in '.join(names)}, {where}; "
                    "repair the weights, or pass allow_nonfinite=True to leave such vectors out"
                )
            magnitude[index[broken]] = torch.nan
            nonfinite += int(broken.sum())
            undefined += int((~broken & ((top_a == 0) != (top_b == 0))).sum())
        (delta_m,), (delta_d,) = _means(magnitude[None]), _means(direction[None])
    return Change(
        axis=axis,
        magnitude=magnitude.cpu(),
        direction=direction.cpu(),
        delta_m=delta_m,
        delta_d=delta_d,
        undefined=undefined,
        nonfinite=nonfinite,
    )


def _means(values: Tensor) -> list[float]:
    """Return the mean of every row without its NaN; NumPy sums on one thread, and a row as it would alone."""
    given = values.cpu().numpy()
    missing = np.isnan(given)
    with np.errstate(invalid="ignore"):  # no number is left: NaN
        means: list[float] = (np.where(missing, 0.0, given).sum(1) / (~missing).sum(1)).tolist()
    return means
