"""Inspecting a run: by names and sizes alone, and what may be handed in."""

import subprocess
import sys

import pytest
import torch

from deltaw.adapters import LoRA, inject
from deltaw.adapters.errors import DeltawError
from deltaw.analysis import Trajectory, inspect_run
from deltaw.trainers import Recorder


@pytest.fixture
def recorded(tmp_path):
    model = inject(torch.nn.Sequential(torch.nn.Linear(6, 4)), LoRA(rank=2), targets=["0"])
    with Recorder(model, tmp_path / "run") as recorder:
        recorder.step(0)
        recorder.step(5)
    return tmp_path / "run"


QUICK = """
import sys
from deltaw.analysis.inspection import inspect_run
found = inspect_run(sys.argv[1], check=False, modules=["*"])
heavy = [name for name in ("torch", "pandas", "matplotlib", "numba", "numpy") if name in sys.modules]
print(found["method"], found["steps"], found["modules"][0]["method"], found["options"]["lora"]["rank"], heavy)
"""


def test_names_and_sizes_need_no_torch(recorded):
    found = subprocess.run([sys.executable, "-c", QUICK, recorded], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "lora [0, 5] lora 2 []"


def test_a_quick_look_says_what_a_full_one_says(recorded):
    quick, full = inspect_run(recorded, check=False), inspect_run(recorded)
    assert quick == {name: value for name, value in full.items() if name in quick}


@pytest.mark.parametrize("given", [None, 3, ["a"], b"run"])
def test_what_is_no_path_is_an_error_that_says_what_to_give(given):
    with pytest.raises(DeltawError, match="give the run's folder, a file, an address or an opened run"):
        inspect_run(given)


def test_an_opened_run_is_taken(recorded):
    run = Trajectory.open(recorded)
    assert inspect_run(run)["steps"] == [0, 5]
    assert inspect_run(run)["findings"] == inspect_run(recorded)["findings"]
    with pytest.raises(DeltawError, match="leave base and modules out"):
        inspect_run(run, modules=["0"])


@pytest.mark.parametrize("options", [{"modules": 3}, {"modules": [3]}, {"dtypes": torch.float32}, {"dtypes": ["bf16"]}])
def test_options_of_a_wrong_type_are_named(recorded, options):
    with pytest.raises(DeltawError, match=f"{next(iter(options))} is .*; give "):
        inspect_run(recorded, **options)


@pytest.mark.parametrize("path", ["a" * 5000, "a\0b", "nowhere"])
def test_a_path_that_no_file_has(path):
    with pytest.raises(DeltawError, match="no such folder"):
        inspect_run(path)
