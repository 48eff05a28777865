"""Where a trajectory comes from: one file a format, all behind the contract of ``Source``."""
