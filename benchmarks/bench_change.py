"""ΔM and ΔD of rows and columns, against the textbook lines and against merely reading the two matrices.

The matrices take turns among several pairs, so that none is still in a cache from the round before.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from tabulate import tabulate

from deltaw.analysis import changes

Pair = tuple[torch.Tensor, torch.Tensor]


def pairs(size: int, bytes_wanted: float = 5e8) -> list[Pair]:
    """Pairs of size×size float32 matrices, weights and weights moved by 1e-4 of their size."""
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(size, size, generator=generator) * 0.02
    after = before + torch.randn(size, size, generator=generator) * 0.02 * 1e-4
    return [(before.clone(), after.clone()) for _ in range(max(2, int(bytes_wanted / (8 * size**2))))]


def textbook(before: torch.Tensor, after: torch.Tensor) -> None:
    for dim in (0, 1):
        (after.norm(dim=dim) - before.norm(dim=dim)).abs().mean()
        (1 - torch.cosine_similarity(before, after, dim=dim)).mean()


def textbook_float64(before: torch.Tensor, after: torch.Tensor) -> None:
    textbook(before.double(), after.double())


def read(before: torch.Tensor, after: torch.Tensor) -> None:
    before.sum()
    after.sum()


def rescaled(before: torch.Tensor, _: torch.Tensor) -> None:
    changes(before, before * 3)


def measure(
    work: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]], given: list[Pair], rounds: int
) -> dict[str, float]:
    """Seconds, the least of rounds in which every contender runs once, in turn, each on another pair."""
    least = dict.fromkeys(work, float("inf"))
    for number in range(rounds + 1):
        for offset, (name, run) in enumerate(work.items()):
            pair = given[(number + offset) % len(given)]
            start = time.perf_counter()
            run(*pair)
            if number:  # the first warms up
                least[name] = min(least[name], time.perf_counter() - start)
    return least


GOALS = [  # (size, ours, other, the ratio other / ours that is wanted at least)
    (4096, "changes", "textbook lines, float32", 15.0),
    (4096, "changes", "textbook lines, float64", None),
    (4096, "changes", "reading both", 1 / 4),
    (4096, "changes, all rescaled", "textbook lines, float32", None),
    (768, "changes", "textbook lines, float32", None),
]


def rows(rounds: int = 9) -> list[dict[str, Any]]:
    """The comparisons, each with its goal."""
    work: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
        "changes": changes,
        "textbook lines, float32": textbook,
        "textbook lines, float64": textbook_float64,
        "reading both": read,
        "changes, all rescaled": rescaled,
    }
    result = []
    for size in (4096, 768):
        seconds = measure(work, pairs(size), rounds)
        for at, mine, other, goal in GOALS:
            if at == size:
                ratio = seconds[other] / seconds[mine]
                result.append(
                    {
                        "name": f"{mine}, {size}×{size}, both axes",
                        "ours_seconds": seconds[mine],
                        "other_name": other,
                        "other_seconds": seconds[other],
                        "ratio": ratio,
                        "goal": goal,
                        "met": None if goal is None else ratio >= goal,
                    }
                )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    print(tabulate(rows(parser.parse_args().rounds), headers="keys", floatfmt=".4g"))


if __name__ == "__main__":
    main()
