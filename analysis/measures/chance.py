"""What directions and weights that have nothing to do with each other share on average: the levels of chance."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from deltaw.adapters.checks import whole_number
from deltaw.adapters.errors import OptionError


def expected_angles(first: int, second: int, size: int) -> NDArray[np.float64]:
    r"""Return where the principal angles of two random subspaces lie on average, by an exact expectation.

    The squared cosines x_i are the eigenvalues of C = AᵀB BᵀA. With k = min(i, j) and m = max(i, j) the expected
    characteristic polynomial is known exactly, as the projection onto a random subspace shrinks volumes independently
    dimension by dimension:

        E det(x I − C) = Σ_l (−1)^l C(k, l) · [m]_l / [n]_l · x^(k−l),    [a]_l = a (a−1) … (a−l+1)

    It is the Jacobi polynomial of degree k for the weight x^(m−k) (1−x)^(n−k−m) on [0, 1]. The angles are
    arccos √x of its zeros. The means of the ordered angles themselves, for which there is no such formula, lie within
    2° of them for n ≥ 64 and within 0.5° for n ≥ 768. Where i + j > n, i + j − n angles are zero, and the others are
    those of the orthogonal complements.

    Arguments:
        first, second: i and j, the dimensions of the two subspaces.
        size: n, the dimension of the space they lie in.

    Returns:
        (min(i, j),) in radians, smallest first.

    Raises:
        OptionError: One of them is no whole number of 1 or more, or a subspace has more dimensions than the space.

    Source:
        Absil, Edelman, Koev 2006, section 2 (the distribution of C); Forrester 2010, "Log-Gases and Random Matrices",
        section 13.2 (the mean characteristic polynomial of the Jacobi ensemble).

    Example:
        >>> [round(float(angle), 1) for angle in np.rad2deg(expected_angles(2, 2, 64))]
        [76.7, 84.5]
    """
    _checked(first, second, size)
    k, m = sorted((first, second))
    shared = max(0, k + m - size)  # directions that both must have
    if shared:
        k, m = size - m, size - k
    if k == 0:
        return np.zeros(shared)
    # The zeros are the eigenvalues of the Jacobi matrix (Golub and Welsch), which loses no digit to a high degree.
    a, b = float(size - k - m), float(m - k)
    degree = np.arange(k)
    total = 2.0 * degree + a + b
    # At degree 0 with a + b = 0 numerator and denominator vanish together; the limit is (b − a)/(a + b + 2).
    centre = np.full(k, (b - a) / (a + b + 2.0))
    centre[1:] = (b * b - a * a) / (total[1:] * (total[1:] + 2.0))
    d, t = degree[1:], total[1:]
    ratio = np.ones(k - 1)  # (d + a + b)/(t − 1), which is 1 at d = 1 whatever a + b
    ratio[1:] = (d[1:] + a + b) / (t[1:] - 1.0)
    beside = np.sqrt(4.0 * d * (d + a) * (d + b) * ratio / (t * t * (t + 1.0)))
    zeros = np.linalg.eigvalsh(np.diag(centre) + np.diag(beside, 1) + np.diag(beside, -1))
    cosines = np.sqrt(np.clip((1.0 + zeros) / 2.0, 0.0, 1.0))
    return np.concatenate([np.zeros(shared), np.arccos(cosines[::-1])])


def expected_similarity(examples: int, features: int, features_second: int | None = None) -> float:
    r"""Return the linear CKA of two matrices of independent normal entries, to first order in 1/n.

        CKA ≈ E⟨K, L⟩ / √(E‖K‖² E‖L‖²) = √( p q / ((n + p)(n + q)) )

    with n examples and p and q features: K and L are Wishart matrices of n − 1 dimensions, E⟨K, L⟩ = (n−1) p q and
    E‖K‖² = (n−1) p (n + p). For square matrices it is ½: weights that have nothing in common are half alike by this
    measure. Weights whose singular values fall off have less by chance.

    Arguments:
        examples: n, how many rows (or columns) are compared.
        features: p, the length of each in the first matrix.
        features_second: q, that in the second; ``None`` for p.

    Raises:
        OptionError: One of them is no whole number of 1 or more.

    Source:
        Murphy, Zylberberg, Fyshe 2024, "Correcting biased centered kernel alignment measures in biological and
        artificial neural networks", section 2; the moments are the Wishart distribution's.

    Example:
        >>> expected_similarity(768, 768), expected_similarity(64, 192)
        (0.5, 0.75)
    """
    n, p = whole_number("examples", examples, 1), whole_number("features", features, 1)
    q = p if features_second is None else whole_number("features_second", features_second, 1)
    return float(np.sqrt(p * q / ((n + p) * (n + q))))


def cosine_spread(rows: int, columns: int) -> float:
    r"""Return the standard deviation of the cosine of two unrelated updates, whose mean is 0.

        E cos² = 1/(out·in)

    It holds for any ranks and spectra: with the directions of one of the two random, A = O₁ Σ O₂ for random rotations
    O₁ and O₂, E[vec(A) vec(A)ᵀ] commutes with all of them, and so is ‖A‖²/(out·in) times the identity. The shape of the
    distribution does depend on the ranks. For large matrices ⟨A, B⟩ = Σ_ij σ_i τ_j x_ij y_ij with independent normal x
    and y, so that

        E cos⁴ / (E cos²)² = 3 + 6/(d_A d_B),    d = (Σσ²)²/Σσ⁴, the participation ratio

    Two adapters that start from the same random A share its span while B moves: then it is about 1/√(out·r).

    Arguments:
        rows, columns: out and in.

    Raises:
        OptionError: One of them is no whole number of 1 or more.

    Source:
        Schur's lemma for the irreducible O(out) × O(in); see Collins, Śniady 2006 for the moments of random rotations.

    Example:
        >>> cosine_spread(100, 400)
        0.005
    """
    return 1.0 / math.sqrt(whole_number("rows", rows, 1) * whole_number("columns", columns, 1))


def sign_spread(rows: int, columns: int) -> float:
    r"""Return the standard deviation of the sign agreement of two unrelated updates without zeros, whose mean is ½.

        1 / (2 √(out·in))

    With the sign of every row and every column of one of them random, the products of two different entries' signs have
    mean 0, so the entries' agreements are uncorrelated, whatever the ranks.

    Arguments, raises:
        As `cosine_spread`.

    Example:
        >>> sign_spread(100, 400)
        0.0025
    """
    return cosine_spread(rows, columns) / 2


def expected_jaccard(first: float, second: float) -> float:
    r"""Return the Jaccard index of two sets of entries that are chosen independently.

        p q / (p + q − p q)

    with p and q the shares of the entries that each holds: the expected size of A ∩ B over that of A ∪ B.

    Arguments:
        first, second: p and q, in [0, 1].

    Returns:
        In [0, 1]; NaN where both are empty.

    Raises:
        OptionError: One is no share.

    Source:
        Jaccard 1912 for the index. Independence of the two masks as the level of chance: "The Path Not Taken"
        (arXiv 2511.08567), which holds the masks of independent runs against a random baseline.

    Example:
        >>> expected_jaccard(0.5, 0.5), expected_jaccard(0.0, 0.5)
        (0.3333333333333333, 0.0)
    """
    for name, value in (("first", first), ("second", second)):
        if not 0 <= value <= 1:
            raise OptionError(f"{name} is {value!r}; pass the share of the entries, from 0 to 1")
    either = first + second - first * second
    return first * second / either if either > 0 else math.nan


def energy_spread(count: int, size: int, participation: float) -> float:
    r"""Return the standard deviation of the share of an update's energy in a random subspace, whose mean is k/n.

        √( 2 (1/d − 1/n) k (1 − k/n) / ((n − 1)(n + 2)) )

    for a subspace of k of n dimensions and an update with participation ratio d = (Σσ²)²/Σσ⁴: the variance of
    tr(M O P Oᵀ) over random rotations O, for M = B Bᵀ/‖B‖² with tr M² = 1/d and a projector P of rank k.

    Arguments:
        count: k.
        size: n.
        participation: d, from 1 to n.

    Raises:
        OptionError: k or n is no whole number of 1 or more, or k is above n.

    Source:
        The second moment of random rotations, as in Collins, Śniady 2006.

    Example:
        >>> round(energy_spread(8, 768, 1.0), 4), energy_spread(8, 768, 768.0)
        (0.0052, 0.0)
    """
    _checked(count, 1, size)
    n, k = float(size), float(count)
    if size == 1:
        return 0.0
    return math.sqrt(max(0.0, 2 * (1 / participation - 1 / n) * k * (1 - k / n) / ((n - 1) * (n + 2))))


def _checked(first: int, second: int, size: int) -> None:
    whole_number("size", size, 1)
    for name, value in (("first", first), ("second", second)):
        if whole_number(name, value, 1) > size:
            raise OptionError(f"{name} is {value}; choose at most {size}, the dimension of the space")
