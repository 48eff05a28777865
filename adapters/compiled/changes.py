"""The compiled loop that puts the changes of many vectors together from their sums; see ``compiled.loops``.

A change is a dozen operations on three numbers. Torch goes through all vectors once for each of them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deltaw.adapters.compiled.lanes import load, plus, total, zeros
from deltaw.adapters.compiled.loops import compiled_as_written, inlined, run

_ALONE = 2**13  # vectors below which one thread is faster


def put_together(
    aa: Tensor, ad: Tensor, dd: Tensor, unit: float, tolerance: float, squares: tuple[float, float] | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return magnitudes, directions, which of them are sure, and what is said of each pair.

    ``analysis.measures.change`` defines them.

    Arguments:
        aa, ad, dd: ⟨a,a⟩, ⟨a,d⟩ and ⟨d,d⟩, (pairs, vectors) in float64, on the CPU.
        unit: The relative error of a sum.
        tolerance: What the error bound has to vouch for.
        squares: Between which sums of squares have all their digits; ``None`` where all have.

    Returns:
        (pairs, vectors) twice; the same in int64, 1 where the error bound vouches for the magnitude plus 2 where it
        does for the direction; and (pairs, 3): the mean magnitude, the mean direction, and 1 where the bound vouches
        for all vectors of the pair, else 0, and then the means say nothing.
    """
    sums = [t.contiguous() for t in (aa, ad, dd)]
    magnitude, direction = (torch.empty_like(sums[0]) for _ in range(2))
    settled, about = torch.empty_like(sums[0], dtype=torch.int64), sums[0].new_empty(len(aa), 3)
    low, high = squares or (-math.inf, math.inf)
    bounds = torch.tensor([unit, tolerance, low, high], dtype=torch.float64)
    step = len(aa) if aa.numel() < _ALONE else 1
    run(_changes_of_rows, max(1, step), about.new_empty(0), *sums, bounds, magnitude, direction, settled, about)
    return magnitude, direction, settled, about


@compiled_as_written
def _changes_of_rows(
    own: Any,
    aa: NDArray[Any],
    ad: NDArray[Any],
    dd: NDArray[Any],
    bounds: NDArray[Any],
    magnitude: NDArray[Any],
    direction: NDArray[Any],
    settled: NDArray[Any],
    about: NDArray[Any],
    part: NDArray[Any],
) -> None:
    unit, tolerance, low, high = bounds[0], bounds[1], bounds[2], bounds[3]
    vectors = aa.shape[1]
    for pair in range(own.start, min(own.stop, len(aa))):
        of_aa, of_ad, of_dd, of_m, of_d = aa[pair], ad[pair], dd[pair], magnitude[pair], direction[pair]
        of_settled = settled[pair]
        unsettled = 0
        for j in range(vectors):
            grown = 2 * of_ad[j] + of_dd[j]
            bb = of_aa[j] + grown
            bb = 0.0 if bb < 0 else bb
            a_norm, b_norm = np.sqrt(of_aa[j]), np.sqrt(bb)
            m = abs(np.true_divide(grown, a_norm + b_norm))  # unlike /, it does not look for zeros first
            turned = of_dd[j] - m * m
            d = np.true_divide(turned, 2 * a_norm * b_norm)
            of_m[j], of_d[j] = m, 2.0 if d > 2 else d
            grown_error = unit * (2 * a_norm * np.sqrt(of_dd[j]) + of_dd[j])
            sound = (abs(turned) < np.inf) & (unit * of_aa[j] + grown_error <= tolerance * bb)
            sound &= (of_aa[j] > low) & (of_aa[j] < high)
            sound &= (of_dd[j] == 0) | ((of_dd[j] > low) & (of_dd[j] < high))
            magnitude_settled = sound & (grown_error <= tolerance * abs(grown))
            direction_settled = sound & (7 * unit * of_dd[j] <= tolerance * turned)
            of_settled[j] = magnitude_settled + 2 * direction_settled
            unsettled += not (magnitude_settled & direction_settled)
        about[pair, 0], about[pair, 1], about[pair, 2] = _sum(of_m) / vectors, _sum(of_d) / vectors, unsettled == 0


@inlined
def _sum(row: NDArray[Any]) -> Any:
    whole, found = len(row) - len(row) % 8, zeros(row)
    for j in range(0, whole, 8):
        found = plus(found, load(row, j, row))
    value = total(found)
    for j in range(whole, len(row)):
        value += row[j]
    return value
