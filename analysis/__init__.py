"""What reads a trajectory: change, spectrum, correlation, tables, figures, claims."""

from deltaw.analysis.inspection.inspect import inspect_run
from deltaw.analysis.measures.amplification import Amplification, amplification
from deltaw.analysis.measures.change import Axis, Change, change, changes
from deltaw.analysis.measures.correlation import correlation
from deltaw.analysis.measures.intruders import Intruders, intruders
from deltaw.analysis.measures.similarity import dissimilarity, similarity
from deltaw.analysis.measures.spectrum import Spectrum, spectrum
from deltaw.analysis.measures.subspace import Directions, directions, overlap, principal_angles
from deltaw.analysis.tables.dynamics import (
    amplification_table,
    intruder_table,
    similarity_table,
    singular_values,
    subspace_angles,
    subspace_overlap,
    vector_changes,
)
from deltaw.analysis.tables.runs import open_runs, table
from deltaw.analysis.trajectory import Trajectory

__all__ = [
    "Amplification",
    "Axis",
    "Change",
    "Directions",
    "Intruders",
    "Spectrum",
    "Trajectory",
    "amplification",
    "amplification_table",
    "change",
    "changes",
    "correlation",
    "directions",
    "dissimilarity",
    "inspect_run",
    "intruder_table",
    "intruders",
    "open_runs",
    "overlap",
    "principal_angles",
    "similarity",
    "similarity_table",
    "singular_values",
    "spectrum",
    "subspace_angles",
    "subspace_overlap",
    "table",
    "vector_changes",
]
