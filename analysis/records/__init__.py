"""Where a trajectory comes from: one file a format, all behind the contract of ``Source``."""

from deltaw.analysis.records.open import open_pair, open_source
from deltaw.analysis.records.source import Source

__all__ = ["Source", "open_pair", "open_source"]
