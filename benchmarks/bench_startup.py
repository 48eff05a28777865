"""How long the command line takes to answer, as whole processes: against importing click, and against importing torch.

The processes take turns, because other work on the machine slows all of them alike, and what counts is the median. One
round before them is not counted: it fills the caches of the disk and compiles the modules.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tabulate import tabulate

CLICK, TORCH = "python -c 'import click'", "python -c 'import torch'"


def record(folder: Path, checkpoints: int = 3) -> Path:
    """A small run of 2 matrices."""
    import torch
    from torch import nn

    from deltaw.adapters import LoRA, inject
    from deltaw.trainers import Recorder

    torch.manual_seed(0)
    model = inject(nn.ModuleDict({"query": nn.Linear(64, 64), "value": nn.Linear(64, 64)}), LoRA(), targets=["*"])
    with Recorder(model, folder) as recorder:
        for step in range(checkpoints):
            recorder.step(step)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.add_(0.01 * torch.randn_like(parameter))
    return folder


def seconds(command: list[str], environment: dict[str, str] | None = None) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - start


def medians(commands: dict[str, list[str]], rounds: int) -> dict[str, float]:
    """Median seconds of each command, all of them in turn."""
    found: dict[str, list[float]] = {name: [] for name in commands}
    for count in range(rounds + 1):
        for name, command in commands.items():
            taken = seconds(command)
            if count:
                found[name].append(taken)
    return {name: statistics.median(times) for name, times in found.items()}


def rows(rounds: int = 11) -> list[dict[str, Any]]:
    """The comparisons, each with its goal."""
    script = Path(sys.executable).with_name("deltaw")
    deltaw = [str(script)] if script.exists() else [sys.executable, "-m", "deltaw"]
    with tempfile.TemporaryDirectory() as folder:
        run, long = str(record(Path(folder) / "run")), str(record(Path(folder) / "long", 200))
        taken = medians(
            {
                CLICK: [sys.executable, "-c", "import click"],
                TORCH: [sys.executable, "-c", "import torch"],
                "deltaw --help": [*deltaw, "--help"],
                "deltaw changes --pears": ["sh", "-c", '"$@" || true', "sh", *deltaw, "changes", "--pears"],
                "deltaw inspect --quick RUN": [*deltaw, "inspect", "--quick", run],
                "deltaw inspect RUN": [*deltaw, "inspect", run],
                "deltaw inspect RUN of 200 checkpoints": [*deltaw, "inspect", long],
            },
            rounds,
        )
    compared = [
        ("deltaw --help", CLICK, 2.0),
        ("deltaw changes --pears", CLICK, None),
        ("deltaw inspect --quick RUN", TORCH, None),
        ("deltaw inspect RUN", TORCH, 1.3),
        ("deltaw inspect RUN of 200 checkpoints", TORCH, 1.5),
    ]
    return [_row(name, taken[name], other, taken[other], at_most) for name, other, at_most in compared]


def _row(name: str, ours: float, other_name: str, other: float, at_most: float | None) -> dict[str, Any]:
    return {
        "name": name,
        "ours_seconds": ours,
        "other_name": other_name,
        "other_seconds": other,
        "ratio": other / ours,
        "goal": None if at_most is None else 1 / at_most,
        "met": None if at_most is None else ours <= at_most * other,
        "note": f"{ours / other:.2f} times as long" + ("" if at_most is None else f", at most {at_most:g} wanted"),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    print(tabulate(rows(parser.parse_args().rounds), headers="keys", floatfmt=".3g"))
