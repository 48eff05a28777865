"""The interval of a number that is made from a few matrices and runs: a bootstrapped error with Student's t."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RESAMPLES = 2000
SEED = 0
Z = 1.96
# The 97.5th percentile of Student's t with 1 to 10 degrees of freedom, where the expansion of ``student`` is coarse.
_STUDENT = (
    12.7062047,
    4.30265273,
    3.18244631,
    2.77644511,
    2.57058184,
    2.44691185,
    2.36462425,
    2.30600414,
    2.26215716,
    2.22813885,
)


@dataclass(frozen=True)
class Measured:
    """A number, and its interval; ``None`` for a number without error."""

    statistic: float
    interval: tuple[float, float] | None
    note: str = ""


class Undecidable(Exception):  # noqa: N818 - no error: it becomes the note of an unclear outcome
    """Something is missing, or not defined; the message says what."""

    def __init__(self, note: str, statistic: float | None = None) -> None:
        super().__init__(note)
        self.statistic = statistic


class Unlearned(Undecidable):
    """All runs of a method are no better than guessing; what was measured in them is shown and decides nothing."""


@dataclass(frozen=True)
class Weights:
    """How often every matrix and every run of a method was drawn; every row sums to 1.

    Arguments:
        matrices: (resamples, matrices).
        runs: (resamples, runs) by the method's name.
    """

    matrices: Array
    runs: Mapping[str, Array]

    def both(self, method: str) -> Array:
        """Of every matrix in every run, (resamples, runs · matrices)."""
        runs = self.runs[method]
        return (runs[:, :, None] * self.matrices[:, None, :]).reshape(len(runs), -1)


@dataclass(frozen=True)
class Scale:
    """On which the number is spread alike to both sides."""

    there: Callable[[Array], Array]
    back: Callable[[Array], Array]


LINEAR = Scale(lambda values: values, lambda values: values)
LOG = Scale(np.log, np.exp)  # for a ratio
FISHER = Scale(lambda r: np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12)), np.tanh)  # for a correlation


def bootstrap(
    measure: Callable[[Weights], Array], matrices: int, runs: Mapping[str, int], scale: Scale = LINEAR
) -> Measured:
    """Return a number θ and its 95 % interval over matrices and runs.

        θ ± t(ν) √v,    v = Σ_g v_g,    v_g = n_g/(n_g − 1) · variance of θ over resamples of g
        ν = v² / Σ_g v_g²/(n_g − 1)

    on the given scale. A group g are the matrices, or the runs of one method if it has several; while one is resampled,
    the others stay as they are. With one group ν is n − 1, and for a mean this is the textbook's t interval. The sum is
    exact where matrices and runs add up, and too large by their interaction else.

    The percentiles of the resamples are no interval here: of so few matrices they hold the true number 75 times of 100
    (3 matrices) or 87 times (6).

    Arguments:
        measure: From weights to one number a resample, (resamples,).
        matrices: Their number.
        runs: How many runs each method has.
        scale: ``LOG`` for a ratio, as long as all its values are above 0; ``FISHER`` for a correlation.

    Raises:
        Undecidable: The number is not defined, or not in every resample, or there is one matrix only.

    Source:
        Efron, Tibshirani 1993, chapters 6 and 12; Satterthwaite 1946 (ν); Hesterberg 2015 (the factor n/(n − 1)).

    Example:
        >>> found = bootstrap(lambda weights: weights.matrices @ np.array([1.0, 2.0, 3.0]), 3, {})
        >>> found.statistic, [round(end, 1) for end in found.interval]
        (2.0, [-0.5, 4.5])
    """
    even = {"": np.full((1, matrices), 1 / matrices)} | {m: np.full((1, k), 1 / k) for m, k in runs.items()}
    sizes = {"": matrices} | {method: k for method, k in runs.items() if k > 1}
    random = np.random.default_rng(SEED)

    def resampled(group: str) -> Array:
        size = sizes[group]
        drawn = random.multinomial(size, np.full(size, 1 / size), size=RESAMPLES) / size
        chosen = {name: drawn if name == group else np.repeat(one, RESAMPLES, axis=0) for name, one in even.items()}
        return measure(Weights(chosen.pop(""), chosen))

    value = measure(Weights(even[""], {method: even[method] for method in runs}))
    statistic = float(value[0])
    if not math.isfinite(statistic):
        raise Undecidable("nothing changed in the recorded steps, so there is no number")
    if matrices < 2:
        raise Undecidable("one layer only: no interval", statistic)
    found = {group: resampled(group) for group in sizes}
    if not all(np.isfinite(numbers).all() for numbers in found.values()):
        raise Undecidable("not defined in every resample: no interval", statistic)
    if scale is LOG and not (statistic > 0 and all((numbers > 0).all() for numbers in found.values())):
        scale = LINEAR
    variances = {
        group: sizes[group] / (sizes[group] - 1) * float(scale.there(numbers).var()) for group, numbers in found.items()
    }
    total = math.fsum(variances.values())
    note = f"{matrices} matrices" + "".join(f", {k} runs of {method}" for method, k in sizes.items() if method)
    if total == 0:
        return Measured(statistic, (statistic, statistic), note)
    freedom = total**2 / math.fsum(v**2 / (sizes[group] - 1) for group, v in variances.items())
    reach = student(freedom) * math.sqrt(total)
    low, high = scale.back(scale.there(value[0]) + np.array([-reach, reach])).tolist()
    return Measured(statistic, (min(low, statistic), max(high, statistic)), note)


def student(freedom: float) -> float:
    """Return the 97.5th percentile of Student's t, the degrees of freedom rounded down.

    Source:
        Abramowitz, Stegun 1964, 26.7.5, from ten degrees of freedom on.

    Example:
        >>> round(student(2.9), 4), round(student(30), 4)
        (4.3027, 2.0423)
    """
    n = max(int(freedom + 1e-9), 1)
    if n <= len(_STUDENT):
        return _STUDENT[n - 1]
    z = 1.959963985
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum((term / n**power for power, term in enumerate(terms, start=1)), start=0.0)
