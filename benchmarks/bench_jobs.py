"""Two processes against one, on work that takes some minutes: a table of spectra, and runs that are trained."""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tabulate import tabulate

GOAL = 1.8
MATRICES, SIZE, CHECKPOINTS = 4, 1024, 20


def save_run(folder: Path) -> Path:
    """Full checkpoints, whose spectra are each to be computed."""
    generator = torch.Generator().manual_seed(0)
    normal = lambda: torch.randn(SIZE, SIZE, generator=generator)  # noqa: E731
    base = {f"layers.{i}.query.weight": 0.02 * normal() for i in range(MATRICES)}
    for step in range(1, CHECKPOINTS + 1):
        file = folder / f"checkpoint-{step}" / "model.safetensors"
        file.parent.mkdir(parents=True)
        save_file({name: weight + 1e-4 * normal() for name, weight in base.items()}, file)
    save_file(base, folder / "base.safetensors")
    return folder


def of_analysis() -> dict[str, Any]:
    from deltaw.analysis import Trajectory

    with tempfile.TemporaryDirectory() as folder:
        run = Trajectory.open(save_run(Path(folder) / "run"), base=Path(folder) / "run" / "base.safetensors")
        taken = {}
        torch.set_num_threads(1)  # one core a process, for one process too
        for jobs in (1, 2):
            start = time.perf_counter()
            run.spectra(jobs=jobs, cache=False)
            taken[jobs] = time.perf_counter() - start
        torch.set_num_threads(2)
    return row(f"spectra of {MATRICES * CHECKPOINTS} matrices {SIZE}×{SIZE}, 2 jobs", taken)


def of_training() -> dict[str, Any]:
    from deltaw.cli import main

    taken = {}
    for jobs in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            words = [
                "train",
                "cola",
                "--method",
                "lora,dora,bora,dual-lora",
                "--epochs",
                "20",
                "--out",
                folder,
                "--quiet",
            ]
            if main([*words, "--jobs", str(jobs)]):
                raise SystemExit(f"training with {jobs} jobs failed")
            taken[jobs] = time.perf_counter() - start
    return row("training of 4 methods, the built-in model, 2 jobs", taken)


def row(name: str, taken: dict[int, float]) -> dict[str, Any]:
    ratio = taken[1] / taken[2]
    found = {"name": name, "ours_seconds": taken[2], "other_name": "1 job", "other_seconds": taken[1]}
    return found | {"ratio": ratio, "goal": GOAL, "met": ratio >= GOAL}


def rows() -> list[dict[str, Any]]:
    """The comparisons, each with its goal."""
    return [of_analysis(), of_training()]


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(tabulate(rows(), headers="keys", floatfmt=".4g"))
