"""The compiled loops: equal to torch's operations, whatever the threads, and compiled once."""

import importlib.util
import sys

import pytest
import torch

from deltaw.adapters.compiled import loops
from deltaw.adapters.compiled import norms as kernels
from deltaw.adapters.linear import blocks, norms

OUT, IN, RANK, TOKENS = 11, 7, 3, 5
FULL = {"detach_norm": False}


@pytest.fixture(params=["one thread", "two threads", "no OpenMP"])
def loop_threads(request, monkeypatch):
    """The compiled loops on one thread, on two of torch's, and where libgomp is not found."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1 if request.param == "one thread" else 2)
    if request.param == "no OpenMP":
        monkeypatch.setattr(loops, "_openmp", None)
    elif sys.platform == "linux":
        assert loops.on_torch_threads()


@pytest.fixture(params=[True, False], ids=["32 vectors", "16 vectors"])
def vectors(request, monkeypatch):
    """The loop of norms for either kind of processor; both run everywhere."""
    monkeypatch.setattr(kernels, "_MANY_VECTORS", request.param)


@pytest.mark.usefixtures("loop_threads", "vectors")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [1, 4, 7, 40])
@pytest.mark.parametrize(("out", "in_"), [(1, 1), (1, 9), (2, 5), (33, 20), (64, 9), (700, 520)])
@pytest.mark.parametrize("weighted", [True, False])
def test_the_compiled_loop_is_the_blocks_of_torch(dtype, rank, out, in_, weighted, monkeypatch):
    """Any number of rows, ranks that are no multiple of the loop's, and a zero row."""
    generator = torch.Generator().manual_seed(out + rank)
    W, A, B, m = (
        torch.randn(shape, generator=generator, dtype=dtype) for shape in [(out, in_), (rank, in_), (out, rank), (out,)]
    )
    W[0], B[0] = 0, 0

    def found():
        if weighted:
            return norms.constant_norms_of_both(W, A, B, 0.7, m)
        return [norms.constant_norms(W, A, B, 0.7, axis) for axis in ("row", "column")]

    assert norms._loop_norms(W, A, B, 0.7, m) is not None
    got = found()
    monkeypatch.setattr(norms, "loop_reads", lambda *tensors: False)
    torch.testing.assert_close(got, found(), rtol=1e-13 if dtype == torch.float64 else 5e-6, atol=0)
    assert got[0][0] == 0


@pytest.mark.usefixtures("loop_threads")
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (3, 7), (32, 5), (200, 40)])
@pytest.mark.parametrize("in_place", [True, False])
def test_the_compiled_scaling_is_that_of_torch(shape, in_place, monkeypatch):
    torch.manual_seed(0)
    g, z, scale = (torch.randn(s, dtype=torch.float64) for s in (shape, shape, shape[1:]))
    wanted, dots = g * scale, (g * z).sum(0)
    for reads in (True, False):
        if not reads:
            monkeypatch.setattr(blocks, "loop_reads", lambda *tensors: False)
        given = g.clone()
        out, found = blocks.scaled_and_dots(given, z, scale, in_place)
        assert (out is given) == in_place
        assert torch.equal(out, wanted)
        torch.testing.assert_close(found, dots, rtol=1e-13, atol=1e-13)
        assert in_place or torch.equal(given, g)


@pytest.mark.usefixtures("vectors")
def test_the_compiled_loops_do_not_depend_on_the_threads(monkeypatch):
    torch.manual_seed(0)
    W, A, B, m = torch.randn(700, 520), torch.randn(8, 520), torch.randn(700, 8), torch.rand(700)
    g, z = torch.randn(2, 300, 520)
    results = []
    for threads in (1, 2, 2, 3, 7):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        out = torch.empty_like(g)
        results.append([*kernels.product_norms(W, A, B, 0.7, m), kernels.scaled_and_dots(g, z, W[0], out), out])
    for found in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found, results[0], strict=True))


LOOP = """
from deltaw.adapters.compiled.loops import compiled


@compiled
def doubled(own, given, out, part):
    part[:] = 0
    for i in range(own.start, min(own.stop, len(given))):
        out[i] = FACTOR * given[i]
        part[0] += given[i]
"""


def test_a_loop_is_compiled_once_and_again_when_its_file_changes(tmp_path, monkeypatch):
    """The code that claims the chunks is kept beside the loop, in whatever process it was compiled."""
    given = torch.arange(10.0)
    file = tmp_path / "one_loop.py"

    def loaded(factor):
        text = LOOP.replace("FACTOR", factor)
        if not file.exists() or file.read_text() != text:
            file.write_text(text)
        spec = importlib.util.spec_from_file_location("one_loop", file)
        monkeypatch.setitem(sys.modules, "one_loop", module := importlib.util.module_from_spec(spec))
        spec.loader.exec_module(module)
        out, total = torch.empty(10), torch.ones(1, dtype=torch.float64)
        loops.run(module.doubled, 3, total, given, out)
        assert torch.equal(out, float(factor) * given)
        assert total == 46
        kinds = (torch.float32, 1), (torch.float32, 1), (torch.float64, 2), (torch.float64, 1)
        return loops._task(module.doubled, kinds).cache_hits

    assert [loaded("2.0"), loaded("2.0"), loaded("30.0")] == [0, 1, 0]


def test_which_tensors_the_compiled_loops_read(monkeypatch):
    x = torch.randn(4, 6)
    assert blocks.loop_reads(x, torch.nn.Parameter(x))
    assert not blocks.loop_reads(x, x.double())
    assert not blocks.loop_reads(x.half())
    assert not blocks.loop_reads(x.T)
    assert not blocks.loop_reads(x.to("meta"))
    monkeypatch.setattr(loops, "_openmp", None)
    for threads in (blocks.LOOP_THREADS, blocks.LOOP_THREADS + 1):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert blocks.loop_reads(x) == (threads == blocks.LOOP_THREADS)
