from .data import Corpus as Corpus
from .data import load_corpus as load_corpus
from .experiment import ColaResult as ColaResult
from .experiment import train_cola as train_cola
from .grid import GridError as GridError
from .grid import grid_table as grid_table
from .grid import train_grid as train_grid
from .settings import ColaSettings as ColaSettings
