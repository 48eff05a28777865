"""The adapters: a file per method, and injecting, merging and reading the effective weight."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
