"""What a measure loads: torch and NumPy, not what only tables and figures need."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from deltaw.adapters.errors import OptionError, ShapeError
from deltaw.analysis.measures.amplification import amplification
from deltaw.analysis.measures.intruders import intruders
from deltaw.analysis.measures.similarity import similarity
from deltaw.analysis.measures.subspace import directions, overlap, principal_angles
from deltaw.analysis.measures.survival import survival

NAMES = ["amplification", "change", "correlation", "intruders", "similarity", "spectrum", "subspace", "survival"]


def test_measures_load_neither_pandas_nor_matplotlib() -> None:
    code = f"import sys\nfor n in {NAMES!r}: __import__('deltaw.analysis.measures.' + n)\nprint(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    )
    assert not loaded & {"pandas", "matplotlib", "seaborn", "numba", "deltaw.analysis.trajectory"}


def test_every_measure_takes_arrays() -> None:
    before, after = np.diag([3.0, 2.0, 1.0]), np.diag([3.0, 2.0, 4.0])
    moved = directions(after - before)
    assert moved.count == 1
    assert amplification(before, moved, 1).factor == 3.0
    assert intruders(before, after, k=np.int64(3)).count == 0
    assert similarity(before, before) == 1.0
    assert overlap(np.eye(3), np.eye(3)).shape == (3, 3)
    assert torch.equal(principal_angles(np.eye(3), np.eye(3)), torch.zeros(3, dtype=torch.float64))
    assert survival(before, after - before, torch.bfloat16).error == 0


def test_wrong_things_are_named() -> None:
    for call in (lambda: similarity("a", "b"), lambda: intruders(1, 2), lambda: directions("x"), lambda: overlap(1, 2)):
        with pytest.raises(OptionError, match="pass a dense tensor or NumPy array"):
            call()
    with pytest.raises(OptionError, match="base is"):
        survival("a", "b", torch.bfloat16)
    with pytest.raises(OptionError, match="dtype is 'bfloat16'"):
        survival(np.eye(2), np.eye(2), "bfloat16")
    with pytest.raises(ShapeError, match="first has shape"):
        similarity(np.ones(3), np.ones(3))
    with pytest.raises(OptionError, match="dtype is True"):
        survival(np.eye(2), np.eye(2), True)
