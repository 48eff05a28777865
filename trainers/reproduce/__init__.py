"""Reproduce a paper's weight picture: train, record, measure, draw, and hold the result against the paper."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
