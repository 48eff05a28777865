"""What makes a trajectory: the recorder, its schedules and callbacks, and the experiments."""

from typing import TYPE_CHECKING, Any

from deltaw.trainers.recorder import Recorder
from deltaw.trainers.schedules import Schedule, at, epochs, every, geometric

if TYPE_CHECKING:
    from deltaw.trainers.callback import RecorderCallback
    from deltaw.trainers.lightning import LightningRecorder

__all__ = ["LightningRecorder", "Recorder", "RecorderCallback", "Schedule", "at", "epochs", "every", "geometric"]


def __getattr__(name: str) -> Any:
    """Import what needs transformers or Lightning when it is asked for: a loop of one's own needs neither."""
    if name == "RecorderCallback":
        from deltaw.trainers.callback import RecorderCallback

        return RecorderCallback
    if name == "LightningRecorder":
        from deltaw.trainers.lightning import LightningRecorder

        return LightningRecorder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
