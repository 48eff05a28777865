"""How much every row or column of a weight matrix changed: in magnitude (ΔM) and in direction (ΔD).

With d = b − a, for a vector a before and b after,

    ‖b‖ − ‖a‖ = (2⟨a,d⟩ + ‖d‖²) / (‖a‖ + ‖b‖)
    1 − cos(a, b) = (‖d‖² − (‖b‖ − ‖a‖)²) / (2 ‖a‖ ‖b‖),

so three sums a vector are enough: ⟨a,a⟩, ⟨a,d⟩ and ⟨d,d⟩, made by ``sums`` in float64, for rows and columns in one
pass. 1 − cos itself has no correct digit in float32 at ΔD = 1e-9.

The sums come with a bound on their error. A vector whose result the bound does not vouch for (rescaled but hardly
turned, turned but hardly rescaled, one end far shorter than the other) is done again, alone, in the slower way of
``_magnitude`` and ``_direction``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from deltaw.adapters.checks import public
from deltaw.adapters.errors import NonFiniteError, OptionError, ShapeError
from deltaw.analysis.measures.built import Built, rows_of
from deltaw.analysis.measures.compensated import difference_of_squares
from deltaw.analysis.measures.matrix import Matrix, matrix
from deltaw.analysis.measures.sums import AXES, Axis, Sums, sums
from deltaw.analysis.printable import html_table

__all__ = ["AXES", "Axis", "Change", "change", "changes"]

_TOLERANCE = 1e-6  # what the error bound of the three sums has to vouch for; the promise is 1e-5
_UNIT = 2.0**-53  # half a unit in the last place of float64
_SQUARES = (1e-200, 1e300)  # float64 weights only: outside, squares lose digits or overflow
_AGAIN = 32767  # elements in a block of vectors done again; as in ``sums``, torch splits what has more


@dataclass(frozen=True, eq=False)
class Change:
    """The change of every vector of one matrix along one axis, and the means.

    Arguments:
        axis: "row" or "column".
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
            ("undefined", self.undefined),
            ("nonfinite", self.nonfinite),
        ]
        return html_table(f"Change of {len(self.magnitude)} vectors, axis {self.axis}", rows)


@public
def change(before: Matrix, after: Matrix, axis: Axis, *, allow_nonfinite: bool = False) -> Change:
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
        axis: "row" for one value per output feature (W[i, :]), "column" for one per input feature (W[:, j]).
        allow_nonfinite: Go on where a vector holds NaN or infinity, and count it in ``nonfinite``.

    Returns:
        A `Change`, its vectors of length out for "row" and in for "column".

    Raises:
        OptionError: ``axis`` is neither, or a matrix is not a dense floating tensor.
        ShapeError: The two differ in shape, are not matrices, or are empty.
        NonFiniteError: A vector holds NaN or infinity, and ``allow_nonfinite`` is not set.

    Source:
        DoRA, equations 3 and 4 (one magnitude per column); BoRA, equations 5 and 6 (rows and columns).

    Example:
        >>> before = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
        >>> after = torch.tensor([[6.0, 8.0], [0.0, 1.0]])  # row 0 doubled, row 1 turned by 90 degrees
        >>> found = change(before, after, axis="row")
        >>> found.magnitude.tolist(), found.direction.tolist()
        ([5.0, 0.0], [0.0, 1.0])
        >>> found.delta_m, found.delta_d
        (2.5, 0.5)
    """
    return changes(before, after, axes=(axis,), allow_nonfinite=allow_nonfinite)[axis]


@public
@torch.no_grad()
def changes(
    before: Matrix, after: Matrix, axes: Sequence[Axis] = AXES, *, allow_nonfinite: bool = False
) -> dict[Axis, Change]:
    """Return the change along several axes from one pass over the two matrices; else as `change`.

    Arguments:
        before, after, allow_nonfinite: As in `change`.
        axes: The axes wanted, "row", "column" or a sequence of them.

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
    before, after, axes = _checked(before, after, axes)
    if before.device.type == "mps":
        before = before.cpu()
    after = after.to(before.device)
    if before.stride(0) < before.stride(1):  # stored transposed: its columns are the contiguous rows
        turned: dict[Axis, Axis] = {"row": "column", "column": "row"}
        found = {turned[axis]: of for axis, of in sums(before.T, after.T, [turned[axis] for axis in axes]).items()}
    else:
        found = sums(before, after, axes)
    return changes_of_sums(before, after, {axis: found[axis] for axis in axes}, allow_nonfinite=allow_nonfinite)


