"""The Matthews correlation of labels and predictions, the φ of two binary variables, and its standard error."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deltaw.adapters.errors import OptionError

Array = NDArray[np.float64]


def matthews(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Return φ, Pearson's correlation of two variables of zeros and ones; NaN where one of them is constant.

    Raises:
        OptionError: They differ in length, or hold something else than zeros and ones.

    Example:
        >>> matthews([0, 0, 1, 1], [0, 1, 1, 1]).__round__(4)
        0.5774
    """
    x, y = _scores(labels, predictions)
    return float(np.mean(x * y))


def influence(labels: ArrayLike, predictions: ArrayLike) -> Array:
    """Return how much each sentence moves φ, (n,); their mean is 0.

        ψ_i = x_i y_i − ½ φ (x_i² + y_i²),    Var(φ) ≈ Σ ψ_i² / n²

    with x and y the labels and predictions minus their mean, over their standard deviation. Two models that are scored
    on the same sentences have Var(φ₁ − φ₂) ≈ Σ (ψ₁_i − ψ₂_i)² / n², which takes the pairing into account.

    Returns:
        NaN throughout where labels or predictions are constant.

    Raises:
        OptionError: As ``matthews``.

    Source:
        Devlin, Gnanadesikan, Kettenring 1975 (the influence function of a correlation). For zeros and ones
        Σ ψ_i² / n is ``variance`` exactly.
    """
    x, y = _scores(labels, predictions)
    return np.asarray(x * y - np.mean(x * y) * (x**2 + y**2) / 2)


def variance(phi: float, labels: float, predictions: float) -> float:
    """Return n times the large-sample variance of φ over n sentences.

        n Var(φ) = 1 − φ² + φ (1 + φ²/2) k_l k_p − ¾ φ² (k_l² + k_p²),    k = (2p − 1)/√(p (1 − p))

    It is the delta method on the four cells of the table of labels and predictions. Pearson's (1 − φ²)² is for two
    normal variables and too small here: with 70 % ones in both, the standard error is 1.4 times its at φ = .6, and 2.5
    times at .9.

    Arguments:
        phi: φ, in [−1, 1].
        labels, predictions: The shares of ones, in (0, 1).

    Source:
        Yule 1912; Bishop, Fienberg, Holland 1975, section 11.3.

    Example:
        >>> [round((variance(phi, 0.7, 0.7) ** 0.5 / (1 - phi**2)), 2) for phi in (0.0, 0.6, 0.9)]
        [1.0, 1.37, 2.51]
    """
    k, m = _skew(labels), _skew(predictions)
    return 1 - phi**2 + phi * (1 + phi**2 / 2) * k * m - 0.75 * phi**2 * (k**2 + m**2)


def widest_variance(phi: float, labels: float) -> float:
    """Return the largest that ``variance`` is for any share of predicted ones.

        max n Var(φ) = 1 − φ² + k_l² ((1 + φ²/2)²/3 − ¾ φ²)

    at k_p = k_l (1 + φ²/2)/(1.5 φ), where the derivative by k_p is 0.

    Arguments:
        phi: φ, in [−1, 1].
        labels: The share of ones among the labels, in (0, 1).

    Example:
        >>> round(widest_variance(0.6, 0.7), 4), round(variance(0.6, 0.7, 0.7), 4)
        (0.7879, 0.768)
    """
    return 1 - phi**2 + _skew(labels) ** 2 * ((1 + phi**2 / 2) ** 2 / 3 - 0.75 * phi**2)


def _skew(share: float) -> float:
    return (2 * share - 1) / math.sqrt(share * (1 - share))


def _scores(labels: ArrayLike, predictions: ArrayLike) -> tuple[Array, Array]:
    """Both minus their mean, over their standard deviation."""
    both = [np.asarray(values, dtype=np.float64) for values in (labels, predictions)]
    if both[0].shape != both[1].shape or both[0].ndim != 1 or not all(np.isin(values, (0, 1)).all() for values in both):
        raise OptionError("labels and predictions must be as many zeros and ones")
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y = ((values - values.mean()) / values.std() if len(values) else values for values in both)
    return x, y
