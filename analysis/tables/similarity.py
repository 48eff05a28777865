"""How similar the weights are to the base, or to those of another run: linear CKA."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Unpack

import pandas as pd
import torch

from deltaw.adapters.errors import OptionError
from deltaw.analysis.measures.chance import expected_similarity
from deltaw.analysis.measures.similarity import Examples, dissimilarity
from deltaw.analysis.tables.one_pass import Stops
from deltaw.analysis.tables.run import LABELS, Run, Steps
from deltaw.analysis.tables.stop import Stop
from deltaw.analysis.tables.walk import Walk, chosen_modules, chosen_steps, common_modules
from deltaw.analysis.tables.work import How, work_from


def similarity_table(
    runs: Sequence[Run],
    *,
    other: Run | None = None,
    steps: Steps = None,
    modules: Sequence[str] | None = None,
    examples: Examples = "row",
    progress: bool = False,
    **work: Unpack[How],
) -> pd.DataFrame:
    """Return the CKA of W_t with W₀, or with the weights of another run at the same step.

    Arguments:
        runs: Opened runs.
        other: The run to compare with; ``None`` for each run's own W₀.
        steps: As in `singular_values`; with ``other``, ``None`` means the steps that both recorded and "last" the last
            of each.
        modules: Glob patterns over the modules (of both); ``None`` for all.
        examples: As in `deltaw.analysis.measures.similarity`.
        progress: Show a progress bar.
        device, jobs, engine, address, cache: As in `Work`, the last ``False`` by default; or ``work``, one of those.

    Returns:
        One row each: run, method, module, layer, kind, step, other ("base" or the run's name), step_other (missing for
        the base), examples, similarity (CKA), dissimilarity (1 − CKA with all its digits), expected (the CKA of
        unrelated matrices, see `deltaw.analysis.measures.chance.expected_similarity`). NaN where all examples of a
        matrix are the same.

    Raises:
        OptionError: No run, no such step, or nothing in common with ``other``.
        ShapeError: A module has another number of examples in the other run.
        NonFiniteError: A weight holds NaN or infinity; names module and step.

    Source:
        Kornblith et al. 2019. See `deltaw.analysis.measures.similarity`.
    """

    def stops(run: Run) -> Stops:
        return [(beside, step) for step, beside in _steps_of_both(run, other, steps)]

    def chosen(run: Run) -> list[str]:
        return chosen_modules(run.modules, modules) if other is None else common_modules(run, other, modules)

    walk = Walk(runs, "similarity", stops, chosen, progress=progress, work=work_from(work))
    rows = walk.rows(partial(_of_step, other=other, examples=examples))
    columns = ["step", "other", "step_other", "examples", "similarity", "dissimilarity", "expected"]
    return walk.frame(rows, [*LABELS, *columns])


def _of_step(stop: Stop, other: Run | None, examples: Examples) -> list[dict[str, Any]]:
    against = "W₀" if other is None else f"{other.source.where} at step {stop.step_from}"
    stop.where = f"at step {stop.step} against {against}"
    if other is None:
        beside = stop.once("base", partial(stop.run.base, stop.module))
    else:
        beside = other.weight(stop.module, stop.step_from, torch.float64)
    weight = stop.run.weight(stop.module, stop.step, torch.float64)
    apart = dissimilarity(weight, beside, examples=examples)
    sizes = [tuple(matrix.shape)[:: 1 if examples == "row" else -1] for matrix in (weight, beside)]
    expected = expected_similarity(sizes[0][0], sizes[0][1], sizes[1][1])
    return [
        stop.labels
        | {"step": stop.step, "other": "base" if other is None else other.name, "step_other": stop.step_from}
        | {"examples": examples, "similarity": 1.0 - apart, "dissimilarity": apart, "expected": expected}
    ]


def _steps_of_both(run: Run, other: Run | None, steps: Steps) -> list[tuple[int, int | None]]:
    if other is None:
        return [(step, None) for step in chosen_steps(run, steps)]
    if steps is None:
        common = [step for step in run.steps if step in set(other.steps)]
        if not common:
            raise OptionError(
                f"{run.source.where} and {other.source.where} have no step in common; name the steps, or say 'last'"
            )
        return [(step, step) for step in common]
    return list(zip(chosen_steps(run, steps), chosen_steps(other, steps), strict=True))