def changes_of_sums(
    before: Tensor | Built, after: Tensor | Built, found: Mapping[Axis, Sums], *, allow_nonfinite: bool = False
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

    def __init__(self, pairs: Sequence[tuple[Tensor | Built, Tensor | Built]], found: Mapping[Axis, Sums]) -> None:
        self._pairs, self._found = pairs, found
        self._settled: dict[Axis, _OfSums] = {}

    @torch.no_grad()
    def of(self, pair: int, axes: Sequence[Axis], *, allow_nonfinite: bool = False) -> dict[Axis, Change]:
        """Return the change of one of the pairs along some axes.

        Raises:
            NonFiniteError: A vector holds NaN or infinity, and ``allow_nonfinite`` is not set.
        """
        for axis in axes:
            if axis not in self._settled:
                self._settled[axis] = _of_sums(*self._pairs[0], axis, self._found[axis])
        before, after = self._pairs[pair]
        return {axis: _change(before, after, axis, self._settled[axis], pair, allow_nonfinite) for axis in axes}

    def looked(self, pair: int) -> bool:
        """Return whether the sums of one of the pairs were not enough, so that `of` has looked at its matrices."""
        return not all(found.settled[pair] for found in self._settled.values())


def checked_axes(axes: object) -> list[Axis]:
    """Return the axes as a list.

    Raises:
        OptionError: There is another.
    """
    if not isinstance(axes, str | Sequence):
        raise OptionError(f"axes is {axes!r}; choose one or both of {', '.join(map(repr, AXES))}")
    chosen: list[Axis] = []
    for axis in [axes] if isinstance(axes, str) else axes:
        if axis not in AXES:
            raise OptionError(f"axis is {axis!r}; choose one of {', '.join(map(repr, AXES))}")
        chosen.append(axis)
    return chosen


def _checked(before: object, after: object, axes: object) -> tuple[Tensor, Tensor, list[Axis]]:
    """Return the two matrices as tensors and the axes as a list, or raise."""
    chosen = checked_axes(axes)
    first, second = matrix("before", before), matrix("after", after)
    if first.shape != second.shape:
        raise ShapeError(
            f"before has shape {tuple(first.shape)} and after has shape {tuple(second.shape)}; "
            "pass one matrix at two steps"
        )
    return first, second, chosen


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


def _of_sums(before: Tensor | Built, after: Tensor | Built, axis: Axis, found: Sums) -> _OfSums:
    """Put magnitudes and directions together from the sums: ``_defined`` by a compiled loop where there is one."""
    if found.aa.device.type != "cpu":
        defined = _defined(before, after, axis, found)
        settled = (defined[2] & defined[3]).all(1)
        return _OfSums(*defined, _means(defined[0]), _means(defined[1]), settled.cpu().tolist())
    from deltaw.adapters.compiled.changes import put_together  # a quarter of a second, for those who want no changes

    squares = _SQUARES if torch.float64 in (before.dtype, after.dtype) else None
    magnitude, direction, which, about = put_together(*found, _unit(before, axis), _TOLERANCE, squares)
    delta_m, delta_d, ones = about.T.tolist()
    masks = (which & 1) != 0, (which & 2) != 0
    return _OfSums(magnitude, direction, *masks, delta_m, delta_d, [one == 1 for one in ones])


def _unit(matrix: Tensor | Built, axis: Axis) -> float:
    # A sum of n products has an error of at most n·unit·Σ|products|, and Σ|a_j d_j| ≤ ‖a‖‖d‖ (Cauchy and Schwarz).
    return (matrix.shape[1 if axis == "row" else 0] + 8) * _UNIT


def _defined(
    before: Tensor | Built, after: Tensor | Built, axis: Axis, found: Sums
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return magnitude, direction, and of which of each the error bound is small enough, all (pairs, vectors)."""
    aa, ad, dd = found
    grown = 2 * ad + dd  # ‖b‖² − ‖a‖²
    bb = (aa + grown).clamp_(min=0)
    a_norm, b_norm = aa.sqrt(), bb.sqrt()
    magnitude = (grown / (a_norm + b_norm)).abs_()
    turned = dd - magnitude**2  # 2‖a‖‖b‖(1 − cos)
    direction = (turned / (2 * a_norm * b_norm)).clamp_(max=2.0)
    unit = _unit(before, axis)
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
    before: Tensor | Built, after: Tensor | Built, axis: Axis, found: _OfSums, pair: int, allow_nonfinite: bool
) -> Change:
    """Return the change of a pair; do the vectors again that the sums have not settled."""
    magnitude, direction = found.magnitude[pair], found.direction[pair]
    delta_m, delta_d, undefined, nonfinite = found.delta_m[pair], found.delta_d[pair], 0, 0
    if not found.settled[pair]:
        magnitude, direction = magnitude.clone(), direction.clone()
        for index, a, b in _vectors(before, after, axis, ~found.magnitude_settled[pair]):
            magnitude[index] = _magnitude(a, b)
        for index, a, b in _vectors(before, after, axis, ~found.direction_settled[pair]):
            direction[index] = _direction(a, b)  # all with zeros, NaN or infinity are among them
            broken = ~(a.top.isfinite() & b.top.isfinite())
            if bool(broken.any()) and not allow_nonfinite:
                first = int(broken.nonzero()[0, 0])
                names = [name for name, t in (("before", a), ("after", b)) if not bool(t.top[first].isfinite())]
                raise NonFiniteError(
                    f"NaN or infinity in {' and in '.join(names)}, {axis} {int(index[first])}; "
                    "repair the weights, or pass allow_nonfinite=True to leave such vectors out"
                )
            magnitude[index[broken]] = torch.nan
            nonfinite += int(broken.sum())
            undefined += int((~broken & ((a.top == 0) != (b.top == 0))).sum())
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


class _Scaled(NamedTuple):
    """Vectors times a power of two each, which is exact and keeps squares within float64."""

    vectors: Tensor  # (vectors, length), largest entry in [½, 1), or all 0
    scale: Tensor  # (vectors,), what they were multiplied by
    top: Tensor  # (vectors,), the largest absolute value before that; NaN if there is one


def _vectors(
    before: Tensor | Built, after: Tensor | Built, axis: Axis, wanted: Tensor
) -> Iterator[tuple[Tensor, _Scaled, _Scaled]]:
    """Yield the wanted vectors, a block at a time, with their indices."""
    if axis == "column":
        before, after = _turned(before), _turned(after)
    places, block = wanted.nonzero()[:, 0], max(1, _AGAIN // before.shape[1])
    for start in range(0, len(places), block):
        index = places[start : start + block]
        yield index, _scaled(_take(before, index)), _scaled(_take(after, index))


def _take(matrix: Tensor | Built, index: Tensor) -> Tensor:
    return matrix.take(index) if isinstance(matrix, Built) else rows_of(matrix, index)


def _turned(matrix: Tensor | Built) -> Tensor | Built:
    return matrix.transposed() if isinstance(matrix, Built) else matrix.T


def _scaled(vectors: Tensor) -> _Scaled:
    top = vectors.abs().amax(1)
    exponent = torch.frexp(top).exponent.long()
    scale = ((1023 - exponent).clamp(1, 2046) << 52).view(torch.float64)  # 2^−exponent from the bits, within float64
    return _Scaled(vectors * scale[:, None], scale, top)


def _magnitude(a: _Scaled, b: _Scaled) -> Tensor:
    """Return |‖b_i‖ − ‖a_i‖| for every row i, from ‖b‖² − ‖a‖² summed in twice the digits."""
    scale = torch.minimum(a.scale, b.scale)
    x, y = (t.vectors * (scale / t.scale)[:, None] for t in (a, b))
    total = x.square().sum(1).sqrt() + y.square().sum(1).sqrt()
    return torch.where(total == 0, 0.0, (difference_of_squares(x, y) / total).abs() / scale)


def _direction(a: _Scaled, b: _Scaled) -> Tensor:
    """Return 1 − cos(a_i, b_i) = ½‖a_i/‖a_i‖ − b_i/‖b_i‖‖² for every row i; 0 for two zero rows, NaN for one."""
    x, y = (t.vectors / t.vectors.square().sum(1, keepdim=True).sqrt() for t in (a, b))  # 0/0 is the NaN wanted
    apart = ((x - y).square().sum(1) / 2).clamp(max=2.0)
    return torch.where((a.top == 0) & (b.top == 0), 0.0, apart)
