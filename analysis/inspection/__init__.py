"""What a run holds, whether it is whole, and whether it is sound."""

from deltaw.analysis.inspection.inspect import inspect_run

__all__ = ["inspect_run"]
