"""The sums of pairs of matrices in files: a group of rows of all of them at a time, the next one read ahead."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from deltaw.analysis.measures.sums import PairSums, Side, Sums
from deltaw.analysis.records.storage.mapped import bring, release

_IN_MEMORY = 3.5  # matrices at most, when of many some rows are there
_CHUNKS = 16  # of rows, which a matrix has
_MOST = 12  # matrices, so that the sums over their columns stay in a cache
_LARGE_PAGE = 2**21  # bytes that the system may map together


def streamed_sums(
    matrices: Sequence[Tensor], mapped: Sequence[bool], pairs: Sequence[tuple[int, int]]
) -> dict[Side, Sums]:
    """Return the three sums of pairs along both axes, as ``sums`` of each.

    Arguments:
        matrices: (out, in) of one shape, on the CPU.
        mapped: Which of them were mapped for this, so that nobody has written into them.
        pairs: Two positions among them, each.

    Returns:
        {axis: `Sums`}, (pairs, vectors).

    Raises:
        RecordError: A file was cut meanwhile.
    """
    turned = all(matrix.stride(0) < matrix.stride(1) for matrix in matrices)  # stored transposed
    if turned:
        matrices = [matrix.T for matrix in matrices]
    height, width = matrices[0].shape
    sums = PairSums((height, width), pairs)
    rows = sums.step * _chunks()
    groups = [(start, [matrix[start : start + rows] for matrix in matrices]) for start in range(0, height, rows)]

    def each(do: Callable[[Tensor], None], group: Sequence[Tensor]) -> None:
        for part, is_mapped in zip(group, mapped, strict=True):
            if is_mapped and part.is_contiguous():
                do(part)

    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(each, bring, groups[0][1])
        for number, (start, group) in enumerate(groups):
            coming.result()
            if number + 1 < len(groups):
                coming = ahead.submit(each, bring, groups[number + 1][1])
            sums.add(group, start)
            each(release, group)
    each(release, matrices)  # pages come in larger pieces than they are asked for
    found = sums.found()
    return {"row": found["column"], "column": found["row"]} if turned else found


def at_once(matrix: Tensor) -> int:
    """Return how many matrices like this one may be streamed together: two groups of rows of each are in memory."""
    whole = matrix.numel() * matrix.element_size()
    there = min(whole, 2 * whole * _chunks() // _CHUNKS + 3 * _LARGE_PAGE // 2)
    return max(3, min(_MOST, int(_IN_MEMORY * whole / max(1, there))))


def _chunks() -> int:
    """Return how many chunks of rows make a group: every thread has one."""
    return max(2, min(torch.get_num_threads(), 4))
