"""What a person types first, and where each is; the names are imported when they are asked for."""

from .adapters.injection import inject as inject
from .adapters.injection import merge as merge
from .adapters.methods.registry import METHODS as METHODS
from .analysis.measures.change import change as change
from .analysis.measures.correlation import correlation as correlation
from .analysis.measures.spectrum import spectrum as spectrum
from .analysis.report.write import report as report
from .analysis.runs import compare as compare
from .analysis.runs import open as open
from .analysis.runs import open_runs as open_runs
from .analysis.trajectory import Trajectory as Trajectory
from .trainers.callback import RecorderCallback as RecorderCallback
from .trainers.lightning import LightningRecorder as LightningRecorder
from .trainers.recorder import Recorder as Recorder

__version__: str
