"""Work in parts: in order whoever does it, errors told, nothing left behind."""

import os
import subprocess
import sys
import threading
from functools import partial, partialmethod

import pytest
import torch

from deltaw.analysis.measures.threads import one_thread, side_by_side

MATRIX = torch.ones(2, 2)


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_are_in_order(threads):
    for _ in range(20):
        assert side_by_side(lambda part: part**2, range(50), MATRIX) == [k**2 for k in range(50)]
    assert side_by_side(lambda part: part, [], MATRIX) == []
    assert torch.get_num_threads() == threads


def test_all_threads_take_part(threads):
    together = threading.Barrier(threads, timeout=30)
    names = side_by_side(lambda _: (together.wait(), threading.get_ident())[1], range(threads), MATRIX)
    assert len(set(names)) == threads
    assert threading.get_ident() in names


def test_each_has_one_thread_of_torchs_own_and_no_gradients(threads):
    together = threading.Barrier(threads, timeout=30)

    def seen(_):
        together.wait()
        return torch.get_num_threads(), torch.is_grad_enabled()

    with torch.no_grad():
        assert side_by_side(seen, range(threads), MATRIX) == [(1, False)] * threads


def test_inside_of_one_thread_all_take_part(threads):
    together = threading.Barrier(threads, timeout=30)
    with one_thread():
        side_by_side(lambda _: together.wait(), range(threads), MATRIX)


@pytest.mark.parametrize("wrong", [0, 7, 29])
@pytest.mark.parametrize("error", [ValueError, IndexError])
def test_an_error_is_told(threads, wrong, error):
    def work(part):
        if part == wrong:
            raise error(part)
        return part

    with pytest.raises(error, match=str(wrong)):
        side_by_side(work, range(30), MATRIX)
    assert side_by_side(lambda part: part, range(30), MATRIX) == list(range(30))
    assert torch.get_num_threads() == threads


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_has_threads_of_its_own(threads):
    side_by_side(lambda part: part, range(5), MATRIX)
    child = os.fork()
    if child == 0:
        os._exit(0 if side_by_side(lambda part: part, range(5), MATRIX) == list(range(5)) else 1)
    for _ in range(3000):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        threading.Event().wait(0.01)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert (done, status) == (child, 0)


BITS = """
import torch
from deltaw.analysis.measures.gram import cholesky, gram
from deltaw.analysis.measures.krylov import in_float32, product_of, random_rows
update = torch.randn(801, 1333, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
found = []
for threads in (1, 2, 4):
    torch.set_num_threads(threads)
    rows = random_rows(10, 801, update)
    lower = gram(update).lower
    found.append((lower, cholesky(lower), in_float32(update, 1.0)[0](rows), product_of(update)[0](rows.double())))
assert all(torch.equal(a, b) for again in found[1:] for a, b in zip(again, found[0]))
"""


