"""The rank of an update from its factors, against the singular values of the dense update."""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from tabulate import tabulate

from deltaw.analysis import spectrum


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
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    print(tabulate(rows(parser.parse_args().rounds), headers="keys", floatfmt=".4g"))


if __name__ == "__main__":
    main()
