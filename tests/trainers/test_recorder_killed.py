"""Kill −9 at 200 random moments: the trajectory opens, holds all that was announced, and can be gone on with."""

import multiprocessing
import os
import random
import signal
import time
from contextlib import suppress

import pytest
import torch
from torch import nn

from deltaw.adapters import LoRA, inject
from deltaw.analysis.records.run_folder.format import MANIFEST
from deltaw.analysis.trajectory import Trajectory
from deltaw.trainers import Recorder

ROUNDS, PARTS = 200, 8
WAYS = {  # how it is recorded, and how many checkpoints between two announcements
    "foreground": ({}, 1),
    "background": ({"background": 3}, 4),
    "thinned": ({"keep": 5}, 1),
    "thinned in the background": ({"keep": 5, "background": 2}, 3),
}


def make():
    torch.manual_seed(0)
    return inject(nn.Sequential(nn.Linear(12, 10)), LoRA(rank=2), targets=["0"])


def weights(step):
    """What the model holds at a step: known beforehand, so that a record can be compared with it."""
    return {"lora_A": torch.full((2, 12), float(step)), "lora_B": torch.full((10, 2), float(-step))}


def endless(path, way, announcements):
    """Record without end; announce what is on the disk, once it is."""
    torch.set_num_threads(1)
    options, apart = WAYS[way]
    model = make()
    os.write(announcements, b"begun\n")
    with Recorder(model, path, resume=True, **options) as recorder:
        os.write(announcements, b"open\n")
        for step in range(1_000_000):
            model[0].load_state_dict(weights(step), strict=False)
            recorder.step(step, loss=0.1)
            if step % apart == apart - 1:
                recorder.flush()
                os.write(announcements, b"%s\n" % ",".join(map(str, recorder.steps)).encode())


def killed(path, way, lines, delay):
    """Start it, kill it a while after so many lines, and return the last announcement: None, or the steps."""
    read, write = os.pipe()
    process = multiprocessing.get_context("fork").Process(target=endless, args=(path, way, write))
    process.start()
    os.close(write)
    with os.fdopen(read, "rb", buffering=0) as file:
        data = b""
        while data.count(b"\n") < lines:
            data += file.read(4096)
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        while more := file.read(4096):
            data += more
    last = data[: data.rfind(b"\n")].decode().split("\n")[-1]
    if last == "begun":
        return None
    return [int(step) for step in last.split(",")] if last != "open" else []


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_killed_at_any_moment(part, tmp_path):
    generator = random.Random(part)
    whole = began = 0
    for number in range(ROUNDS // PARTS):
        path, way = tmp_path / str(number), list(WAYS)[number % len(WAYS)]
        announced = killed(path, way, generator.randint(1, 6), 0.02 * generator.random())
        if announced is None and not (path / MANIFEST).exists():
            with suppress(FileNotFoundError):
                assert not any((path / "checkpoints").iterdir())
        else:
            began += 1
            run = Trajectory.open(path)
            whole += bool(announced)
            if "thinned" not in way:
                assert run.steps[: len(announced or [])] == (announced or [])
            else:  # what came after the announcement may have taken the place of some, but never of all
                assert not announced or run.steps[0] == 0
                assert len(run.steps) >= min(len(announced or []), 3)
                assert (run.steps or [0])[-1] >= (announced or [0])[-1]
            assert run.verify() == len(run.steps) + 1
            for step in run.steps:
                assert all(torch.equal(value, weights(step)[key]) for key, value in run.state("0", step).items())
        with Recorder(make(), path, resume=True) as recorder:
            following = recorder.steps[-1] + 1 if recorder.steps else 0
            recorder.record(following)
        assert Trajectory.open(path).steps[-1] == following
        assert Trajectory.open(path).verify() == len(recorder.steps) + 1
    assert 0 < whole <= began  # and not only such as were killed before they began
