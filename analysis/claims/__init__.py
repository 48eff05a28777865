"""The papers' claims, each with a rule fixed before anything was measured, and the verdict on recorded runs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
