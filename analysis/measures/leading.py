"""Norms, stable rank and energy ranks of an update without its whole spectrum.

‖ΔW‖_F needs no singular value, ‖ΔW‖₂ and the stable rank need σ₁, and an energy rank the few σ that hold the energy:
the Frobenius norm tells how much is still missing. The σ come from `krylov` with bounds from both sides. A number is
handed on where these decide it: an energy rank if both bounds give the same, a norm if they agree to 1e-6. Else there
is none, and the caller takes the exact way.

The noise floor matters only where something may be below it. That is mostly ruled out by eps·‖W‖_F, and ‖W‖₂ is not
computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from deltaw.analysis.measures.krylov import AGREE, Leading, leading
from deltaw.analysis.measures.matrix import Matrix, finite
from deltaw.analysis.measures.norms import NoiseFloor, noise_floor
from deltaw.analysis.measures.routes import relative_tolerance
from deltaw.analysis.measures.sizes import squared_norm, zero_shares

LARGE = 768  # the smaller side from which this is faster than the whole spectrum
_BASIS = 6  # the largest basis is this part of the smaller side
NO_SIGMA = frozenset({"frobenius", "zero_rows", "zero_columns"})  # what needs no singular value
SIGMA = frozenset({"spectral", "stable_rank", "tolerance"})  # and what needs σ₁


@dataclass(frozen=True)
class LeadingSpectrum:
    """What of `Spectrum` needs only the largest singular values, each right to 1e-6, counts to the last one.

    Arguments:
        frobenius, spectral, stable_rank, tolerance, zero_rows, zero_columns: As in `Spectrum`; NaN for what was not
            asked for.
        energy_ranks: By the share of the energy.
        route: "krylov", or "sums" where no singular value was needed.
        error: 0, as nothing is left out.
    """

    frobenius: float
    spectral: float
    stable_rank: float
    tolerance: float
    zero_rows: float
    zero_columns: float
    energy_ranks: dict[float, int]
    route: str = "krylov"
    error: float = 0.0

    def energy_rank(self, fraction: float) -> int:
        """Return the energy rank of a share that was asked for."""
        return self.energy_ranks[fraction]


@torch.no_grad()
def leading_spectrum(
    update: Matrix,
    *,
    stored: torch.dtype | None = None,
    weight: Matrix | None = None,
    energy: Collection[float] = (),
    measures: Collection[str] = NO_SIGMA | SIGMA,
    floor: NoiseFloor | None = None,
) -> LeadingSpectrum | None:
    """Return norms, stable rank and energy ranks, or ``None`` where the update is small or the bounds do not decide.

    Arguments:
        update, stored, weight: As in `spectrum`.
        energy: The shares of the energy whose ranks are wanted.
        measures: What else is wanted, of the fields of `LeadingSpectrum`.
        floor: The noise floor, in the place of ``stored`` and ``weight``.

    Raises:
        As `spectrum`.
    """
    dense = finite("update", update)
    sums_only = SIGMA.isdisjoint(measures) and not energy
    if min(dense.shape) < LARGE and not sums_only:
        return None
    if stored is not None and weight is not None:
        floor = noise_floor(dense, stored, weight)
    zeros = zero_shares(dense) if {"zero_rows", "zero_columns"} & set(measures) else (math.nan, math.nan)
    if sums_only and "frobenius" not in measures:
        return LeadingSpectrum(math.nan, math.nan, math.nan, math.nan, *zeros, {}, "sums")
    whole, scale = squared_norm(dense)  # ‖ΔW/s‖_F²
    if not math.isfinite(math.sqrt(whole) * scale):
        return None
    if whole == 0:
        tolerance = 0.0 if floor is None or "tolerance" not in measures else floor.of(0.0)
        return LeadingSpectrum(0.0, 0.0, 0.0, tolerance, *zeros, dict.fromkeys(energy, 0), "sums")
    if sums_only:
        # σ₁ ≤ ‖ΔW‖_F. If not even so much noise weighs, no singular value is needed.
        tolerance = relative_tolerance(dense) * math.sqrt(whole)
        tolerance = max(tolerance, _at_most(floor, whole, scale))
        if min(dense.shape) * tolerance**2 > AGREE * whole:
            return None
        return LeadingSpectrum(math.sqrt(whole) * scale, math.nan, math.nan, math.nan, *zeros, {}, "sums")
    most = min(dense.shape) // _BASIS
    scaled = dense if scale == 1.0 else dense.double() / scale
    found = leading(scaled, _enough(whole, max(energy, default=0.0), most), most, whole)
    if found is None:
        return None
    sigma = math.sqrt(float(found.lower[0]))
    relative = relative_tolerance(dense) * sigma
    tolerance = max(relative, _at_most(floor, whole, scale))
    noise = _most_noise(found, whole, tolerance, min(dense.shape))
    if floor is not None and ("tolerance" in measures or noise > AGREE * whole):
        tolerance = max(relative, floor.of(sigma * scale) / scale)
        noise = _most_noise(found, whole, tolerance, min(dense.shape))
    certain = float(found.upper[0] / found.lower[0]) - 1 <= AGREE and noise <= AGREE * whole
    ranks = {share: _energy_rank(found, whole, noise, share) for share in energy}
    if not certain or None in ranks.values():
        return None
    return LeadingSpectrum(
        math.sqrt(whole) * scale,
        sigma * scale,
        whole / sigma**2,
        tolerance * scale if "tolerance" in measures else math.nan,
        *zeros,
        {share: rank for share, rank in ranks.items() if rank is not None},
    )


@dataclass(frozen=True, eq=False)
class LeadingValues:
    """The largest singular values alone, each right to 1e-6.

    Arguments:
        values: σ, (k,) descending, float64 on the CPU.
        shares: σ²/Σσ², of all singular values above the tolerance.
        tolerance: As in `Spectrum`.
    """

    values: Tensor
    shares: Tensor
    tolerance: float


@torch.no_grad()
def leading_values(update: Tensor, count: int, floor: NoiseFloor | None = None) -> LeadingValues | None:
    """Return the ``count`` largest singular values, or ``None`` where all together come as fast, or are needed to tell.

    Raises:
        NonFiniteError: NaN or infinity in the update.
    """
    dense = finite("update", update)
    most = min(dense.shape) // _BASIS
    if min(dense.shape) < LARGE or count > most // 2:
        return None
    whole, scale = squared_norm(dense)
    if whole == 0 or not math.isfinite(math.sqrt(whole) * scale):
        return None
    scaled = dense if scale == 1.0 else dense.double() / scale
    found = leading(scaled, lambda values, settled: count, most, whole, count)
    if found is None or bool((found.upper > (1 + AGREE) * found.lower).any()):
        return None
    values = found.lower.sqrt()
    first = float(values[0])
    tolerance = max(relative_tolerance(dense) * first, 0.0 if floor is None else floor.of(first * scale) / scale)
    if float(values[-1]) <= tolerance or _most_noise(found, whole, tolerance, min(dense.shape)) > AGREE * whole:
        return None
    return LeadingValues(values * scale, found.lower / whole, tolerance * scale)


def _at_most(floor: NoiseFloor | None, whole: float, scale: float) -> float:
    """Return what the floor is at most, in units of the scale."""
    return 0.0 if floor is None else floor.at_most(math.sqrt(whole) * scale) / scale


def _enough(whole: float, share: float, most: int) -> Callable[[Tensor, int], int | None]:
    """Return what tells the Krylov method how many σ² it takes to hold this share of the energy."""

    def enough(values: Tensor, settled: int) -> int | None:
        energy = values.cumsum(0)
        if float(energy[-1]) >= share * whole:
            return int((energy < share * whole).sum()) + 1
        # Those to come are no larger than those that are there.
        held = float(energy[settled - 1]) if settled else 0.0
        following = float(values[min(settled, len(values) - 1)])
        return 0 if settled and held + (most - settled) * following < share * whole else None

    return enough


def _most_noise(found: Leading, whole: float, tolerance: float, size: int) -> float:
    """Return how much of Σσ² can at most be of σ at or below the tolerance."""
    signal = found.known[found.known > tolerance**2]
    return min((size - len(signal)) * tolerance**2, whole - float(signal.sum()))


def _energy_rank(found: Leading, whole: float, noise: float, share: float) -> int | None:
    """Return the energy rank, or ``None`` where the bounds leave more than one."""
    slack = 1e-12 * whole  # the sums' own rounding
    least, most = found.lower.cumsum(0), found.upper.cumsum(0)
    surely = int((least < share * whole + slack).sum()) + 1  # so many hold the share
    perhaps = int((most < share * (whole - noise) - slack).sum()) + 1  # fewer do not
    return surely if surely == perhaps and surely <= len(least) else None
