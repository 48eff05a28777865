"""Runs and a measure for the tests of tables that other processes make; these import this file, too."""

import contextlib
import os
import signal
import time
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save_file
from torch import nn

from deltaw.adapters import METHODS, inject
from deltaw.adapters.methods.registry import options_of
from deltaw.analysis.tables.run import LABELS
from deltaw.analysis.tables.walk import Walk, at_steps
from deltaw.analysis.tables.work import Work
from deltaw.trainers import Recorder

TWO = Work(jobs=2)
NAMES = ("0", "1", "2", "3")


def recorded(folder, method="bora", steps=14) -> Path:
    """A run of four modules."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(24, 16), nn.Linear(16, 24), nn.Linear(24, 40), nn.Linear(40, 16))
    # The others' options have defaults; CorDA asks for a context.
    inject(net, METHODS[method](**({"rank": 4} if "rank" in options_of(method) else {})), targets=list(NAMES))
    with Recorder(net, folder) as recorder:
        for step in range(steps):
            recorder.step(step)
            with torch.no_grad():
                for parameter in net.parameters():
                    if parameter.requires_grad:
                        parameter += torch.randn_like(parameter) * 1e-3
    return folder


def models(tmp_path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A model of three matrices, and a base that lacks one of them."""
    draw = torch.Generator().manual_seed(0)
    after = {f"layers.{name}.query.weight": torch.randn(4, 3, generator=draw) for name in "012"}
    save_file(after, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors", {k: v + 1 for k, v in after.items() if ".2." not in k}


def of_stop(stop, killer, marks) -> list[dict]:
    """A measure that kills its process at one module, the first time or always, or another process by its number."""
    if killer and stop.module == killer[0]:
        if isinstance(killer[1], int):
            with contextlib.suppress(ProcessLookupError):
                os.kill(killer[1], signal.SIGKILL)
            time.sleep(1.0)  # so that its answer finds nobody
            return []
        if killer[1] == "memory":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
        mark = Path(marks) / stop.module
        if killer[1] == "always" or not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return [stop.labels | {"step": stop.step, "norm": float(stop.run.update(stop.module, stop.step).norm())}]


def norms(run, killer, marks, work=TWO, **options) -> pd.DataFrame:
    walk = Walk([run], "norms", at_steps(None), work=work, **options)
    return walk.frame(walk.rows(partial(of_stop, killer=killer, marks=str(marks))), [*LABELS, "step", "norm"])
