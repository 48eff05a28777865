"""How far W' turns W₀'s leading directions, against the singular value decompositions of both.

The contenders take turns in one process on one thread. Without W₀: of the second and further steps of a module, where
W₀'s directions are known, against the decomposition of W' alone.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from tabulate import tabulate

from deltaw.adapters.method import ScaledLowRank
from deltaw.analysis.measures.principal import Principal, by_gram
from deltaw.analysis.measures.principal_rotation import rotation, rotation_of_form

K, RANK = 16, 8


def weights(size: int, draw: torch.Generator) -> torch.Tensor:
    """A dense matrix whose singular values fall off as i^−½, in O(size²): a diagonal one under some reflections."""
    matrix = torch.diag(torch.arange(1, size + 1, dtype=torch.float64) ** -0.5)
    for _ in range(4):
        u, v = (torch.randn(size, generator=draw, dtype=torch.float64) for _ in range(2))
        matrix -= torch.outer(2 * u / (u @ u), u @ matrix)
        matrix -= torch.outer(matrix @ v, 2 * v / (v @ v))
    return matrix


def seconds(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def of_size(size: int, rounds: int) -> list[dict[str, Any]]:
    """The rows of one size; the decomposition of W', which takes longest, is timed once, and counts twice for both."""
    draw = torch.Generator().manual_seed(0)
    before = weights(size, draw)
    U, V = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in ((size, RANK), (RANK, size)))
    U *= 0.02 * before.norm() / size / RANK**0.5
    rho, gamma = (1 + 1e-3 * torch.randn(size, generator=draw, dtype=torch.float64) for _ in range(2))
    form = ScaledLowRank(rho, gamma, U, V)
    after = rho[:, None] * (before + U @ V) * gamma
    base = Principal(before, K)
    assert rotation_of_form(base, form).route == rotation(base, after).route == "krylov"
    both, step, dense = float("inf"), float("inf"), float("inf")
    for turn in range(rounds):
        both = min(both, seconds(lambda: rotation(before, after, K)))
        step = min(step, seconds(lambda: rotation_of_form(base, form)))
        dense = min(dense, seconds(lambda: rotation(base, after)))
        if turn == 0:
            gram = seconds(lambda: by_gram(after, lambda _: K))
            whole = seconds(lambda: torch.linalg.svd(after, full_matrices=False))
    return [
        row(f"rotation, k = {K}, {size}², W₀ and W'", both, "torch's SVD of both", 2 * whole, 20.0),
        row(f"a further step, {size}², ρ, γ, U, V of rank {RANK}", step, "torch's SVD of W'", whole, 40.0),
        row(f"a further step, {size}², W' as a matrix", dense, "torch's SVD of W'", whole, 40.0),
        row(f"a further step, {size}², ρ, γ, U, V of rank {RANK}", step, "the Gram matrix of W'", gram, 5.0),
    ]


def row(name: str, ours: float, other: str, theirs: float, goal: float) -> dict[str, Any]:
    ratio = theirs / ours
    found = {"name": name, "ours_seconds": ours, "other_name": other, "other_seconds": theirs, "ratio": ratio}
    return found | {"goal": goal, "met": ratio >= goal}


def rows(sizes: tuple[int, ...] = (2048, 4096), rounds: int = 3) -> list[dict[str, Any]]:
    """The rows of the table."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [made for size in sizes for made in of_size(size, rounds)]
    finally:
        torch.set_num_threads(threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2048, 4096])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    print(tabulate(rows(tuple(given.sizes), given.rounds), headers="keys", floatfmt=".4g"))


if __name__ == "__main__":
    main()
