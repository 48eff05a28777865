"""The standard error of a Matthews correlation, against the delta method, sklearn and simulation."""

import math

import mpmath
import numpy as np
import pytest
from sklearn.metrics import matthews_corrcoef

from deltaw.adapters.errors import OptionError
from deltaw.analysis.measures.matthews import influence, matthews, variance, widest_variance

N, WORLDS = 1043, 2000  # sentences of CoLA's development set


def table(phi: float, labels: float, predictions: float) -> np.ndarray:
    """The probabilities of (label, prediction) = 00, 01, 10, 11."""
    p11 = labels * predictions + phi * math.sqrt(labels * (1 - labels) * predictions * (1 - predictions))
    return np.array([1 - labels - predictions + p11, predictions - p11, labels - p11, p11])


def phi_of(cells):
    p00, p01, p10, p11 = cells
    return (p11 * p00 - p10 * p01) / mpmath.sqrt((p11 + p10) * (p01 + p00) * (p11 + p01) * (p10 + p00))


def drawn(phi: float, share: float, seed: int, size=(WORLDS, N)) -> tuple[np.ndarray, np.ndarray]:
    cells = np.random.default_rng(seed).choice(4, p=table(phi, share, share), size=size)
    return cells // 2, cells % 2


@pytest.mark.parametrize(("phi", "labels", "predictions"), [(0.3, 0.7, 0.85), (0.6, 0.7, 0.6), (-0.5, 0.3, 0.6)])
def test_it_is_the_delta_method_on_the_four_cells(phi, labels, predictions):
    cells = table(phi, labels, predictions)
    assert cells.min() > 0
    slopes = [
        float(mpmath.diff(lambda value, k=k: phi_of([*cells[:k], value, *cells[k + 1 :]]), cells[k])) for k in range(4)
    ]
    exact = cells @ np.square(slopes) - (cells @ slopes) ** 2
    assert variance(phi, labels, predictions) == pytest.approx(exact, rel=1e-9)
    assert widest_variance(abs(phi), labels) >= variance(phi, labels, predictions)


def test_the_influences_say_the_same():
    labels, predictions = drawn(0.6, 0.7, seed=1, size=N)
    phi = matthews(labels, predictions)
    assert phi == pytest.approx(matthews_corrcoef(labels, predictions), rel=1e-12)
    found = influence(labels, predictions)
    assert found.mean() == pytest.approx(0, abs=1e-12)
    assert np.mean(found**2) == pytest.approx(variance(phi, labels.mean(), predictions.mean()), rel=1e-9)


@pytest.mark.parametrize("phi", [0.3, 0.6, 0.9])
def test_it_is_the_spread_of_simulated_correlations(phi):
    labels, predictions = drawn(phi, 0.69, seed=2)
    found = [matthews(*both) for both in zip(labels, predictions, strict=True)]
    assert np.std(found) == pytest.approx(math.sqrt(variance(phi, 0.69, 0.69) / N), rel=0.05)
    pearsons = (1 - phi**2) / math.sqrt(N)
    assert np.std(found) > {0.3: 1.05, 0.6: 1.3, 0.9: 2.3}[phi] * pearsons


def test_the_widest_is_the_maximum():
    shares = np.linspace(0.01, 0.99, 981)
    for phi in (0.3, 0.6, 0.9):
        assert widest_variance(phi, 0.7) == pytest.approx(max(variance(phi, 0.7, p) for p in shares), rel=1e-4)


def test_constant_predictions_have_no_correlation():
    assert math.isnan(matthews([0, 1, 1], [1, 1, 1]))
    assert np.isnan(influence([0, 1, 1], [1, 1, 1])).all()
    for wrong in ([0, 1], [0, 1, 2], [[0, 1, 1]]):
        with pytest.raises(OptionError, match="as many zeros and ones"):
            matthews([0, 1, 1], wrong)
