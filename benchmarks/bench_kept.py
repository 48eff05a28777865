"""Kept tables: the second time a table or a plot is asked for, against the first time, and against its imports alone.

Processes of their own, as a person would type it, in turns; of their processor time the least of the rounds counts.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import nn

from deltaw.adapters import BoRA, inject
from deltaw.trainers import Recorder

GOAL = 1 / 1.5  # of the imports' time; the rest is the drawing and 4,000 rows
IMPORTS = (
    "import torch, pandas, matplotlib.figure, deltaw.analysis.figure_tables, deltaw.analysis.figures.kinds.symmetry"
)


def record(folder: Path) -> None:
    """A run as large as that of the demo: 24 matrices of 128², 80 checkpoints."""
    torch.manual_seed(0)
    names = [f"layer_{k}_{kind}" for k in range(8) for kind in ("query", "key", "value")]
    model = nn.ModuleDict({name: nn.Linear(128, 128, bias=False) for name in names})
    inject(model, BoRA(rank=8), targets=["*"])
    with Recorder(model, folder) as recorder:
        for step in range(80):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.01 * torch.randn(parameter.shape) * parameter.requires_grad)
            recorder.step(step)
    time.sleep(2.5)  # younger files are not kept


def seconds(*words: str) -> float:
    """The processor's time, which other processes do not stretch."""
    before = os.times()
    subprocess.run([sys.executable, *words], check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def rows(rounds: int = 3) -> list[dict[str, Any]]:
    """The second time against the first, and against the imports."""
    result = []
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        record(run)
        for name, words in {
            "deltaw plot symmetry": ["plot", "symmetry", str(run), "--kind", "all", "-o", f"{folder}/s.png"],
            "deltaw rank --all-steps": ["rank", str(run), "--all-steps", "-o", f"{folder}/r.csv"],
        }.items():
            first, second, imports = [], [], []
            for _ in range(rounds):
                shutil.rmtree(run / "tables", ignore_errors=True)
                first.append(seconds("-m", "deltaw", *words))
                second.append(seconds("-m", "deltaw", *words))
                imports.append(seconds("-c", IMPORTS if "plot" in words else "import torch, pandas"))
            least = min(second)
            for other_name, other, goal in (
                ("the first time", min(first), None),
                ("imports alone", min(imports), GOAL),
            ):
                result.append(
                    {
                        "name": f"{name} again, 24 matrices × 80 checkpoints",
                        "ours_seconds": least,
                        "other_name": other_name,
                        "other_seconds": other,
                        "ratio": other / least,
                        "goal": goal,
                        "met": None if goal is None else other / least >= goal,
                    }
                )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    print(tabulate(rows(parser.parse_args().rounds), headers="keys", floatfmt=".4g"))


if __name__ == "__main__":
    main()
