"""The power is lost at any moment: what had been announced is there, and the training goes on."""

import os
import random
from pathlib import Path

import pytest
import torch
from torch import nn

from deltaw.adapters import LoRA, inject
from deltaw.adapters.errors import RecordError
from deltaw.analysis.records.run_folder.format import MANIFEST, SCALARS
from deltaw.analysis.records.run_folder.repair import repair_run
from deltaw.analysis.records.storage import atomic
from deltaw.analysis.trajectory import Trajectory
from deltaw.trainers import Recorder

from .disk_model import Trace, states

SAMPLED = None if os.environ.get("CI") else 60


def make():
    torch.manual_seed(0)
    return inject(nn.Sequential(nn.Linear(4, 3)), LoRA(rank=1), targets=["0"])


def weights(step):
    """What the model holds at a step: known beforehand, so that a record can be compared with it."""
    return {"lora_A": torch.full((1, 4), float(step)), "lora_B": torch.full((3, 1), float(-step))}


def train(path, steps, note=lambda steps: None, **options):
    model = make()
    with Recorder(model, path, **options) as recorder:
        for step in steps:
            model[0].load_state_dict(weights(step), strict=False)
            recorder.step(step, loss=0.1)
            if step % 2 or not options.get("background"):
                recorder.flush()
                note(recorder.steps)
    note(recorder.steps)


def traced(folder, monkeypatch, options, resumed=None):
    folder.mkdir()
    with monkeypatch.context() as patch:
        trace = Trace(folder, patch)
        train(folder / "run", range(5), trace.note, **options)
        if resumed is not None:
            trace.note(resumed[:2])  # from here on, what comes at or after the step may go
            train(folder / "run", range(2, 4), trace.note, resume=True, **options)
    return trace


def put(root, files):
    for path, data in files.items():
        if data is None:
            Path(path).mkdir(parents=True)
    for path, data in files.items():
        if data is not None:
            Path(path).write_bytes(data)
    root.mkdir(exist_ok=True)


def check(run, announced, thinned):
    """Return what is wrong."""
    if announced and not (run / MANIFEST).exists():
        return "no manifest"
    if (run / MANIFEST).exists():
        opened = Trajectory.open(run)
        if not thinned and not set(announced or ()) <= set(opened.steps):
            return f"announced {announced}, there {opened.steps}"
        if thinned and announced and not (opened.steps[0] == 0 and opened.steps[-1] >= announced[-1]):
            return f"announced {announced}, there {opened.steps}"
        for step in opened.steps:
            if not all(torch.equal(value, weights(step)[key]) for key, value in opened.state("0", step).items()):
                return f"step {step} is another"
        try:
            opened.verify()
        except RecordError as error:  # the log is flushed when the recorder is closed, and not before
            if SCALARS not in str(error):
                return str(error)
            repair_run(run)
            opened = Trajectory.open(run)
            opened.verify()
        last = (opened.steps or [-1])[-1]
    else:
        last = -1
    train(run, [last + 1], resume=True)
    Trajectory.open(run).verify()
    return ""


def problems(trace, root, *, thinned=False, sampled=SAMPLED):
    found = list(states(trace))
    assert len(found) > 100
    for number, (announced, files) in enumerate(found if sampled is None else random.Random(0).sample(found, sampled)):
        here = root / str(number)
        put(here, {path.replace(str(trace.root), str(here)): data for path, data in files.items()})
        try:
            problem = check(here / "run", announced, thinned)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        if problem:
            yield problem, sorted(Path(path).name for path in files)


WAYS = {
    "plain": ({}, None),
    "thinned": ({"keep": 2}, None),
    "background": ({"background": 2}, None),
    "resumed": ({}, [0, 1, 2, 3, 4]),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_state_that_a_crash_may_leave_opens_with_all_that_was_announced(way, tmp_path, monkeypatch):
    options, resumed = WAYS[way]
    trace = traced(tmp_path / "traced", monkeypatch, options, resumed)
    found = list(problems(trace, tmp_path, thinned="keep" in options))
    assert not found, (len(found), found[:5])


@pytest.mark.parametrize("left_out", ["file", "folder", "index"])
def test_the_model_sees_a_flush_that_is_left_out(left_out, tmp_path, monkeypatch):
    """Without one of them there are states that lose something."""
    real = os.fsync

    def fsync(descriptor):
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if left_out == "file" and name.endswith(".partial"):
            return
        if left_out == "index" and name.endswith("checkpoints.jsonl"):
            return
        real(descriptor)

    if left_out == "folder":
        monkeypatch.setattr(atomic, "sync_folder", lambda folder: None)
    folder = tmp_path / "traced"
    folder.mkdir()
    with monkeypatch.context() as patch:
        trace = Trace(folder, patch)
        traced_fsync = os.fsync
        real = traced_fsync
        patch.setattr(os, "fsync", fsync)
        train(folder / "run", range(2), trace.note)
    assert next(problems(trace, tmp_path, sampled=None), None)
