"""The rank and the spectrum of every update."""

from collections.abc import Sequence
from functools import partial
from typing import Unpack

import pandas as pd
from torch import Tensor

from deltaw.adapters.errors import OptionError
from deltaw.analysis.measures.approximate import allowed_error
from deltaw.analysis.measures.leading import LeadingSpectrum, leading_spectrum
from deltaw.analysis.measures.spectrum import Spectrum
from deltaw.analysis.tables.run import LABELS, Run, Steps
from deltaw.analysis.tables.stop import Later, Rows, Stop
from deltaw.analysis.tables.updates import Update, rows_of, update_at
from deltaw.analysis.tables.walk import Walk, at_steps
from deltaw.analysis.tables.work import How, work_from

_RANKS = ["rank", "full_rank", "tolerance", "stable_rank", "effective_rank", "participation_ratio"]
_NORMS = ["nuclear", "frobenius", "spectral", "zero_rows", "zero_columns", "noise"]
_ENERGY = {"energy_rank_90": 0.90, "energy_rank_99": 0.99}
MEASURES = (*_RANKS, *_ENERGY, *_NORMS)
# What does not need all singular values.
_LEADING = {"full_rank", "tolerance", "frobenius", "spectral", "stable_rank", "zero_rows", "zero_columns", *_ENERGY}


def spectra_table(
    runs: Sequence[Run],
    steps: Steps = None,
    modules: Sequence[str] | None = None,
    *,
    measures: Sequence[str] | None = None,
    groups: bool = False,
    approximate: float | None = None,
    progress: bool = False,
    **work: Unpack[How],
) -> pd.DataFrame:
    """Return the rank and the spectrum of the update of every module at every step.

    From factors where the method has them, else by the cheapest exact way from the update in float64. Where whole
    matrices were recorded, or magnitudes that multiply W₀ (DoRA, BoRA), the rounding of their dtype counts as noise
    floor. A singular value at or below the tolerance is noise and counts in none of the measures; see `Spectrum`.

    Arguments:
        runs: Opened runs.
        steps: The steps; "last" for each run's last, ``None`` for all that are recorded.
        modules: Glob patterns over the recorded modules; ``None`` for all.
        measures: The columns that are wanted, of those from rank to noise; ``None`` for all. Norms, stable rank, energy
            ranks and zero rows and columns of large matrices need only the largest singular values, and come many times
            faster where nothing else is asked for: the norms then right to 1e-6, the energy ranks exact.
        groups: Also the groups that a method's update is made of, told apart by the column ``group``: "update", and for
            Dual LoRA "magnitude" for ReLU(B A) and "direction" for Sign(D C).
        approximate: The share of ‖ΔW‖_F² that singular values may leave out, as 0.01; see `spectrum`. Then the column
            ``error`` says how much they do, 0 where all of them, or certain bounds, were as cheap. ``None`` for exact.
        progress: Show a progress bar.
        device, jobs, engine, address, cache: As in `Work`, the last ``False`` by default; or ``work``, one of those.

    Returns:
        One row each: run, method, module, layer, kind, step, group, rank, full_rank (min(out, in)), tolerance,
        stable_rank, effective_rank, participation_ratio, energy_rank_90, energy_rank_99, nuclear, frobenius, spectral,
        zero_rows, zero_columns, noise (Σσ² of the singular values up to the tolerance, which no measure counts, over
        Σσ² of all), route (the way that was the cheapest: "factors", "gram", "svd"; "krylov" for the largest singular
        values alone, "sums" where none was needed), error (only where ``approximate`` is given: the share of ‖ΔW‖_F²
        that is left out). ``attrs["left_out"]`` says which modules are left out, as their W₀ is not known.

    Raises:
        NonFiniteError: A weight holds NaN or infinity; names module and step.
        OptionError: No such module, step or measure; ``approximate`` is no share.
    """
    wanted = _chosen(measures)
    allowed = None if approximate is None else allowed_error(approximate)
    walk = Walk(runs, "spectra", at_steps(steps), modules, progress=progress, work=work_from(work))
    rows = walk.rows(partial(_of_step, wanted=wanted, groups=groups, approximate=allowed))
    return walk.frame(rows, [*LABELS, "step", "group", *wanted, "route", *([] if allowed is None else ["error"])])


def _of_step(stop: Stop, wanted: Sequence[str], groups: bool, approximate: float | None) -> Later:
    shape = stop.run.shape(stop.module)
    stop.where = f"of shape {shape}, at step {stop.step}"
    updates = {"update": update_at(stop)}
    if groups:
        updates |= {name: Update(dense=matrix) for name, matrix in _groups(stop).items()}
    labels = stop.labels | {"step": stop.step, "full_rank": min(shape)}

    def rows() -> Rows:
        # An update is let go of as soon as it is measured.
        return [
            labels | {"group": group} | _numbers(_measured(updates.pop(group), wanted, approximate), wanted)
            for group in list(updates)
        ]

    return rows_of(updates.values(), rows)


def _chosen(measures: Sequence[str] | None) -> list[str]:
    """Return the measures in the order of the table's columns."""
    if measures is None:
        return list(MEASURES)
    given = [measures] if isinstance(measures, str) else measures
    if not isinstance(given, Sequence) or not given or not all(name in MEASURES for name in given):
        raise OptionError(f"measures is {measures!r}; choose of {', '.join(MEASURES)}, or None for all")
    return [name for name in MEASURES if name in given]


def _measured(update: Update, wanted: Sequence[str], approximate: float | None) -> Spectrum | LeadingSpectrum:
    """Return what the wanted measures are read off, by the cheapest way."""
    if update.dense is not None and set(wanted) <= _LEADING:
        energy = [share for name, share in _ENERGY.items() if name in wanted]
        found = leading_spectrum(update.dense, floor=update.floor, energy=energy, measures=wanted)
        if found is not None:
            return found
    return update.spectrum(approximate)


def _groups(stop: Stop) -> dict[str, Tensor]:
    method = stop.run.method_of(stop.module)
    if method is None:
        return {}
    state = stop.run.state(stop.module, stop.step)
    return method.groups({k: v.double() if v.is_floating_point() else v for k, v in state.items()})


def _numbers(found: Spectrum | LeadingSpectrum, wanted: Sequence[str]) -> dict[str, float | str]:
    named = {
        name: getattr(found, name)
        for name in [*wanted, "route", "error"]
        if name not in _ENERGY and name != "full_rank"
    }
    return named | {name: found.energy_rank(fraction) for name, fraction in _ENERGY.items() if name in wanted}
