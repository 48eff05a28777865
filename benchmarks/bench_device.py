"""Measuring and training on a GPU, against the processor and against PEFT. Without a GPU there is one row that says so.

Tables are those of runs on disk, so that reading and copying count; the last digits may differ, and how far is noted.
Training steps are taken in bfloat16.
"""

import argparse
import copy
import gc
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import bench_step
import pandas as pd
import torch
from bench_tables import record
from safetensors.torch import save_file
from tabulate import tabulate

from deltaw.analysis import Trajectory

GOAL = 1.0
STEPS = [("lora", "peft lora"), ("dora-row", "peft dora"), ("bora", "lora"), ("bora", "peft dora")]
TOKENS = (256, 1024, 8192)


def device() -> str | None:
    """The first GPU that torch finds."""
    return "cuda:0" if torch.cuda.is_available() else None


def full(folder: Path, size: int, steps: int) -> Trajectory:
    """A run of whole models of one matrix, and its base."""
    generator = torch.Generator().manual_seed(0)
    base = 0.02 * torch.randn(size, size, generator=generator)
    for step in range(1, steps + 1):
        file = folder / f"checkpoint-{step}" / "model.safetensors"
        file.parent.mkdir(parents=True)
        moved = base + 1e-4 * torch.randn(size, size, generator=generator)
        save_file({"layers.0.query.weight": moved}, file)
    save_file({"layers.0.query.weight": base}, folder / "base.safetensors")
    return Trajectory.open(folder, base=folder / "base.safetensors")


def seconds(call: Callable[[], Any], rounds: int) -> float:
    """The least of some rounds, after one that compiles and warms up."""
    call()
    least = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        least = min(least, time.perf_counter() - start)
    return least


def changes(run: Trajectory, where: str) -> pd.DataFrame:
    return run.changes(("consecutive", "base"), device=where, cache=False)


def spectra(run: Trajectory, where: str) -> pd.DataFrame:
    return run.spectra("last", device=where, cache=False)


def tables(there: str, size: int = 4096, steps: int = 8, rounds: int = 3) -> list[dict[str, Any]]:
    """Tables on the device against those of the processor."""
    result = []
    with tempfile.TemporaryDirectory() as folder:
        runs = {"full checkpoints": full(Path(folder) / "full", size, steps)}
        runs |= {name: record(Path(folder) / name, name, size, steps) for name in ("lora", "bora")}
        for name, run in runs.items():
            for what, make in (("changes", changes), ("spectra", spectra)):
                ours, other = (seconds(partial(make, run, where), rounds) for where in (there, "cpu"))
                have, want = (make(run, where).select_dtypes("float") for where in (there, "cpu"))
                apart = float(((have - want).abs() / want.abs().clip(lower=1e-12)).max().max())
                result.append(
                    row(f"{what} of {name}, {steps} × {size}²", ours, "processor", other, f"{apart:.1e} apart")
                )
    return result


def training(there: str, tokens: tuple[int, ...] = TOKENS, rounds: int = 20) -> list[dict[str, Any]]:
    """Training steps in bfloat16, ours against another's."""
    base, result = bench_step.model().to(torch.bfloat16), []
    for length in tokens:
        for mine, other in STEPS:
            nets = [
                (bench_step.theirs if "peft" in name else bench_step.ours)(copy.deepcopy(base), name, 8).to(there)
                for name in (mine, other)
            ]
            steps = [bench_step.stepper(net, length) for net in nets]
            ours, theirs, ratio = bench_step.measure(*steps, rounds)
            made = row(f"step {mine}, rank 8, {length} tokens, bfloat16", ours, other, theirs, "")
            goal = GOAL if "peft" in other else 1 / 1.15
            result.append(made | {"ratio": ratio, "goal": goal, "met": ratio >= goal})
            del nets, steps
            gc.collect()
    return result


def row(name: str, ours: float, other_name: str, other: float, note: str) -> dict[str, Any]:
    about = {"name": f"GPU: {name}", "ours_seconds": ours, "other_name": other_name, "other_seconds": other}
    return about | {"ratio": other / ours, "goal": None, "met": None, "note": note}


def rows() -> list[dict[str, Any]]:
    """All of them; without a GPU one that says so."""
    there = device()
    if there is None:
        nothing = {"ours_seconds": None, "other_name": "", "other_seconds": None, "ratio": None}
        return [{"name": "GPU", **nothing, "goal": None, "met": None, "note": "no GPU here, so nothing was measured"}]
    found = [*tables(there), *training(there)]
    named = f"on {torch.cuda.get_device_name(there)}"
    return [made | {"note": f"{made['note']}, {named}" if made["note"] else named} for made in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--try-on-cpu", action="store_true", help="small sizes, with the processor as the device")
    small = parser.parse_args().try_on_cpu
    found = [*tables("cpu", 256, 3, 1), *training("cpu", (64,), 1)] if small else rows()
    print(tabulate(found, headers="keys", floatfmt=".4g"))


if __name__ == "__main__":
    main()
