"""The VL experiment: pictures and text in, text out, with BART, trained on four tasks together."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
