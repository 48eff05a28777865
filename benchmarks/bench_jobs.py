"""Two processes against one: a table of spectra, and runs that are trained, of seconds of work and of minutes.

What two processes can bring at most is the machine's: they share its memory, caches and clock. So the notes say how
much faster two calls are that know nothing of each other, each with one half of the work.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tabulate import tabulate

GOAL = 1.8
MATRICES, SIZE = 4, 1024
CHECKPOINTS = (20, 80)
METHODS, EPOCHS = ("lora", "dora", "bora", "dual-lora"), (20, 60)
CALL = [sys.executable, "-m", "deltaw", "--quiet"]
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}  # one core a process, for one process too


def save_run(folder: Path, checkpoints: int) -> Path:
    """Full checkpoints, whose spectra are each to be computed."""
    generator = torch.Generator().manual_seed(0)
    normal = lambda: torch.randn(SIZE, SIZE, generator=generator)  # noqa: E731
    base = {f"layers.{i}.query.weight": 0.02 * normal() for i in range(MATRICES)}
    for step in range(1, checkpoints + 1):
        file = folder / f"checkpoint-{step}" / "model.safetensors"
        file.parent.mkdir(parents=True)
        save_file({name: weight + 1e-4 * normal() for name, weight in base.items()}, file)
    save_file(base, folder / "base.safetensors")
    return folder


def of_analysis(checkpoints: int) -> dict[str, Any]:
    """In Python, where torch is there and the other processes import it first."""
    from deltaw.analysis import Trajectory
    from deltaw.analysis.workers.processes import release

    with tempfile.TemporaryDirectory() as folder:
        path = save_run(Path(folder) / "run", checkpoints)
        run = Trajectory.open(path, base=path / "base.safetensors")
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        taken = {jobs: seconds(lambda jobs=jobs: run.spectra(jobs=jobs, cache=False)) for jobs in (1, 2)}
        torch.set_num_threads(before)
        release()  # the next row starts its own
        command = [*CALL, "rank", str(path), "--base", str(path / "base.safetensors"), "--all-steps", "--no-cache"]
        halves = [["--modules", f"*.{k}.*", "--modules", f"*.{k + 1}.*"] for k in (0, 2)]
        ceiling = apart(command, halves)
    return row(f"spectra of {MATRICES * checkpoints} matrices {SIZE}×{SIZE}, 2 jobs", taken, ceiling)


def of_training(epochs: int) -> dict[str, Any]:
    """At the command line, from its start to its end."""

    def command(folder: str, name: str) -> list[str]:
        return [*CALL, "train", "cola", "--epochs", str(epochs), "--out", str(Path(folder) / name)]

    with tempfile.TemporaryDirectory() as folder:
        methods = ["--method", ",".join(METHODS)]
        taken = {
            jobs: seconds(lambda jobs=jobs: together([[*command(folder, str(jobs)), *methods, "--jobs", str(jobs)]]))
            for jobs in (1, 2)
        }
        # As they are handed out: the first and the third, the second and the last.
        halves = [["--method", ",".join(METHODS[k::2]), "--jobs", "1", "--out", f"{folder}/half-{k}"] for k in (0, 1)]
        ceiling = apart(command(folder, "halves"), halves, alone=taken[1])
    return row(f"training of {len(METHODS)} methods, {epochs} epochs of the built-in model, 2 jobs", taken, ceiling)


def apart(command: Sequence[str], halves: Sequence[Sequence[str]], alone: float | None = None) -> float:
    """Return how much faster two calls are at a time than all of the work in one."""
    calls = [[*command, *half] for half in halves]
    if alone is None:
        alone = seconds(lambda: together([[*command]]))
    return alone / seconds(lambda: together(calls))


def together(calls: Sequence[Sequence[str]]) -> None:
    """Run some commands at a time."""
    running = [subprocess.Popen(call, stdout=subprocess.DEVNULL, env=ONE_THREAD) for call in calls]
    codes = [each.wait() for each in running]
    if any(codes):
        raise SystemExit("a command failed")


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def row(name: str, taken: dict[int, float], ceiling: float) -> dict[str, Any]:
    ratio = taken[1] / taken[2]
    found = {"name": name, "ours_seconds": taken[2], "other_name": "1 job", "other_seconds": taken[1]}
    note = f"two calls at a time, half of it each: {ceiling:.3g} ×"
    return found | {"ratio": ratio, "goal": GOAL, "met": ratio >= GOAL, "note": note}


def rows() -> list[dict[str, Any]]:
    """The comparisons, each with its goal."""
    return [*map(of_analysis, CHECKPOINTS), *map(of_training, EPOCHS)]


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(tabulate(rows(), headers="keys", floatfmt=".4g"))