@pytest.mark.parametrize("environment", ["1", "2", "4"])
def test_products_have_the_same_bits_whatever_the_environment_says(environment):
    """MKL shares a sum of an odd size among threads, and a new thread has as many of them as the environment says."""
    done = subprocess.run(
        [sys.executable, "-c", BITS],
        env={**os.environ, "OMP_NUM_THREADS": environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


MEASURES = """
import torch
from deltaw.analysis.measures.amplification import amplification
from deltaw.analysis.measures.intruders import intruders
from deltaw.analysis.measures.similarity import dissimilarity
from deltaw.analysis.measures.subspace import directions, overlap, principal_angles
draw = torch.Generator().manual_seed(0)
before, moved = (torch.randn(301, 217, generator=draw, dtype=torch.float64) for _ in "12")
after, u, v = before + moved / 9, moved[:, :5], moved[:5]
found = []
for threads in (1, 2, 4):
    torch.set_num_threads(threads)
    one, two, thin = directions(before), directions(after), directions(factors=(u, v))
    found.append([
        one.left, two.right, thin.left, thin.right, overlap(one.left, two.left),
        principal_angles(one.left[:, :40], two.left[:, :40]), intruders(before, after, k=5).similarity,
        torch.tensor([dissimilarity(before, after), dissimilarity(before, after, examples="column")]),
        torch.tensor([amplification(before, thin, 4).projected]),
    ])
for k, first in enumerate(found[0]):
    assert all(torch.equal(again[k], first) for again in found[1:]), k
"""


def test_measures_have_the_same_bits_for_any_number_of_threads():
    done = subprocess.run(
        [sys.executable, "-c", MEASURES],
        env={**os.environ, "OMP_NUM_THREADS": "4"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_passes_over_a_matrix_leave_torchs_own_threads_asleep(monkeypatch):
    """Awake, they keep a core busy for some milliseconds that ours want."""
    from deltaw.analysis.measures.gram import power_of_two
    from deltaw.analysis.measures.matrix import finite
    from deltaw.analysis.measures.sizes import squared_norm

    seen = []

    def watched(function, *arguments, **options):
        seen.append(torch.get_num_threads())
        return function(*arguments, **options)

    monkeypatch.setattr(torch, "aminmax", partial(watched, torch.aminmax))
    monkeypatch.setattr(torch.Tensor, "sum", partialmethod(lambda self, true, **o: watched(true, self, **o), torch.sum))
    matrix = torch.randn(2000, 600, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        finite("matrix", matrix)
        assert power_of_two(matrix) == 4.0
        whole, scale = squared_norm(matrix)
    finally:
        torch.set_num_threads(before)
    assert (whole, scale) == (pytest.approx(float(torch.linalg.matrix_norm(matrix)) ** 2, rel=1e-12), 1.0)
    assert set(seen) == {1}


@pytest.mark.parametrize("size", [0.0, 1e-320, 1e-200, 1e-95, 1e-85, 1e85, 1e95, 1e200])
def test_squares_of_any_size_are_summed(size):
    from deltaw.analysis.measures.sizes import squared_norm

    matrix = size * torch.tensor([[3.0, 0.0], [0.0, -4.0]], dtype=torch.float64)
    whole, scale = squared_norm(matrix)
    assert whole**0.5 * scale == pytest.approx(float(matrix.abs().max()) * 1.25, rel=1e-2 if size < 1e-300 else 1e-14)
    assert (scale == 1.0) == (1e-100 < size < 1e100 or size == 0)


def test_threads_that_are_busy_elsewhere_are_not_waited_for(threads):
    """Two matrices in work at once share the threads for their parts."""
    if threads == 1:
        return
    free, freed, found = threading.Event(), [], []

    def other():
        torch.set_num_threads(threads)
        busy = threading.Barrier(threads, timeout=30)
        freed.extend(side_by_side(lambda _: (busy.wait(), at_work.set(), free.wait(10))[2], range(threads), MATRIX))

    at_work = threading.Event()
    beside = threading.Thread(target=other)
    beside.start()
    try:
        assert at_work.wait(30)
        found = side_by_side(lambda part: part, range(5), MATRIX)
    finally:
        free.set()
        beside.join()
    assert found == list(range(5))
    assert freed == [True] * threads  # in time


@pytest.mark.parametrize("kind", ["flat", "falls", "random"])
def test_a_spectral_norm_lacks_no_more_than_it_says(kind):
    from deltaw.analysis.measures.norms import spectral_norm

    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(300, 300, generator=draw, dtype=torch.float64)
    if kind != "random":
        values = torch.ones(300) if kind == "flat" else torch.linspace(1, 0.9, 300)
        weight = torch.linalg.qr(weight).Q * values @ torch.linalg.qr(weight.T).Q
    ratio = spectral_norm(weight) / float(torch.linalg.matrix_norm(weight, 2))
    assert 0.99 <= ratio <= 1 + 1e-12
