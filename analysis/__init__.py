"""What reads a trajectory: change, spectrum, correlation, tables, figures, claims."""

from deltaw.analysis.change import Axis, Change, change, changes
from deltaw.analysis.correlation import correlation
from deltaw.analysis.inspection import inspect_run
from deltaw.analysis.spectrum import Spectrum, spectrum
from deltaw.analysis.tables import open_runs, table
from deltaw.analysis.trajectory import Trajectory

__all__ = [
    "Axis",
    "Change",
    "Spectrum",
    "Trajectory",
    "change",
    "changes",
    "correlation",
    "inspect_run",
    "open_runs",
    "spectrum",
    "table",
]
