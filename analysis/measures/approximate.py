"""The singular values that hold most of an update's energy, and how much they leave out.

With Q an orthonormal basis of X, GX, G²X, … for a random X and G = ΔWᵀΔW (a block Krylov method), the singular values
θ_i^½ of ΔW Q are at most ΔW's own, and

    Σ_i (σ_i² − θ_i) = ‖ΔW‖_F² − ‖ΔW Q‖_F² = error · ‖ΔW‖_F²,        each term ≥ 0,

with all σ_i counted and θ_i = 0 beyond the basis. So the known Frobenius norm tells the error, with nothing estimated:
no σ_i² is off by more than error·‖ΔW‖_F², nor are all together.

Source: Halko, Martinsson, Tropp 2011, section 4.3 (finding the range with random vectors, until the error is small
enough), with Krylov's blocks in the place of power steps (Musco, Musco 2015).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deltaw.adapters.errors import OptionError
from deltaw.analysis.measures.krylov import BlockKrylov, in_float32, random_rows
from deltaw.analysis.measures.routes import SMALL, Floor, Found, floor_at, relative_tolerance
from deltaw.analysis.measures.sizes import squared_norm
from deltaw.analysis.measures.thin import times_thin
from deltaw.analysis.measures.threads import one_thread, parts_of, side_by_side

_BLOCK = 16  # vectors at once
_BASIS = 3  # the largest basis is this part of the smaller side; beyond it, all of the spectrum comes as fast


def allowed_error(value: object) -> float:
    """Return the error that may be made, as a share of ‖ΔW‖_F².

    Raises:
        OptionError: It is no number between 0 and 1.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise OptionError(
            f"approximate is {value!r}; choose the share of ‖ΔW‖_F² that may be left out, above 0 and below 1, as 0.01"
        )
    return float(value)


def approximated(update: Tensor, allowed: float, floor: Floor = 0.0) -> Found | None:
    """Return the singular values that hold all but a share of the energy, or ``None`` where these are too many.

    Arguments:
        update: ΔW (out, in), finite.
        allowed: The share of ‖ΔW‖_F² that may be left out.
        floor: The noise floor, see `of_dense`.
    """
    if min(update.shape) < SMALL:
        return None
    whole, scale = squared_norm(update)
    if whole == 0:
        return None
    scaled = update if scale == 1.0 else update.double() / scale
    with one_thread():
        product, n, small = in_float32(scaled, math.sqrt(whole))
        blocks = n // (_BASIS * _BLOCK)
        krylov = BlockKrylov(product, random_rows(_BLOCK, n, update), blocks)
        for _ in range(blocks):
            krylov.grow()
            values, coordinates, _ = krylov.ritz()
            held = values.cumsum(0) * small**2
            if float(held[-1]) < (1 - allowed) * whole:
                continue
            count = min(len(held), int((held < (1 - allowed) * whole).sum()) + _BLOCK)
            found = _measured(scaled, krylov.vectors(coordinates[:, :count]))
            error = max(0.0, 1 - float(found.square().sum()) / whole)
            if error <= allowed:
                first = float(found[0])
                tolerance = max(relative_tolerance(update) * first, floor_at(floor, first * scale) / scale)
                return Found(found * scale, tolerance * scale, "krylov", error)
    return None


def _measured(matrix: Tensor, vectors: Tensor) -> Tensor:
    """Return the singular values of A on the span of some vectors (c, n), in float64, without squares."""
    basis = torch.linalg.qr(vectors.T).Q  # (n, c)
    narrow = matrix if matrix.shape[1] == len(basis) else matrix.T
    image = side_by_side(lambda rows: times_thin(rows.double(), basis), parts_of(narrow), matrix)
    values: Tensor = torch.linalg.svdvals(torch.linalg.qr(torch.cat(image), mode="r").R)
    return values.cpu()
