"""What goes through a compiled loop is the same to the bit, whichever process compiled it."""

import os
import subprocess
import sys

import torch
from torch import nn

from deltaw.adapters import create, inject
from deltaw.trainers import Recorder

SCRIPT = """
import hashlib, sys
folder, threads, cache = sys.argv[1:]
if cache == "no cache":
    from numba.core.caching import CacheImpl
    CacheImpl._locator_classes = []  # so it is where no folder can be written
import torch
from deltaw.adapters.compiled.norms import product_norms, scaled_and_dots
from deltaw.analysis import Trajectory, changes
torch.set_num_threads(int(threads))
draw = torch.Generator().manual_seed(0)
def made(*shape):
    return torch.randn(shape, generator=draw)
def show(name, *tensors):
    print(name, hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for t in tensors)).hexdigest())
W, A, B, m, z = made(391, 517), made(7, 517), made(391, 7), made(391), made(391, 517)
show("norms", *product_norms(W, A, B, 0.5, m), *product_norms(W, A.double(), B.double(), 0.5, None))
show("scaled", scaled_and_dots(W.clone(), z, A[0].contiguous(), None))
for axis, found in changes(W, W + 1e-3 * z).items():
    show(axis, found.magnitude, found.direction)
table = Trajectory.open(folder).changes(("consecutive", "base"))
for column in ("delta_m", "delta_d"):
    print(column, [number.hex() for number in table[column]])
"""


def record(folder) -> None:
    torch.manual_seed(0)
    model = inject(nn.Sequential(nn.Linear(300, 200)), create("bora", rank=3), targets=["0"])
    with Recorder(model, folder) as recorder:
        for step in range(4):
            recorder.step(step)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 1e-3 * torch.randn(parameter.shape) * parameter.requires_grad


def test_compiled_now_or_before_or_where_nothing_can_be_kept(tmp_path) -> None:
    """Sums whose order the compiler may choose are in one order only while there is one copy of a loop's code."""
    record(tmp_path / "run")

    def printed(threads: int, cache: str) -> str:
        known = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / "run"), str(threads), cache]
        done = subprocess.run(command, env=known, capture_output=True, text=True, check=True, timeout=300)
        return done.stdout

    first = printed(1, "a new cache")
    assert list((tmp_path / "cache").rglob("*.nbi"))
    assert printed(1, "the cache") == first
    assert printed(2, "the cache") == first
    assert printed(2, "no cache") == first
