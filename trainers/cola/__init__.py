"""The CoLA experiment: the corpus, the built-in data and model, and the fine-tuning run."""

from deltaw.trainers.cola.data import Corpus, load_corpus
from deltaw.trainers.cola.experiment import ColaResult, ColaSettings, train_cola
from deltaw.trainers.cola.grid import GridError, grid_table, train_grid

__all__ = ["ColaResult", "ColaSettings", "Corpus", "GridError", "grid_table", "load_corpus", "train_cola", "train_grid"]
