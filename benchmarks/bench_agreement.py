"""Two updates against each other: their cosine from factors against building both, signs against torch's own line, and
leading directions of a dense update against its whole decomposition.

The contenders take turns in one process on one thread, and the least of the rounds counts.
"""

import time
from collections.abc import Callable
from typing import Any

import torch

from deltaw.analysis import sign_agreement, update_cosine
from deltaw.analysis.measures.strongest import strongest

LARGE, DENSE, RANK = 4096, 1536, 16


def fastest(work: Callable[[], Any], other: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """Return the least processor time of each, taking turns."""
    best = [float("inf"), float("inf")]
    for _ in range(rounds):
        for place, call in enumerate((work, other)):
            start = time.process_time()
            call()
            best[place] = min(best[place], time.process_time() - start)
    return best[0], best[1]


def built(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Return the cosine of two products by building them, in float64."""
    a, b = (left.double() @ right.double() for left, right in pairs)
    return float((a * b).sum() / (a.norm() * b.norm()))


def rows() -> list[dict[str, Any]]:
    """The rows of the table."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        draw = torch.Generator().manual_seed(0)
        pairs = [(torch.randn(LARGE, RANK, generator=draw), torch.randn(RANK, LARGE, generator=draw)) for _ in range(2)]
        a, b = (torch.randn(2048, 2048, generator=draw) for _ in range(2))
        q = torch.linalg.qr(torch.randn(DENSE, 64, generator=draw, dtype=torch.float64)).Q
        p = torch.linalg.qr(torch.randn(DENSE, 64, generator=draw, dtype=torch.float64)).Q
        update = (q * 0.9 ** torch.arange(64)) @ p.T + 1e-5 * torch.randn(DENSE, DENSE, generator=draw).double()
        contenders = [
            (f"cosine of two updates of rank {RANK}, {LARGE}", "building them", 20.0, 3,
             lambda: update_cosine(*pairs), lambda: built(pairs)),
            ("signs of two dense updates, 2048", "torch's line", None, 5,
             lambda: sign_agreement(a, b), lambda: float((a.sign() == b.sign()).double().mean())),
            (f"8 leading directions of a dense update, {DENSE}", "the whole SVD", 4.0, 1,
             lambda: strongest(update, 8), lambda: torch.linalg.svd(update, full_matrices=False)),
        ]  # fmt: skip
        found = []
        for name, other, goal, rounds, ours, theirs in contenders:
            own, against = fastest(ours, theirs, rounds)
            ratio = against / own
            found.append(
                {"name": name, "ours_seconds": own, "other_name": other, "other_seconds": against, "ratio": ratio}
                | {"goal": goal, "met": None if goal is None else ratio >= goal}
            )
        return found
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    for row in rows():
        print(row)
