"""The rank and the spectrum of every update."""

from collections.abc import Sequence

import pandas as pd
from torch import Tensor

from deltaw.analysis.measures.spectrum import Spectrum, spectrum
from deltaw.analysis.tables.run import LABELS, Run, Steps, update_of
from deltaw.analysis.tables.walk import Stop, Walk, at_steps

_RANKS = ["rank", "full_rank", "tolerance", "stable_rank", "effective_rank", "participation_ratio"]
_NORMS = ["nuclear", "frobenius", "spectral", "zero_rows", "zero_columns", "noise"]
_ENERGY = {"energy_rank_90": 0.90, "energy_rank_99": 0.99}


def spectra_table(
    runs: Sequence[Run],
    steps: Steps = None,
    modules: Sequence[str] | None = None,
    *,
    groups: bool = False,
    progress: bool = False,
) -> pd.DataFrame:
    """Return the rank and the spectrum of the update of every module at every step.

    From factors where the method has them, else by the cheapest exact way from the update in float64. Where whole
    matrices were recorded, or magnitudes that multiply W₀ (DoRA, BoRA), the rounding of their dtype counts as noise
    floor. A singular value at or below the tolerance is noise and counts in none of the measures; see `Spectrum`.

    Arguments:
        runs: Opened runs.
        steps: The steps; "last" for each run's last, ``None`` for all that are recorded.
        modules: Glob patterns over the recorded modules; ``None`` for all.
        groups: Also the groups that a method's update is made of, told apart by the column ``group``: "update", and for
            Dual LoRA "magnitude" for ReLU(B A) and "direction" for Sign(D C).
        progress: Show a progress bar.

    Returns:
        One row each: run, method, module, layer, kind, step, group, rank, full_rank (min(out, in)), tolerance,
        stable_rank, effective_rank, participation_ratio, energy_rank_90, energy_rank_99, nuclear, frobenius, spectral,
        zero_rows, zero_columns, noise (Σσ² of the singular values up to the tolerance, which no measure counts, over
        Σσ² of all), route (the way that was the cheapest exact one: "factors", "gram" or "svd").
        ``attrs["left_out"]`` says which modules are left out, as their W₀ is not known.

    Raises:
        NonFiniteError: A weight holds NaN or infinity; names module and step.
        OptionError: No such module or step.
    """
    rows = []
    walk = Walk(runs, "spectra", at_steps(steps), modules, progress=progress)
    for stop in walk:
        full_rank = min(stop.run.shape(stop.module))
        stop.where = f"of shape {stop.run.shape(stop.module)}, at step {stop.step}"
        with stop:
            found = {"update": spectrum(**update_of(stop.run, stop.module, stop.step))}
            if groups:
                found |= {name: spectrum(matrix) for name, matrix in _groups(stop).items()}
            rows += [
                stop.labels | {"step": stop.step, "group": group, "full_rank": full_rank} | _numbers(each)
                for group, each in found.items()
            ]
    return walk.frame(rows, [*LABELS, "step", "group", *_RANKS, *_ENERGY, *_NORMS, "route"])


def _groups(stop: Stop) -> dict[str, Tensor]:
    method = stop.run.method_of(stop.module)
    if method is None:
        return {}
    state = stop.run.state(stop.module, stop.step)
    return method.groups({k: v.double() if v.is_floating_point() else v for k, v in state.items()})


def _numbers(found: Spectrum) -> dict[str, float | str]:
    named = {name: getattr(found, name) for name in [*_RANKS, *_NORMS, "route"] if name != "full_rank"}
    return named | {name: found.energy_rank(fraction) for name, fraction in _ENERGY.items()}
