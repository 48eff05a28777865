"""The update at a stop as measures take it: factors, or ΔW with its noise floor."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deltaw.adapters.method import ScaledFactors
from deltaw.analysis.measures.inner import Operand, operand
from deltaw.analysis.measures.norms import NoiseFloor, Norms
from deltaw.analysis.measures.spectrum import Spectrum, dense_spectrum, factored_spectrum, spectrum
from deltaw.analysis.measures.strongest import strongest
from deltaw.analysis.measures.subspace import Directions, dense_directions, directions
from deltaw.analysis.measures.threads import one_thread
from deltaw.analysis.tables.run import Run
from deltaw.analysis.tables.stop import Later, Rows, Stop

_MATRICES = 6  # in float64, while a spectrum is computed


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

    def directions(self) -> Directions:
        """Return the singular vectors whose singular values are above the tolerance; see `directions`."""
        if self.factors is not None:
            return directions(factors=(self.factors.scaling * self.factors.U.double(), self.factors.V))
        return directions(None) if self.dense is None else dense_directions(self.dense, self.spectrum())

    def leading(self, count: int) -> Directions:
        """Return the ``count`` leading ones of them, or as many as there are; of a large matrix without the others."""
        if self.dense is None:
            every = self.directions()
        else:
            found = self.spectrum()
            sides = strongest(self.dense, min(count, found.rank)) if found.rank else None
            if sides is not None:
                return Directions(*sides, found)
            every = dense_directions(self.dense, found)
        return Directions(every.left[:, :count], every.right[:, :count], every.spectrum)

    def operand(self) -> Operand:
        """Return it ready for inner products with others."""
        return operand("update", self.dense if self.factors is None else self.factors)


def rows_of(updates: Iterable[Update], make: Callable[[], Rows]) -> Later:
    """Return rows that are to be made of spectra of some updates."""
    return Later(make, _MATRICES * 8 * sum(update.dense.numel() for update in updates if update.dense is not None))


def update_at(stop: Stop, run: Run | None = None, step: int | None = None) -> Update:
    """Return the update of a stop: factors where there are any, as they are stored, else ΔW.

    For the noise floor ‖W₀‖₂ is computed once a module; it does for every W' that differs by no more than a percent.

    Arguments:
        stop: Where.
        run, step: Another run, and its step, in the place of the stop's: what it is compared with.
    """
    if run is None:
        return update_in(stop.run, stop.module, stop.step, stop.once, stop.reading)
    return update_in(run, stop.module, stop.step if step is None else step)


def update_in(
    run: Run,
    module: str,
    step: int,
    once: Callable[[str, Callable[[], Norms]], Norms] = lambda name, make: make(),
    reading: AbstractContextManager[Any] = nullcontext(),  # noqa: B008  # it has no state
) -> Update:
    """Return the update of a run's module at a step, see `update_at`.

    Arguments:
        run, module, step: Which.
        once: Keeps what is made once a module.
        reading: Held while the run is read for a norm, which may be long after this.
    """
    with one_thread():  # factors are small, and threads that wait for each other take longer than one alone
        factors = run.source.scaled_factors(module, step)
    if factors is not None:
        return Update(factors=factors)
    stored = run.source.rounding(module, step)
    if stored is None:
        return Update(dense=run.update(module, step))

    def read(make: Callable[[], Tensor]) -> Tensor:
        with reading:
            return make()

    base = once("norms of W₀", lambda: Norms(partial(read, partial(run.base, module))))
    weight = Norms(partial(read, partial(run.weight, module, step, torch.float64)))
    return Update(dense=run.update(module, step), floor=NoiseFloor(stored, weight, base))
