"""The sums of pairs of matrices in files: some rows of all of them at a time, whose pages come and go meanwhile."""

from collections.abc import Sequence

from torch import Tensor

from deltaw.analysis.measures.sums import PairSums, Side, Sums
from deltaw.analysis.records.storage.mapped import bring, page_calls, release

_IN_MEMORY = 3.5  # matrices at most, when of many some rows are there
_MOST = 12  # matrices, so that the sums over their columns stay in a cache
_LEAST = 3  # matrices; whole ones then, which stay as long as a later pair needs them


def streamed_sums(
    matrices: Sequence[Tensor],
    mapped: Sequence[bool],
    pairs: Sequence[tuple[int, int]],
    stay: Sequence[int] = (),
) -> dict[Side, Sums]:
    """Return the three sums of pairs along both axes, as ``sums`` of each.

    Arguments:
        matrices: (out, in) of one shape, on the CPU.
        mapped: Which of them were mapped for this, so that nobody has written into them.
        pairs: Two positions among them, each.
        stay: Positions of those whose pages stay in memory.

    Returns:
        {axis: `Sums`}, (pairs, vectors).

    Raises:
        RecordError: A file was cut meanwhile.
    """
    from deltaw.adapters.compiled.pages import OWN, PASSING, STAYING, Calls  # a quarter of a second, as in ``PairSums``

    turned = all(matrix.stride(0) < matrix.stride(1) for matrix in matrices)  # stored transposed
    if turned:
        matrices = [matrix.T for matrix in matrices]
    in_file = [k for k, is_mapped in enumerate(mapped) if is_mapped and matrices[k].is_contiguous()]
    for k in in_file:
        bring(matrices[k][:1])  # an error here, where the file cannot be read
    sums = PairSums(matrices[0].shape, pairs)
    if sums.reads(matrices):
        pages = [OWN] * len(matrices)
        for k in in_file:
            pages[k] = STAYING if k in stay else PASSING
        calls = page_calls() if in_file else None
        if not sums.add(matrices, 0, pages, Calls(*calls) if calls else None):
            for k in in_file:
                bring(matrices[k])  # says which file it was
            sums = PairSums(matrices[0].shape, pairs)
            sums.add(matrices, 0)
    else:
        _widened(sums, matrices, in_file)
    for k in in_file:
        if k not in stay:
            release(matrices[k])  # pages come in larger pieces than they are asked for
    found = sums.found()
    return {"row": found["column"], "column": found["row"]} if turned else found


def _widened(sums: PairSums, matrices: Sequence[Tensor], in_file: Sequence[int]) -> None:
    """Add all rows, a chunk at a time, of matrices that are not alike."""
    for start in range(0, len(matrices[0]), sums.step):
        group = [matrix[start : start + sums.step] for matrix in matrices]
        for k in in_file:
            bring(group[k])
        sums.add(group, start)
        for k in in_file:
            release(group[k])


def at_once(matrix: Tensor) -> int:
    """Return how many matrices like this one may be streamed together: some rows of each are in memory."""
    from deltaw.adapters.compiled.sums import in_flight

    height, width = matrix.shape if matrix.stride(0) >= matrix.stride(1) else matrix.T.shape
    size = matrix.element_size()
    there = in_flight(height, width, size)
    return max(_LEAST, min(_MOST, int(_IN_MEMORY * height * width * size / max(1, there))))
