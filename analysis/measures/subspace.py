"""Which directions an update moves, and how far the directions of two updates agree.

With ΔW = Σ_k σ_k u_k v_kᵀ, the left directions u_k live in the output space and the right ones v_k in the input space.
From factors, ΔW = U V with U = Q_u R_u and Vᵀ = Q_v R_v, they are Q_u P and Q_v G of the small core R_u R_vᵀ = P Σ Gᵀ.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from deltaw.adapters.errors import OptionError, ShapeError
from deltaw.analysis.measures.matrix import Matrix, finite_matrix, from_one_to
from deltaw.analysis.measures.spectrum import Spectrum, spectrum
from deltaw.analysis.measures.threads import one_thread

Side = Literal["left", "right"]
SIDES: tuple[Side, ...] = ("left", "right")

_ORTHONORMAL = 1e-8  # ‖QᵀQ − I‖_F from which on columns do not count as orthonormal


@dataclass(frozen=True, eq=False)
class Directions:
    """The singular vectors of one update whose singular values are above the tolerance, strongest first.

    Arguments:
        left: u_1 … u_k, (out, k), orthonormal columns, float64 on the CPU.
        right: v_1 … v_k, (in, k), orthonormal columns, float64 on the CPU.
        spectrum: All singular values of the update, with the tolerance.
    """

    left: Tensor = field(repr=False)
    right: Tensor = field(repr=False)
    spectrum: Spectrum

    @property
    def count(self) -> int:
        """k, the number of directions."""
        return self.left.shape[1]

    def basis(self, side: Side, rank: int | None = None) -> Tensor:
        """Return the ``rank`` strongest directions of a side, (out or in, rank); ``None`` for all.

        Raises:
            OptionError: There is no such side, or there are fewer directions.
        """
        if side not in SIDES:
            raise OptionError(f"side is {side!r}; choose one of {', '.join(map(repr, SIDES))}")
        columns = self.left if side == "left" else self.right
        if rank is None:
            return columns
        if not from_one_to(self.count, rank):
            choice = f"choose a whole number from 1 to {self.count}" if self.count else "the update is zero"
            raise OptionError(f"rank is {rank!r}, and the update has {self.count} directions; {choice}")
        return columns[:, :rank]


@torch.no_grad()
@one_thread()
def directions(
    update: Matrix | None = None,
    *,
    factors: tuple[Matrix, Matrix] | None = None,
    stored: torch.dtype | None = None,
    weight: Matrix | None = None,
) -> Directions:
    """Return the singular vectors of an update, dense or from its factors.

    Only those whose singular value is above the tolerance of `spectrum`: the others are rounding noise and point
    anywhere. An update of zeros has none. Where singular values are (nearly) equal, their vectors are determined only
    as a span: compare the spans of whole groups of them. A vector's sign is arbitrary.

    Cost: a dense update takes the float64 SVD twice, once for `spectrum`; 0.3 s for 768×768 on one core. Factors of
    rank 8 take a millisecond.

    Arguments:
        update, factors, stored, weight: As in `spectrum`.

    Returns:
        `Directions`.

    Raises:
        As `spectrum`.

    Source:
        Hu et al. 2022 (LoRA), section 7.2.

    Example:
        >>> found = directions(torch.diag(torch.tensor([3.0, 0.0, 1.0])))
        >>> found.count, found.left.abs().T.tolist()
        (2, [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    """
    found = spectrum(update, factors=factors, stored=stored, weight=weight)
    if factors is None:
        return _of_dense(finite_matrix("update", update), found)
    q_u, r_u = torch.linalg.qr(finite_matrix("factors[0]", factors[0]))
    q_v, r_v = torch.linalg.qr(finite_matrix("factors[1]", factors[1]).T.to(q_u.device))
    p, values, g = torch.linalg.svd(r_u @ r_v.T, full_matrices=False)
    return _above(q_u @ p, values, q_v @ g.T, found)


@torch.no_grad()
@one_thread()
def dense_directions(update: Tensor, found: Spectrum) -> Directions:
    """Return `directions` of an update whose spectrum is known."""
    return _of_dense(finite_matrix("update", update), found)


def _of_dense(update: Tensor, found: Spectrum) -> Directions:
    left, values, g = torch.linalg.svd(update, full_matrices=False)
    return _above(left, values, g.T, found)


def _above(left: Tensor, values: Tensor, right: Tensor, found: Spectrum) -> Directions:
    count = int((values > found.tolerance).sum())
    return Directions(left[:, :count].cpu(), right[:, :count].cpu(), found)


@torch.no_grad()
@one_thread()
def overlap(first: Matrix, second: Matrix) -> Tensor:
    r"""Return how much of the span of the first i directions lies in that of the other's first j, for all i and j.

        φ(i, j) = ‖A_iᵀ B_j‖_F² / min(i, j)

    with A_i the first i columns of A. It is 0 where the spans are orthogonal, 1 where one holds the other, and the mean
    of cos² of the principal angles. Two random spans in n dimensions have φ = max(i, j)/n on average.

    Cost: one product, O(n·k·l).

    Arguments:
        first, second: A (n, k) and B (n, l), orthonormal columns in order of weight, as `Directions` holds them.

    Returns:
        φ, (k, l) in float64 on the CPU, each in [0, 1]; φ(i, j) stands at [i − 1, j − 1].

    Raises:
        OptionError: The columns are not orthonormal, or something is not a floating tensor.
        ShapeError: Something is not a matrix, or the two differ in n.
        NonFiniteError: NaN or infinity.

    Source:
        Hu et al. 2022 (LoRA), equation 4. There A and B are the right singular vectors of the factor A of ΔW = B A.
        Those of ΔW, as from `directions`, span the same at the full rank, but are ordered by what the update does.

    Example:
        >>> axes = torch.eye(3, dtype=torch.float64)
        >>> overlap(axes[:, [0, 1]], axes[:, [0, 2]]).tolist()
        [[1.0, 1.0], [1.0, 0.5]]
    """
    first, second = _bases(first, second)
    within = (first.T @ second).square().cumsum(0).cumsum(1)  # (k, l), ‖A_iᵀB_j‖²
    i = torch.arange(1, within.shape[0] + 1)[:, None]
    j = torch.arange(1, within.shape[1] + 1)
    return (within / torch.minimum(i, j)).clamp(max=1.0)


@torch.no_grad()
@one_thread()
def principal_angles(first: Matrix, second: Matrix) -> Tensor:
    r"""Return the principal angles between the spans of two orthonormal bases, smallest first.

        cos θ_m = σ_m(AᵀB), largest first;    sin θ_m = σ_m(B − A AᵀB), smallest first

    cos θ alone has no digit left below θ = 1e-8, sin θ alone none near π/2: θ = atan2(sin θ, cos θ) has an absolute
    error of a few 1e-16 everywhere.

    Cost: O(n·k·l) and two SVDs of the smaller basis' size.

    Arguments:
        first, second: A (n, k) and B (n, l), orthonormal columns.

    Returns:
        θ, (min(k, l),) in float64 on the CPU, in radians, each in [0, π/2].

    Raises:
        As `overlap`.

    Source:
        Björck, Golub 1973 (the cosine and the sine form); Knyazev, Argentati 2002 (the two together).

    Example:
        >>> axes = torch.eye(3, dtype=torch.float64)
        >>> principal_angles(axes[:, [0, 1]], axes[:, [0, 2]]).tolist()
        [0.0, 1.5707963267948966]
    """
    wide, narrow = _bases(first, second)
    if wide.shape[1] < narrow.shape[1]:
        wide, narrow = narrow, wide
    within = wide.T @ narrow
    cosines = torch.linalg.svdvals(within)
    sines = torch.linalg.svdvals(narrow - wide @ within).flip(0)
    return torch.atan2(sines, cosines)


def _bases(first: Matrix, second: Matrix) -> tuple[Tensor, Tensor]:
    """Check two bases and return them in float64 on the CPU."""
    bases = _orthonormal("first", first), _orthonormal("second", second)
    if len(bases[0]) != len(bases[1]):
        shapes = f"{tuple(first.shape)} and second has shape {tuple(second.shape)}"
        raise ShapeError(f"first has shape {shapes}; pass directions of one space, (n, k) and (n, l)")
    return bases


def _orthonormal(name: str, columns: Matrix) -> Tensor:
    wide = finite_matrix(name, columns).cpu()
    gram = wide.T @ wide
    if float(torch.dist(gram, torch.eye(len(gram), dtype=gram.dtype))) > _ORTHONORMAL:
        raise OptionError(
            f"{name}: its columns are not orthonormal in float64; "
            "pass directions(update).left or .right, or torch.linalg.qr(columns).Q"
        )
    return wide
