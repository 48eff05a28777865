"""The spectrum of an update by its cheapest exact way, against the singular values of the dense update."""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tabulate import tabulate

from deltaw.adapters.methods.registry import METHODS
from deltaw.analysis import Trajectory, spectrum
from deltaw.analysis.measures.leading import leading_spectrum, leading_values

DISTINCT = 4  # checkpoints that are written; the others are links to them


def least(run: Callable[[], Any], rounds: int) -> float:
    """Seconds, the least of some rounds."""
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


def row(name: str, ours: float, other_name: str, other: float, goal: float | None) -> dict[str, Any]:
    return {
        "name": name,
        "ours_seconds": ours,
        "other_name": other_name,
        "other_seconds": other,
        "ratio": other / ours,
        "goal": goal,
        "met": None if goal is None else other / ours >= goal,
    }


def rows(rounds: int = 15, size: int = 4096, rank: int = 64) -> list[dict[str, Any]]:
    """The comparisons, each with its goal."""
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.randn(shape, generator=generator) for shape in ((size, rank), (rank, size)))
    update = u @ v
    cheap = lambda: spectrum(factors=(u, v)).rank  # noqa: E731
    assert cheap() == rank
    before = least(cheap, rounds)
    dense = least(lambda: torch.linalg.svdvals(update), 1)  # half a minute: once, between two goes at ours
    factors = min(before, least(cheap, rounds))

    small = size // 4
    weight = torch.randn(small, small, generator=generator).bfloat16()
    moved = update[:small, :small].clone()
    plain = least(lambda: spectrum(moved), 3)
    floor = least(lambda: spectrum(moved, stored=torch.bfloat16, weight=weight), 3)
    return [
        row(f"rank from factors, {size}×{size}, rank {rank}", factors, "svdvals of the dense float32", dense, 500.0),
        row(f"spectrum with noise floor, {small}×{small}", floor, "spectrum without", plain, None),
        *dense_rows(),
        *side_by_side_rows(),
        table_row(),
    ]


