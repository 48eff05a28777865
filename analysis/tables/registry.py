"""The tables by name: what ``table`` makes, and so what a figure or a command can be drawn from.

A new table is a function in a file of its own and a line here; from outside, ``TABLES["mine"] = TableKind(make, "…")``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pandas as pd

from deltaw.adapters.errors import OptionError
from deltaw.analysis.tables.advice import advice_table
from deltaw.analysis.tables.amplification import amplification_table
from deltaw.analysis.tables.changes import changes_table
from deltaw.analysis.tables.geometry import geometry_table
from deltaw.analysis.tables.growth import spectral_growth
from deltaw.analysis.tables.heads import expert_changes, head_changes
from deltaw.analysis.tables.intruders import intruder_table
from deltaw.analysis.tables.model_blocks import block_table
from deltaw.analysis.tables.regions import regions_table
from deltaw.analysis.tables.similarity import similarity_table
from deltaw.analysis.tables.singular_values import singular_values
from deltaw.analysis.tables.spectra import spectra_table
from deltaw.analysis.tables.vectors import vector_changes


@dataclass(frozen=True)
class TableKind:
    """A table of runs.

    Arguments:
        make: The function: make(runs, modules=…, progress=…, …) -> a tidy table, whose first columns are run, method,
            module, layer and kind. Its other arguments are the table's options.
        title: One line on what it shows.

    Raises:
        OptionError: ``make`` is no function.
    """

    make: Callable[..., pd.DataFrame]
    title: str

    def __post_init__(self) -> None:
        if not callable(self.make):
            raise OptionError(f"make is {self.make!r}; pass a function make(runs, …) that returns a table")


TABLES: dict[str, TableKind] = {
    "consecutive": TableKind(partial(changes_table, pairs="consecutive"), "ΔM and ΔD from step to step"),
    "initial": TableKind(partial(changes_table, pairs="initial"), "ΔM and ΔD since the first recorded step"),
    "base": TableKind(partial(changes_table, pairs="base"), "ΔM and ΔD since the base weights"),
    "changes": TableKind(changes_table, "ΔM and ΔD of any pairs of steps"),
    "vectors": TableKind(vector_changes, "how ΔM and ΔD are spread over rows and columns"),
    "heads": TableKind(head_changes, "ΔM and ΔD of single attention heads"),
    "experts": TableKind(expert_changes, "ΔM and ΔD of single experts"),
    "spectra": TableKind(spectra_table, "rank, effective ranks and norms of ΔW"),
    "singular_values": TableKind(singular_values, "the singular values of ΔW"),
    "growth": TableKind(spectral_growth, "how the spectrum of ΔW grows: its entropy, and how unevenly"),
    "amplification": TableKind(amplification_table, "LoRA's amplification factor"),
    "intruders": TableKind(intruder_table, "how like W₀'s the strongest singular vectors of W′ are"),
    "geometry": TableKind(geometry_table, "how ΔW stands to W₀: rotation, drift, off-principal share, visible changes"),
    "similarity": TableKind(similarity_table, "CKA of W′ with W₀, or with another run"),
    "advice": TableKind(advice_table, "the rank that each module's update needs"),
    "blocks": TableKind(block_table, "‖ΔW‖, ‖W₀‖, ΔM and ΔD of every matrix, and the block of the model that it is in"),
    "regions": TableKind(regions_table, "how many rows and columns of ΔW are not zero"),
}
