"""What a person types first, and where each is; the names are imported when they are asked for."""

from .adapters import METHODS as METHODS
from .adapters import inject as inject
from .analysis import change as change
from .analysis import open_runs as open_runs
from .analysis import spectrum as spectrum
from .trainers import Recorder as Recorder

__version__: str
