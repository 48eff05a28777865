"""Tables that a run makes of itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from deltaw.adapters.checks import public
from deltaw.analysis.tables.work import chosen_work

if TYPE_CHECKING:  # tables are made with pandas, weights are read without
    import pandas as pd

    from deltaw.analysis.tables.run import Budget, Run, Spread, Steps


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
        return geometry_table(
            [self], steps, modules, k=k, measures=measures, visible=visible, progress=progress, work=work
        )

    @public
    def advice(
        self: Run,
        step: int | None = None,
        modules: Sequence[str] | None = None,
        *,
        rule: str = "energy",
        at: float | None = None,
        together: bool = False,
        parameters: Budget = None,
        spread: Spread = None,
        least: int = 1,
        most: int | None = None,
        hardly: float = 0.1,
        drop: bool = False,
        scaling: float | None = None,
        progress: bool = False,
        device: str | None = None,
        jobs: int = 1,
        engine: str | None = None,
        address: str | None = None,
        cache: bool = True,
    ) -> pd.DataFrame:
        """Return a rank for every module, by what its update's singular values say, and which modules hardly moved.

        Arguments:
            step: The step; ``None`` for the last.
            modules: Glob patterns over the recorded modules; ``None`` for all.
            rule, at, together: The rule of a module's rank and its number: "energy" with 0.99, "stable", ….
            parameters, spread: Instead a budget of parameters, or "same", and how it is shared out.
            least, most: Between which every rank lies.
            hardly, drop: Below which share of the median size a module hardly moved; give those no adapter.
            scaling: s of the adapters to come; ``None`` for the one that was trained.
            progress: Show a progress bar.
            device, jobs, engine, address, cache: As in `changes`.

        Returns:
            See `deltaw.analysis.tables.advice.advice_table`; `deltaw.analysis.lora_config` makes PEFT's settings of it.

        Raises:
            OptionError, NonFiniteError: As `advice_table`.
        """
        from deltaw.analysis.tables.advice import advice_table

        return advice_table(
            [self],
            step=step,
            modules=modules,
            rule=rule,
            at=at,
            together=together,
            parameters=parameters,
            spread=spread,
            least=least,
            most=most,
            hardly=hardly,
            drop=drop,
            scaling=scaling,
            progress=progress,
            work=chosen_work(device, jobs, engine, address, cache),
        )
