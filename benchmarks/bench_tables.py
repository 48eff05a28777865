"""The table of ΔM and ΔD: of what adapters recorded, against ``changes`` of as many pairs of ready matrices; and of
full checkpoints, against reading and summing the same bytes once, with the page cache warm.

The contenders take turns in one process, and the least of the rounds counts. Of the memory, a process of its own tells
the peak, in matrices above what it had before the table.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tabulate import tabulate
from torch import nn

from deltaw.adapters import create, inject
from deltaw.analysis import Trajectory, changes
from deltaw.trainers import Recorder

RECORDS = [(method, size, pairs) for size, pairs in ((4096, 8), (768, 100)) for method in ("lora", "dora", "bora")]
FULL = 2048, 10  # size, checkpoints
MEMORY = (2048, (10, 200)), (1024, (10, 200))  # size, checkpoints; the goal is of the first

PEAK = """
import sys, threading, time
import deltaw.analysis as analysis
small, whole = (analysis.Trajectory.open(path, base=f"{path}/base.safetensors") for path in sys.argv[1:])
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
seen, done = [], False
def watch():
    while not done:
        seen.append(resident())
        time.sleep(0.0002)
small.changes(("consecutive", "base"), cache=False)
before = resident()
thread = threading.Thread(target=watch)
thread.start()
whole.changes(("consecutive", "base"), cache=False)
done = True
thread.join()
print(max(seen) - before)
"""


def record(folder: Path, method: str, size: int, steps: int) -> Trajectory:
    """A run of one matrix with rank 8."""
    torch.manual_seed(0)
    model = inject(nn.ModuleDict({"query": nn.Linear(size, size, bias=False)}), create(method, rank=8), targets=["*"])
    with Recorder(model, folder) as recorder:
        for step in range(steps):
            recorder.step(step)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.add_(torch.randn_like(parameter), alpha=1e-3 * (float(parameter.abs().mean()) + 0.01))
    return Trajectory.open(folder)


def save(folder: Path, size: int, checkpoints: int) -> list[Path]:
    """Full checkpoints of a model of two matrices, and its base."""
    generator = torch.Generator().manual_seed(0)
    base = {f"layers.{i}.query.weight": 0.02 * torch.randn(size, size, generator=generator) for i in range(2)}
    files = []
    for step in range(1, checkpoints + 1):
        files.append(folder / f"checkpoint-{step}" / "model.safetensors")
        files[-1].parent.mkdir(parents=True)
        noise = 1e-5 * torch.randn(size, size, generator=generator)
        save_file({name: weight + noise for name, weight in base.items()}, files[-1])
    save_file(base, folder / "base.safetensors")
    return [*files, folder / "base.safetensors"]


def least(work: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds, the least of rounds in which the contenders take turns; the first round warms up."""
    found = dict.fromkeys(work, float("inf"))
    for count in range(rounds + 1):
        for name, run in work.items():
            start = time.perf_counter()
            run()
            if count:
                found[name] = min(found[name], time.perf_counter() - start)
    return found


def matrices_at_peak(folder: Path, size: int, checkpoints: int) -> float:
    save(folder / "small", size, 3)
    save(folder / "whole", size, checkpoints)
    command = [sys.executable, "-c", PEAK, str(folder / "small"), str(folder / "whole")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout) / (4 * size**2)


def of_record(method: str, size: int, pairs: int, rounds: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    ready = [0.02 * torch.randn(size, size, generator=generator) for _ in range(4)]
    with tempfile.TemporaryDirectory() as folder:
        run = record(Path(folder) / "run", method, size, pairs + 1)

        def dense() -> None:
            for count in range(pairs):
                changes(ready[count % 4], ready[(count + 1) % 4])

        seconds = least({"ours": lambda: run.changes("consecutive", cache=False), "ready": dense}, rounds)
    what, other = f"table of a {method} record, {size}×{size}, {pairs} pairs, a pair", "changes of two ready matrices"
    return compared(what, other, seconds["ours"] / pairs, seconds["ready"] / pairs, 1 / 1.5)


def of_full(rounds: int) -> dict[str, Any]:
    size, checkpoints = FULL
    with tempfile.TemporaryDirectory() as folder:
        files = save(Path(folder) / "run", size, checkpoints)
        run = Trajectory.open(Path(folder) / "run", base=files[-1])

        def read() -> None:
            for file in files:
                for weight in load_file(file).values():
                    weight.sum()

        seconds = least({"ours": lambda: run.changes(("consecutive", "base"), cache=False), "read": read}, rounds)
    peaks = []
    for of_size, counts in MEMORY:
        found = []
        for count in counts:
            with tempfile.TemporaryDirectory() as folder:
                found.append(f"{matrices_at_peak(Path(folder), of_size, count):.1f}")
        peaks.append(f"{' and '.join(found)} of {of_size}×{of_size} at {' and '.join(map(str, counts))} checkpoints")
    what = f"table of full checkpoints, {size}×{size}, consecutive and base pairs"
    row = compared(what, "reading and summing the bytes", seconds["ours"], seconds["read"], 1 / 2)
    return row | {"note": f"peak in matrices: {'; '.join(peaks)}; goal: at most 4"}


def compared(name: str, other: str, ours: float, theirs: float, goal: float) -> dict[str, Any]:
    ratio = theirs / ours
    row = {"name": name, "ours_seconds": ours, "other_name": other, "other_seconds": theirs}
    return row | {"ratio": ratio, "goal": goal, "met": ratio >= goal}


def rows(rounds: int = 7) -> list[dict[str, Any]]:
    """The comparisons, each with its goal."""
    return [*(of_record(*given, rounds) for given in RECORDS), of_full(rounds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    print(tabulate(rows(parser.parse_args().rounds), headers="keys", floatfmt=".4g"))


if __name__ == "__main__":
    main()
