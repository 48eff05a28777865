"""The update at a stop as its spectrum is computed: factors, or ΔW with its noise floor."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from deltaw.adapters.method import ScaledFactors
from deltaw.analysis.measures.norms import NoiseFloor, Norms
from deltaw.analysis.measures.spectrum import Spectrum, dense_spectrum, factored_spectrum, spectrum
from deltaw.analysis.measures.threads import one_thread
from deltaw.analysis.tables.stop import Stop


@dataclass(frozen=True, eq=False)
class Update:
    """ΔW = s·U V from its factors, or as a matrix (out, in), perhaps with a noise floor."""

    factors: ScaledFactors | None = None
    dense: Tensor | None = None
    floor: NoiseFloor | None = None

    def spectrum(self, approximate: float | None = None) -> Spectrum:
        """Return all singular values, or those that hold the energy but for a share; see `spectrum`."""
        if self.factors is not None:
            return factored_spectrum(self.factors.U, self.factors.V, self.factors.scaling)
        return spectrum(None) if self.dense is None else dense_spectrum(self.dense, self.floor, approximate)


def update_at(stop: Stop) -> Update:
    """Return the update of a stop: factors where there are any, as they are stored, else ΔW.

    For the noise floor ‖W₀‖₂ is computed once a module; it does for every W' that differs by no more than a percent.
    """
    run, module, step = stop.run, stop.module, stop.step
    with one_thread():  # factors are small, and threads that wait for each other take longer than one alone
        factors = run.source.scaled_factors(module, step)
    if factors is not None:
        return Update(factors=factors)
    stored = run.source.rounding(module, step)
    if stored is None:
        return Update(dense=run.update(module, step))
    base = stop.once("norms of W₀", lambda: Norms(partial(run.base, module)))
    weight = Norms(partial(run.weight, module, step, torch.float64))
    return Update(dense=run.update(module, step), floor=NoiseFloor(stored, weight, base))
