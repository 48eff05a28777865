"""Tables that a run makes of itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from deltaw.adapters.checks import public
from deltaw.analysis.tables.work import chosen_work

if TYPE_CHECKING:  # tables are made with pandas, weights are read without
    import pandas as pd

    from deltaw.analysis.tables.run import Run, Steps


class RunTables:
    """The tables of one run; `deltaw.analysis.trajectory.Trajectory` has them as its methods."""

    @public
    def geometry(
        self: Run,
        steps: Steps = None,
        modules: Sequence[str] | None = None,
        *,
        k: int | float = 16,
        measures: Sequence[str] | None = None,
        visible: Sequence[str] = ("bfloat16",),
        progress: bool = False,
        device: str | None = None,
        jobs: int = 1,
        engine: str | None = None,
        address: str | None = None,
        cache: bool = True,
    ) -> pd.DataFrame:
        """Return how the update of every module at every step stands to W₀.

        Arguments:
            steps: The steps; "last" for the last, ``None`` for all that are recorded.
            modules: Glob patterns over the recorded modules; ``None`` for all.
            k: How many leading directions of W₀, or, between 0 and 1, the share of Σσ² that they are to hold.
            measures: Of "rotation", "drift", "off_principal" and "visible"; ``None`` for all.
            visible: Of "bfloat16", "float16", "float32" and "path-not-taken": by which rules a change is visible.
            progress: Show a progress bar.
            device, jobs, engine, address, cache: As in `changes`.

        Returns:
            See `deltaw.analysis.tables.geometry.geometry_table`.

        Raises:
            NonFiniteError: A weight holds NaN or infinity; names module and step.
            OptionError: No such module, step, measure or rule, or ``k`` is out of its range.
        """
        from deltaw.analysis.tables.geometry import geometry_table

        work = chosen_work(device, jobs, engine, address, cache)
        options = {"k": k, "measures": measures, "visible": visible}
        return geometry_table([self], steps, modules, progress=progress, work=work, **options)
