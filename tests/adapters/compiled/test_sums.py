"""The loop that sums pairs: what it does together is what it does alone, and pages of files come and go."""

import os
import sys
from itertools import pairwise

import pytest
import torch

from deltaw.adapters.compiled.pages import PASSING, STAYING
from deltaw.adapters.compiled.sums import lines_of
from deltaw.analysis.measures.sums import PairSums
from deltaw.analysis.records.storage import mapped
from deltaw.analysis.records.storage.files import LocalStorage

BASE = [(0, step) for step in range(1, 5)]
KINDS = {
    "base": BASE,
    "consecutive": list(pairwise(range(5))),
    "initial": [(1, step) for step in range(2, 5)],
    "back": [(4, 0), (2, 2), (0, 4)],
}
ALL = sorted({pair for of_kind in KINDS.values() for pair in of_kind}, key=lambda pair: (max(pair), pair))


def found(matrices, pairs):
    sums = PairSums(matrices[0].shape, pairs)
    assert sums.add(matrices, 0)
    return [t for side in sums.found().values() for t in side]


def test_two_pairs_that_end_at_one_matrix_and_the_squares_between_are_one_line():
    pairs = sorted({*KINDS["base"], *KINDS["consecutive"]}, key=lambda pair: (max(pair), pair))
    lines = lines_of(pairs, {before: place for place, before in enumerate(dict.fromkeys(a for a, _ in pairs))})
    assert lines[:, :3].tolist() == [[0, -1, 1], [0, 1, 2], [0, 2, 3], [0, 3, 4]]
    assert lines[:, 6].tolist() == [2, 3, 4, 1]  # whose rows are asked for meanwhile


@pytest.mark.parametrize("kinds", [["base", "consecutive"], ["base", "initial"], ["consecutive"], list(KINDS)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 8), (37, 1096), (520, 264)], ids=str)
def test_every_pair_has_the_bits_of_the_pair_alone(kinds, dtype, shape, monkeypatch):
    draw = torch.Generator().manual_seed(0)
    matrices = [torch.randn(shape, generator=draw).to(dtype) for _ in range(5)]
    pairs = [pair for pair in ALL if any(pair in KINDS[kind] for kind in kinds)]
    alone = [found([matrices[a], matrices[b]], [(0, 1)]) for a, b in pairs]
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        together = found(matrices, pairs)
        for place, own in enumerate(alone):
            assert all(torch.equal(one[0], several[place]) for one, several in zip(own, together, strict=True))
    for place, (a, b) in enumerate(pairs):
        before, moved = matrices[a].double(), matrices[b].double() - matrices[a].double()
        wanted = [before.square(), before * moved, moved.square()]
        for dim, sums in ((1, together[:3]), (0, together[3:])):
            for product, got in zip(wanted, sums, strict=True):
                assert bool(((got[place] - product.sum(dim)).abs() <= 1e-12 * product.abs().sum(dim)).all())


def in_file(path, rows, columns):
    path.write_bytes(torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).numpy().tobytes())
    data = LocalStorage(path.parent).mapped(path.name, 0, 4 * rows * columns)
    return torch.frombuffer(data, dtype=torch.float32).view(rows, columns)


def resident(tensor) -> int:
    """Kilobytes of the mapping that a tensor lies in."""
    there = False
    with open("/proc/self/smaps") as file:
        for line in file:
            first = line.split()[0]
            if "-" in first and ":" not in first:
                start, end = (int(side, 16) for side in first.split("-"))
                there = start <= tensor.data_ptr() < end
            elif there and first == "Rss:":
                return int(line.split()[1])
    raise AssertionError("not mapped")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pages_of_a_file_go_again_unless_they_are_to_stay(tmp_path):
    matrices = [in_file(tmp_path / f"{k}.bin", 1024, 512) for k in range(2)]
    wanted = found([matrix.clone() for matrix in matrices], [(0, 1)])
    for matrix in matrices:
        mapped.release(matrix)
    sums = PairSums(matrices[0].shape, [(0, 1)])
    assert sums.add(matrices, 0, [STAYING, PASSING], mapped.page_calls())
    assert resident(matrices[0]) > 0
    mapped.release(matrices[1])  # of a large page, what no chunk has asked for
    assert resident(matrices[1]) == 0
    got = [t for side in sums.found().values() for t in side]
    assert all(torch.equal(one, other) for one, other in zip(got, wanted, strict=True))


@pytest.mark.skipif(sys.platform != "linux", reason="needs madvise of Linux")
def test_a_file_that_was_cut_meanwhile_is_said_and_is_no_signal(tmp_path):
    matrices = [in_file(tmp_path / f"{k}.bin", 1024, 512) for k in range(2)]
    with open(tmp_path / "1.bin", "r+b") as file:
        os.truncate(file.fileno(), 1000)
    sums = PairSums(matrices[0].shape, [(0, 1)])
    assert not sums.add(matrices, 0, [PASSING, PASSING], mapped.page_calls())
