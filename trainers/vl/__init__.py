"""The VL experiment: pictures and text in, text out, with BART, trained on four tasks together."""

from deltaw.trainers.vl.data import VLCorpus, load_vl_corpus
from deltaw.trainers.vl.experiment import VLResult, VLSettings, train_vl
from deltaw.trainers.vl.features import load_features, save_features
from deltaw.trainers.vl.grid import GridError, grid_table, train_grid

__all__ = [
    "GridError",
    "VLCorpus",
    "VLResult",
    "VLSettings",
    "grid_table",
    "load_features",
    "load_vl_corpus",
    "save_features",
    "train_grid",
    "train_vl",
]
