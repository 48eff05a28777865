"""Inspection: the content of a run, whether it is whole, and whether it is sound."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
