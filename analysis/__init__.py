"""The analysis of trajectories: change, spectrum, correlation, tables, figures, claims."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
