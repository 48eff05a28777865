"""The papers' figures and more, drawn from the tidy tables of a trajectory, from results, or from matrices.

A name is imported when it is asked for; ``__init__.pyi`` says where each is defined.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
