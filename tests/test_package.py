"""What a person types first: light to import, complete to list, and plain about wrong calls."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import deltaw
import deltaw.adapters
import deltaw.analysis
import deltaw.trainers
from deltaw.adapters import DeltawError, OptionError

HEAVY = {"torch", "pandas", "matplotlib", "numba", "scipy", "transformers", "seaborn"}
RECORDING = """
import tempfile, torch, deltaw
model = torch.nn.Sequential(torch.nn.Linear(4, 3))
deltaw.inject(model, deltaw.METHODS["bora"](rank=2), targets=["0"])
with deltaw.Recorder(model, tempfile.mkdtemp(), live=True) as recorder:
    recorder.step(0, loss=1.0)
    recorder.step(1)
"""


def loaded_after(code: str) -> set[str]:
    """The modules in a fresh process after some code."""
    command = [sys.executable, "-c", f"{code}\nimport sys; print('LOADED', *sorted(sys.modules))"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.rsplit("LOADED", 1)[1].split())


def test_importing_and_listing_is_light() -> None:
    packages = "deltaw, deltaw.adapters, deltaw.analysis, deltaw.trainers, deltaw.cli, deltaw.analysis.figures"
    found = loaded_after(
        f"import {packages}\ndeltaw.__version__, dir(deltaw), list(deltaw.METHODS), dir(deltaw.adapters)"
    )
    assert not found & HEAVY


def test_recording_loads_torch_and_little_else() -> None:
    found = loaded_after(RECORDING)
    assert "torch" in found
    assert not found & {"pandas", "matplotlib", "seaborn", "transformers", "torch._dynamo"}


def test_every_name_is_there_and_nothing_private() -> None:
    for package in (deltaw, deltaw.adapters, deltaw.analysis, deltaw.trainers):
        for name in dir(package):
            assert getattr(package, name) is not None
            assert not name.startswith("_") or name == "__version__"
    assert {"open", "open_runs", "change", "spectrum", "inject", "Recorder", "METHODS", "__version__"} <= set(
        dir(deltaw)
    )
    assert {"Recorder", "RecorderCallback", "LightningRecorder"} <= set(dir(deltaw.trainers))


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        deltaw.nothing  # noqa: B018


def test_reprs_say_something(tmp_path) -> None:
    assert "rank=2" in repr(deltaw.spectrum(torch.diag(torch.tensor([2.0, 1.0, 0.0]))))
    model = nn.Sequential(nn.Linear(3, 2))
    with deltaw.Recorder(model, tmp_path / "run") as recorder:
        recorder.step(0)
        assert "run" in repr(recorder)
        assert "1 checkpoint" in repr(recorder)


WRONG = {
    "open of nothing": lambda: deltaw.open(None),
    "open of a number": lambda: deltaw.open(3),
    "open_runs of a number": lambda: deltaw.open_runs(3),
    "open_runs of none": lambda: deltaw.open_runs([]),
    "change of texts": lambda: deltaw.change("a", "b", axis="row"),
    "change of lists": lambda: deltaw.change([[1.0]], [[1.0]], axis="row"),
    "change of whole numbers": lambda: deltaw.change(np.eye(2, dtype=int), np.eye(2, dtype=int), axis="row"),
    "change of another axis": lambda: deltaw.change(np.eye(2), np.eye(2), axis="diagonal"),
    "change of other shapes": lambda: deltaw.change(np.eye(2), np.eye(3), axis="row"),
    "spectrum of a text": lambda: deltaw.spectrum("a"),
    "spectrum of a vector": lambda: deltaw.spectrum(np.ones(3)),
    "inject of a name": lambda: deltaw.inject(nn.Sequential(nn.Linear(2, 2)), "lora", targets=["0"]),
    "inject without targets": lambda: deltaw.inject(nn.Sequential(nn.Linear(2, 2)), deltaw.METHODS["lora"](rank=1)),
    "inject into no model": lambda: deltaw.inject("model", deltaw.METHODS["lora"](rank=1), targets=["0"]),
    "a method's wrong option": lambda: deltaw.METHODS["lora"](r=4),
    "a method's option by position": lambda: deltaw.METHODS["lora"](4),
    "a record of no model": lambda: deltaw.Recorder(3, "runs/x"),
    "a record in no folder": lambda: deltaw.Recorder(nn.Sequential(nn.Linear(2, 2)), None),
    "a trajectory of a text": lambda: deltaw.Trajectory("x"),
    "a table of no run": lambda: deltaw.analysis.table("no-such-folder", "base"),
    "a table of no name": lambda: deltaw.analysis.table([], "nothing"),
    "an inspection of a number": lambda: deltaw.analysis.inspect_run(3),
    "an option that Recorder has not": lambda: deltaw.Recorder(nn.Linear(2, 2), "runs/x", every=3),
    "a recorder without a folder": lambda: deltaw.Recorder(nn.Linear(2, 2)),
    "an option that inject has not": lambda: deltaw.inject(nn.Linear(2, 2), deltaw.METHODS["lora"](rank=1), target="0"),
    "an option that change has not": lambda: deltaw.change(np.eye(2), np.eye(2), axes="row"),
    "an option that open has not": lambda: deltaw.open("runs/x", bases="y"),
    "spectrum of two matrices": lambda: deltaw.spectrum(np.eye(2), np.eye(2), np.eye(2)),
}


@pytest.mark.parametrize("call", WRONG)
def test_a_wrong_call_is_an_error_of_our_own(call: str) -> None:
    with pytest.raises(DeltawError):
        WRONG[call]()


def test_a_near_option_is_named() -> None:
    with pytest.raises(OptionError, match=r"has no option 'alhpa' \(did you mean 'alpha'\?\)"):
        deltaw.METHODS["lora"](alhpa=4)
