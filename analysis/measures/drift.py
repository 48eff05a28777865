"""How far fine-tuning moves the singular values of a weight matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deltaw.adapters.checks import public
from deltaw.analysis.measures.matrix import Matrix
from deltaw.analysis.measures.principal import Principal
from deltaw.analysis.measures.principal_rotation import same_shape
from deltaw.analysis.measures.routes import SMALL

AGREE = 1e-6  # relative, of the drift: what the faster way may leave uncertain


@dataclass(frozen=True, eq=False)
class SpectralDrift:
    """How far the singular values of W' are from those of W₀; ``float`` of it is `drift`.

    Arguments:
        drift: ‖σ(W') − σ(W₀)‖₂ / ‖σ(W₀)‖₂; NaN where W₀ is zero.
        before, after: σ(W₀) and σ(W'), (min(out, in),) descending, float64 on the CPU.
        error: How far off the drift may be by rounding.
        route: By which way: "gram", "svd", or "same" where W' is W₀ to the last bit.
    """

    drift: float
    before: Tensor = field(repr=False)
    after: Tensor = field(repr=False)
    error: float
    route: str

    def __float__(self) -> float:
        return self.drift

    @property
    def relative(self) -> Tensor:
        """(σ'_i − σ_i)/σ_i, (min(out, in),); NaN where σ_i is rounding, not above max(out, in)·eps·σ₁."""
        moved = (self.after - self.before) / self.before
        noise = torch.finfo(torch.float64).eps * len(self.before) * self.before[0]
        return torch.where(self.before > noise, moved, math.nan)


@public
@torch.no_grad()
def spectral_drift(before: Matrix | Principal, after: Matrix | Principal) -> SpectralDrift:
    r"""Return how far the singular values of W' are from those of W₀, with both in descending order.

        drift = ‖σ(W') − σ(W₀)‖₂ / ‖σ(W₀)‖₂

    It is at most ‖ΔW‖_F/‖W₀‖_F (Mirsky's theorem; the paper's corollary 3.4), with equality where ΔW only scales
    singular directions, and 0 where W' is a rotation of W₀. An update of independent entries moves nearly all σ up.

    The eigenvalues of the Gram matrices are taken where their error bound leaves the drift right to 1e-6, else the
    singular values by their decomposition, in float64.

    Arguments:
        before: W₀ (out, in), a tensor or NumPy array of any floating dtype; or, where it is compared with many,
            ``Principal(W₀, k)``.
        after: W' (out, in).

    Returns:
        `SpectralDrift`.

    Raises:
        OptionError: Something is no matrix.
        ShapeError: The two differ in shape.
        NonFiniteError: NaN or infinity.

    Source:
        Zhu et al. 2025, "The Path Not Taken" (arXiv 2511.08567), section 4.1: the normalized spectral shift.

    Example:
        >>> found = spectral_drift(torch.diag(torch.tensor([4.0, 3.0])), torch.diag(torch.tensor([4.0, 3.5])))
        >>> float(found), found.relative[1].item() == 0.5 / 3
        (0.1, True)
    """
    base = before if isinstance(before, Principal) else Principal(before, 1)
    trained = after if isinstance(after, Principal) else Principal(after, 1, "after")
    same_shape(base.shape, trained.shape)
    if torch.equal(base.matrix, trained.matrix.to(base.matrix.device)):
        own = base.values
        return SpectralDrift(0.0 if float(own[0]) > 0 else math.nan, own, own, 0.0, "same")
    return drift_between(base, trained)


def drift_between(base: Principal, trained: Principal) -> SpectralDrift:
    """Return the drift of two matrices that differ."""
    if min(base.shape) >= SMALL:
        found = _drift(base.quick_values, trained.quick_values, "gram")
        if found.error <= AGREE * found.drift:
            return found
    return _drift(base.exact_values, trained.exact_values, "svd")


def _drift(before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor], route: str) -> SpectralDrift:
    (old, old_errors), (new, new_errors) = before, after
    size = float(old.norm())
    if size == 0:
        return SpectralDrift(math.nan, old, new, math.nan, route)
    moved, errors = (new - old) / size, (old_errors + new_errors) / size
    drift = float(moved.norm())
    error = float(errors.norm())
    if drift > 0:  # |‖d + e‖ − ‖d‖| = |2⟨d, e⟩ + ‖e‖²|/(‖d + e‖ + ‖d‖): what is uncertain are σ that hardly count
        error = min(error, float(2 * moved.abs() @ errors + errors @ errors) / drift)
    return SpectralDrift(drift, old, new, error, route)
