"""The names of deltaw.trainers, and where each is; they are imported when they are asked for."""

from .bilevel import hypergradient as hypergradient
from .callback import RecorderCallback as RecorderCallback
from .lightning import LightningRecorder as LightningRecorder
from .recorder import Recorder as Recorder
from .schedules import Schedule as Schedule
from .schedules import at as at
from .schedules import epochs as epochs
from .schedules import every as every
from .schedules import geometric as geometric
