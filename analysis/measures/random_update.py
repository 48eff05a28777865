"""What a random update has of the geometry against W₀: the levels of chance of rotation and off-principal share."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deltaw.adapters.checks import whole_number
from deltaw.adapters.errors import OptionError
from deltaw.analysis.measures.chance import expected_angles

FIRST_ORDER = 10.0  # degrees up to which first order tells the angle to a few percent


def expected_rotation(k: int, size: int) -> float:
    """Return the largest principal angle of two random subspaces of k dimensions on average, in degrees.

    The last of `expected_angles`. Nearly 90° unless k is a large part of the space.

    Arguments:
        k: The dimension of both.
        size: n, the dimension of the space they lie in.

    Raises:
        As `expected_angles`.

    Example:
        >>> round(expected_rotation(16, 768), 1), expected_rotation(4, 4)
        (89.4, 0.0)
    """
    return float(np.rad2deg(expected_angles(k, k, size)[-1]))


def expected_off_principal(k: int, rows: int, columns: int, sides: str = "both") -> float:
    r"""Return the share of ‖ΔW‖² that an update of independent entries has outside k principal directions on average.

        both: 1 − k²/(out·in),    left: 1 − k/out,    right: 1 − k/in

    Exact for independent entries of one symmetric distribution, whatever U_k and V_k are: by symmetry the mean of
    ΔW_ij ΔW_kl/‖ΔW‖² is 1/(out·in) for an entry with itself and 0 for two.

    Arguments:
        k: The number of directions.
        rows, columns: out and in.
        sides: "both", "left" or "right", as in `deltaw.analysis.measures.off_principal_share.off_principal`.

    Raises:
        OptionError: A number is no whole number of 1 or more, k is larger than both, or there is no such side.

    Example:
        >>> expected_off_principal(16, 64, 64), expected_off_principal(16, 64, 32, "right")
        (0.9375, 0.5)
    """
    for name, size in (("rows", rows), ("columns", columns)):
        _checked(k, whole_number(name, size, 1))
    held = {"both": k * k / (rows * columns), "left": k / rows, "right": k / columns}
    if sides not in held:
        raise OptionError(f"sides is {sides!r}; choose one of {', '.join(map(repr, held))}")
    return 1 - held[sides]


def random_rotation(
    singular_values: ArrayLike, rows: int, columns: int, k: int, norm: float = 1.0, *, draws: int = 64
) -> float:
    r"""Return how far a random update of a given norm turns the leading k subspaces on average, in degrees.

    For an update of independent normal entries of variance τ² = ‖ΔW‖_F²/(out·in), to first order in τ, the tangents
    between the new leading left vectors j ≤ k and the old others i > k are

        p_ij = (σ_j c_ij + σ_i b_ji)/(σ_j² − σ_i²),    c, b ~ N(0, τ²) independent,

    normal with the variance τ² (σ_j² + σ_i²)/(σ_j² − σ_i²)², with σ_i = 0 for i > min(out, in). The largest angle is
    arctan ‖P‖₂, whose mean has no formula: it is that of ``draws`` such matrices, always the same ones. For the right
    vectors the same, with ``columns`` in the place of ``rows``; the larger of the two is returned.

    Arguments:
        singular_values: σ of W₀, (min(out, in),) descending.
        rows, columns: out and in.
        k: The number of directions, below max(out, in).
        norm: ‖ΔW‖_F.
        draws: How many matrices are drawn.

    Returns:
        The angle; NaN where it is above `FIRST_ORDER`, as first order is no longer enough, or where σ_k = σ_{k+1}.

    Raises:
        OptionError: A number is out of its range.

    Source:
        deltaw, from the first order of the singular vectors' perturbation.

    Example:
        >>> values = np.array([4.0, 2.0, 1.0])
        >>> 0.1 < random_rotation(values, 3, 3, 1, norm=0.02) < 0.5
        True
        >>> random_rotation(values, 3, 3, 1, norm=2.0)
        nan
    """
    return turned_by(rotation_rate(singular_values, rows, columns, k, draws=draws) * norm)


def turned_by(tangent: float) -> float:
    """Return the angle in degrees, NaN where first order does not tell it."""
    angle = math.degrees(math.atan(tangent))
    return angle if angle <= FIRST_ORDER else float("nan")


def rotation_rate(singular_values: ArrayLike, rows: int, columns: int, k: int, *, draws: int = 64) -> float:
    """Return the mean tangent of `random_rotation` for an update of norm 1, to be made once a matrix."""
    sigma = np.asarray(singular_values, dtype=np.float64)
    for name, size in (("rows", rows), ("columns", columns)):
        _checked(k, whole_number(name, size, 1))
    if len(sigma) != min(rows, columns):
        raise OptionError(f"singular_values has {len(sigma)} values; pass all {min(rows, columns)}")
    after = float(sigma[k]) if k < len(sigma) else 0.0
    if not float(sigma[k - 1]) > after:
        return float("nan")
    scale = float(sigma[0])
    largest = 0.0
    for size in {rows, columns}:
        if size > k:
            largest = max(largest, _mean_norm(sigma / scale, size, k, whole_number("draws", draws, 1)))
    return largest / scale / math.sqrt(rows * columns)


def _mean_norm(sigma: NDArray[np.float64], size: int, k: int, draws: int) -> float:
    """Return E‖P‖₂ for τ = 1, P (size − k, k)."""
    weak = np.zeros(size - k)
    weak[: len(sigma) - k] = sigma[k:size]
    strong = sigma[:k]
    deviation = np.sqrt(strong**2 + weak[:, None] ** 2) / (strong**2 - weak[:, None] ** 2)  # (size − k, k)
    generator = np.random.default_rng(0)
    draws = max(8, min(draws, 2**22 // deviation.size))
    norms = []
    for _ in range(draws):
        drawn = deviation * generator.standard_normal(deviation.shape)
        thin = drawn if drawn.shape[1] <= drawn.shape[0] else drawn.T
        norms.append(math.sqrt(float(np.linalg.eigvalsh(thin.T @ thin)[-1])))
    return float(np.mean(norms))


def _checked(k: int, size: int) -> None:
    if whole_number("k", k, 1) > size:
        raise OptionError(f"k is {k}; choose at most {size}, the dimension of the space")
