"""Where a trajectory comes from: one file a format, all behind the contract of ``Source``."""

from deltaw.analysis.sources.contract import Source
from deltaw.analysis.sources.opening import open_pair, open_source

__all__ = ["Source", "open_pair", "open_source"]
