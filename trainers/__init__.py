"""Recording a trajectory: the recorder, its schedules and callbacks, and the experiments."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
