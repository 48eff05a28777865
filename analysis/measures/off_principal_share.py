"""Which part of an update lies outside the leading singular subspaces of the weights that it updates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from deltaw.adapters.checks import public
from deltaw.adapters.errors import OptionError, ShapeError
from deltaw.analysis.measures.factors import two_factors
from deltaw.analysis.measures.gram import power_of_two
from deltaw.analysis.measures.matrix import Matrix, finite, finite_matrix
from deltaw.analysis.measures.principal import Count, Principal
from deltaw.analysis.measures.principal_rotation import same_shape
from deltaw.analysis.measures.threads import one_thread

Sides = Literal["both", "left", "right"]


@dataclass(frozen=True)
class Outside:
    """The shares of ‖ΔW‖_F² outside W₀'s leading subspaces, each in [0, 1].

    Arguments:
        both: Outside U_kU_kᵀ · V_kV_kᵀ.
        left: Outside U_kU_kᵀ.
        right: Outside V_kV_kᵀ.
        norm: ‖ΔW‖_F.
    """

    both: float
    left: float
    right: float
    norm: float


@public
@torch.no_grad()
def off_principal(
    before: Matrix | Principal,
    after: Matrix | None = None,
    k: Count = 16,
    *,
    sides: Sides = "both",
    factors: tuple[Matrix, Matrix] | None = None,
) -> float:
    r"""Return the share of ‖ΔW‖_F² that lies outside the leading k singular subspaces of W₀.

        both:   1 − ‖U_kU_kᵀ ΔW V_kV_kᵀ‖_F²/‖ΔW‖_F²
        left:   1 − ‖U_kU_kᵀ ΔW‖_F²/‖ΔW‖_F²
        right:  1 − ‖ΔW V_kV_kᵀ‖_F²/‖ΔW‖_F²

    Not computed as they are written, where a small share would be lost in the difference from 1, but as the norms of
    what is outside: ΔW − U_kU_kᵀΔW, and for both also U_kᵀΔW − U_kᵀΔW V_kV_kᵀ. From factors ΔW = U V without a dense
    ΔW: with U = Q_u R_u and Vᵀ = Q_v R_v, all of it is thin products with Q_u and Q_v and the r×r core R_u R_vᵀ.

    An update of independent entries of mean zero has 1 − k²/(out·in) outside both on average, 1 − k/out and 1 − k/in
    outside the left and the right ones (`deltaw.analysis.measures.random_update.expected_off_principal`): nearly 1, so
    only what lies clearly below it says that an update seeks the principal directions.

    Arguments:
        before: W₀ (out, in), a tensor or NumPy array of any floating dtype; or ``Principal(W₀, k)``, whose k counts.
        after: W' (out, in); ``None`` where there are factors.
        k: As in `rotation`.
        sides: "both", "left" or "right".
        factors: U (out, r) and V (r, in) with ΔW = U V, in the place of W'.

    Returns:
        The share, in [0, 1]; NaN where ΔW is zero, or W₀ has no such subspace, as its σ_k and σ_{k+1} are the same.

    Raises:
        OptionError: ``k`` or ``sides`` is out of its range, neither or both of ``after`` and ``factors`` are given, or
            something is no matrix.
        ShapeError: The shapes do not fit.
        NonFiniteError: NaN or infinity.

    Source:
        The measure is deltaw's. "The Path Not Taken" (Zhu et al. 2025, arXiv 2511.08567), section 4.2, counts entries:
        the overlap of the visible mask with the largest entries of W₀'s rank-k part. This is the same question of
        subspaces, without a threshold and without the coordinates.

    Example:
        >>> before = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
        >>> update = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
        >>> [round(off_principal(before, before + update, 1, sides=sides), 4) for sides in ("both", "left", "right")]
        [0.8333, 0.6667, 0.8333]
    """
    if sides not in get_args(Sides):
        raise OptionError(f"sides is {sides!r}; choose one of {', '.join(map(repr, get_args(Sides)))}")
    if (after is None) == (factors is None):
        raise OptionError("pass either after, the weights W', or factors=(U, V) of their update")
    base = before if isinstance(before, Principal) else Principal(before, k)
    if factors is not None:
        left, right = two_factors(factors)
        found = outside_of_factors(base, finite("factors[0]", left), finite("factors[1]", right))
    else:
        new = finite_matrix("after", after)
        same_shape(base.shape, (new.shape[0], new.shape[1]))
        found = outside(base, new.to(base.matrix.device) - base.matrix)
    share: float = getattr(found, sides)
    return share


@one_thread()
def outside(base: Principal, update: Tensor) -> Outside:
    """Return the shares of ΔW (out, in) in float64 that lie outside."""
    scale = power_of_two(update)
    update = update / scale  # no square over- or underflows
    left, right = base.left, base.right
    off_left = update - left @ (left.T @ update)
    off_right = update - (update @ right) @ right.T
    within = left.T @ update  # (k, in)
    beside = within - (within @ right) @ right.T
    return _shares(base, scale, *(float(part.norm()) for part in (update, off_left, off_right, beside)))


@one_thread()
def outside_of_factors(base: Principal, U: Tensor, V: Tensor, scaling: float = 1.0) -> Outside:
    """Return the shares of ΔW = scaling·U V that lie outside, from thin products."""
    if U.shape[1] != V.shape[0] or (U.shape[0], V.shape[1]) != base.shape:
        raise ShapeError(
            f"factors have shapes {tuple(U.shape)} and {tuple(V.shape)}; "
            f"pass (out, r) and (r, in) of weights of shape {base.shape}"
        )
    device = base.matrix.device
    q_u, r_u = torch.linalg.qr(U.to(device).double())
    q_v, r_v = torch.linalg.qr(V.T.to(device).double())
    scales = power_of_two(r_u), power_of_two(r_v)
    core = (r_u / scales[0]) @ (r_v / scales[1]).T * float(scaling != 0)  # nothing under- or overflows
    left, right = base.left, base.right
    off_left = (q_u - left @ (left.T @ q_u)) @ core  # times Q_vᵀ, which keeps norms
    outer = q_v - right @ (right.T @ q_v)
    off_right = core @ outer.T
    beside = (left.T @ q_u) @ core @ outer.T
    size = abs(scaling) * scales[0] * scales[1]
    return _shares(base, size, *(float(part.norm()) for part in (core, off_left, off_right, beside)))


def _shares(base: Principal, scale: float, whole: float, left: float, right: float, beside: float) -> Outside:
    if whole == 0 or not base.defined:
        return Outside(math.nan, math.nan, math.nan, whole * scale)
    both = (left / whole) ** 2 + (beside / whole) ** 2
    shares = [min(1.0, share) for share in (both, (left / whole) ** 2, (right / whole) ** 2)]
    return Outside(shares[0], shares[1], shares[2], whole * scale)