def bora_update(size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """ΔW and W' of a BoRA layer of rank 8 after some steps, both magnitudes moved by a thousandth."""
    method = METHODS["bora"](rank=8, alpha=16)
    normal = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    base = 0.02 * normal(size, size)
    state = {
        "lora_A": 0.02 * normal(8, size),
        "lora_B": 0.005 * normal(size, 8),
        "magnitude_row": base.norm(dim=1) * (1 + 1e-3 * normal(size)),
    }
    state["magnitude_column"] = base.norm(dim=0) * (1 + 1e-3 * normal(size))
    weight = method.weight(base, state)
    return weight - base, weight


def dense_rows(rounds: int = 3, size: int = 2048) -> list[dict[str, Any]]:
    """A BoRA update recorded in float32, on one thread and on all: its spectrum, and what the largest σ tell."""
    before = torch.get_num_threads()
    found = []
    for threads in sorted({1, before}):
        torch.set_num_threads(threads)
        found += dense_rows_on(f"{threads} thread{'s' if threads > 1 else ''}", rounds, size)
    torch.set_num_threads(before)
    return found


def dense_rows_on(threads: str, rounds: int, size: int) -> list[dict[str, Any]]:
    """The contenders take turns; each gets the least of its rounds."""
    update, weight = bora_update(size, torch.Generator().manual_seed(0))
    floored = {"stored": torch.float32, "weight": weight}
    norms = ("frobenius", "spectral", "stable_rank")
    work: dict[str, Callable[[], Any]] = {
        "whole": lambda: spectrum(update, **floored),
        "norms": lambda: leading_spectrum(update, **floored, energy=[0.9, 0.99], measures=norms),
        "tolerance": lambda: leading_spectrum(update, **floored, energy=[0.9, 0.99]),
        "sums": lambda: leading_spectrum(update, **floored, measures=("frobenius", "zero_rows", "zero_columns")),
        "top": lambda: leading_values(update, 8),
        "approximate": lambda: spectrum(update, **floored, approximate=0.05),
    }
    whole, leading, near = work["whole"](), work["norms"](), work["approximate"]()
    assert leading.energy_ranks == {share: whole.energy_rank(share) for share in (0.9, 0.99)}
    assert abs(leading.stable_rank / whole.stable_rank - 1) < 1e-6
    seconds, dense = dict.fromkeys(work, float("inf")), float("inf")
    for _ in range(rounds):
        dense = min(dense, least(lambda: torch.linalg.svdvals(update), 1))
        for name, run in work.items():
            seconds[name] = min(seconds[name], least(run, 1 if name == "whole" else 5))
    compared = {
        "whole": ("the whole spectrum", 10.0, f"route {whole.route}"),
        "norms": ("norms, stable and energy ranks", 50.0, f"route {leading.route}"),
        "tolerance": ("the same and the tolerance, with ‖W‖₂", None, "in a table ‖W₀‖₂ comes once a module"),
        "sums": ("Frobenius norm, zero rows and columns", None, "route sums"),
        "top": ("the 8 largest singular values", None, "right to 1e-6"),
        "approximate": ("approximate=0.05", None, f"error {near.error:.2g}"),
    }
    return [
        row(f"{what} of a BoRA update, {size}×{size}, {threads}", seconds[name], "float64 svdvals", dense, goal)
        | {"note": note}
        for name, (what, goal, note) in compared.items()
    ]


def side_by_side_rows(matrices: int = 24, size: int = 1024, rounds: int = 3) -> list[dict[str, Any]]:
    """The spectra of full checkpoints: a table measures as many matrices at once as torch has threads."""
    generator = torch.Generator().manual_seed(0)
    normal = lambda: torch.randn(size, size, generator=generator)  # noqa: E731
    base = {f"layers.{i}.query.weight": 0.02 * normal() for i in range(matrices)}
    before = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_file(base, folder / "base.safetensors")
        save_file({name: weight + 1e-4 * normal() for name, weight in base.items()}, folder / "model.safetensors")
        run = Trajectory.open(folder / "model.safetensors", base=folder / "base.safetensors")
        updates = [run.update(module, run.steps[-1]) for module in run.modules]
        work = {
            "all": lambda: run.spectra(cache=False),
            "one": lambda: run.spectra(cache=False),
            "svdvals": lambda: [torch.linalg.svdvals(update) for update in updates],
        }
        seconds = dict.fromkeys(work, float("inf"))
        for _ in range(rounds):
            for contender, measure in work.items():
                torch.set_num_threads(1 if contender == "one" else before)
                seconds[contender] = min(seconds[contender], least(measure, 1))
        torch.set_num_threads(before)
    what = f"spectra of {matrices} updates {size}×{size}, {before} threads"
    return [
        row(what, seconds["all"], "the same table on one thread", seconds["one"], None),
        row(what, seconds["all"], f"float64 svdvals one after the other, {before} threads", seconds["svdvals"], None),
    ]


def table_row(checkpoints: int = 80, matrices: int = 24, size: int = 4096, rank: int = 64) -> dict[str, Any]:
    """The rank table of a LoRA run that PEFT saved; the dense updates' svdvals are timed on one, and multiplied."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generator = torch.Generator().manual_seed(0)
        for step in range(1, checkpoints + 1):
            place = folder / f"checkpoint-{step}"
            place.mkdir()
            if step <= DISTINCT:
                write_adapter(place, matrices, size, rank, generator)
            else:
                link(folder / f"checkpoint-{1 + step % DISTINCT}", place)
        run = Trajectory.open(folder)
        ours = least(lambda: run.spectra(cache=False), 1)
        u, v = run.factors(run.modules[0], 1)
    dense = least(lambda: torch.linalg.svdvals(u.float() @ v.float()), 1) * checkpoints * matrices
    name = f"rank table of {checkpoints} LoRA checkpoints × {matrices} matrices {size}×{size}, rank {rank}"
    return row(name, ours, "svdvals of the dense updates, one timed", dense, 1000.0)


def write_adapter(folder: Path, matrices: int, size: int, rank: int, generator: torch.Generator) -> None:
    tensors = {}
    for i in range(matrices):
        name = f"base_model.model.model.layers.{i}.self_attn.q_proj"
        for part, shape in (("lora_A", (rank, size)), ("lora_B", (size, rank))):
            tensors[f"{name}.{part}.weight"] = torch.randn(shape, generator=generator)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


def link(there: Path, here: Path) -> None:
    """The same checkpoint once more, without its bytes."""
    for file in there.iterdir():
        os.link(file, here / file.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    print(tabulate(rows(parser.parse_args().rounds), headers="keys", floatfmt=".4g"))


if __name__ == "__main__":
    main()
