"""What makes a trajectory: the recorder, its schedules and callbacks, and the experiments."""

from typing import TYPE_CHECKING, Any

from deltaw.trainers.recorder import Recorder
from deltaw.trainers.schedules import Schedule, at, epochs, every, geometric

if TYPE_CHECKING:
    from deltaw.trainers.callback import RecorderCallback

__all__ = ["Recorder", "RecorderCallback", "Schedule", "at", "epochs", "every", "geometric"]


def __getattr__(name: str) -> Any:
    """Import what needs transformers when it is asked for: recording in a loop of one's own does not need it."""
    if name == "RecorderCallback":
        from deltaw.trainers.callback import RecorderCallback

        return RecorderCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
